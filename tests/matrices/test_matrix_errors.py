"""What does not fit is refused, in a message that names what was given and what was expected."""

import jax
import jax.numpy as jnp
import pytest

from surm.matrices import FAMILIES, options
from surm.matrices.algebra.displacement import from_dense, shift

from .cases import Case

KEY = jax.random.key(0)
WRONG_PARAMETERS = [
    ("circulant", {"a": (7,), "b": (7,)}, r"a has shape \(7,\); expected \(8,\).*n_out=8, n_in=5"),
    ("circulant", {"a": (8,), "b": (7,)}, r"b has shape \(7,\); expected \(8,\)"),
    ("circulant", {"c": (1, 8)}, r"c has shape \(1, 8\); expected \(8,\)"),
    ("circulant", {"a": (8,)}, r"given parameters named \('a',\); expected \('a', 'b'\) or \('c',\)"),
    ("skew_circulant", {"c": (5,)}, r"c has shape \(5,\); expected \(8,\)"),
    ("toeplitz", {"a": (5,), "b": (8,)}, r"a has shape \(5,\); expected \(8,\)"),
    ("toeplitz", {"b": (13,)}, r"b has shape \(13,\); expected \(8,\)"),
    ("toeplitz", {"b_diagonals": (13,)}, r"b_diagonals has shape \(13,\); expected \(12,\).*n_out=8, n_in=5"),
    ("toeplitz", {"c": (8,)}, r"given parameters named \('c',\)"),
    (
        "kronecker",
        {"a": (1, 5), "b": (8, 1)},
        r"a has shape \(1, 5\); expected the axes \(terms rank n_in/rank\)",
    ),
    ("kronecker", {"a": (1, 2, 2), "b": (1, 4, 2)}, r"rank must divide.*given rank=2, n_out=8, n_in=5"),
    ("kronecker", {"a": (1, 1, 4), "b": (1, 8, 1)}, r"a has shape \(1, 1, 4\); expected \(1, 1, 5\)"),
    ("kronecker", {"a": (2, 1, 5), "b": (1, 8, 1)}, r"b has shape \(1, 8, 1\); expected \(2, 8, 1\)"),
    ("low_displacement_rank", {"g": (8,), "h": (8,)}, r"g has shape \(8,\); expected the axes"),
    ("low_displacement_rank", {"g": (2, 8), "h": (1, 8)}, r"h has shape \(1, 8\); expected \(2, 8\)"),
    ("low_displacement_rank", {"g": (1, 5), "h": (1, 8)}, r"g has shape \(1, 5\); expected \(1, 8\)"),
    ("low_rank", {"a": (2, 8), "b": (8, 2)}, r"a has shape \(2, 8\); expected \(2, 5\).*n_out=8, n_in=5"),
    ("low_rank", {"a": (2, 5), "b": (8, 3)}, r"b has shape \(8, 3\); expected \(8, 2\)"),
    ("low_rank", {"a": (5,), "b": (8,)}, r"a has shape \(5,\); expected the axes \(rank n_in\)"),
    ("low_rank", {"A": (2, 5), "B": (8, 2)}, r"given parameters named \('A', 'B'\); expected \('a', 'b'\)"),
    ("block_circulant", {"c": (8,)}, r"c has shape \(8,\); expected the axes"),
    ("block_circulant", {"c": (4, 2, 2)}, r"block_size must divide.*block_size=2, n_out=8, n_in=5"),
    ("block_circulant", {"c": (5, 8, 1)}, r"c has shape \(5, 8, 1\); expected \(8, 5, 1\)"),
    ("c3a", {"c": (8,)}, r"c has shape \(8,\); expected the axes"),
    ("c3a", {"c": (5, 8, 1)}, r"c has shape \(5, 8, 1\); expected \(8, 5, 1\)"),
    ("melora", {"a": (2, 5), "b": (8, 2)}, r"a has shape \(2, 5\); expected the axes \(blocks rank n_in/blocks\)"),
    ("melora", {"a": (2, 1, 2), "b": (2, 4, 1)}, r"blocks must divide.*given blocks=2, n_out=8, n_in=5"),
    ("melora", {"a": (1, 2, 5), "b": (1, 8, 1)}, r"b has shape \(1, 8, 1\); expected \(1, 8, 2\)"),
    ("lora_xs", {"r": (2, 2)}, r"given parameters named \('r',\); expected \('a', 'b', 'r'\)"),
    ("lora_xs", {"r": (2, 2), "a": (3, 5), "b": (8, 2)}, r"a has shape \(3, 5\); expected \(2, 5\) for rank 2"),
    ("vera", {"A": (2, 5), "B": (8, 2), "b": (8,), "d": (3,)}, r"A has shape \(2, 5\); expected \(3, 5\) for rank 3"),
    ("adalora", {"a": (2, 5), "b": (8, 2), "e": (3,)}, r"e has shape \(3,\); expected \(2,\)"),
    ("dora_dynamic", {"a": (2, 5), "b": (8, 2)}, r"given parameters named \('a', 'b'\); expected \('a', 'b', 'e'\)"),
    (
        "lora2",
        {"a_in": (2, 5), "a_out": (3, 2), "b_in": (2, 3), "b_out": (8, 1), "e": (3,)},
        r"b_out has shape \(8, 1\); expected \(8, 2\) for rank 3, inner 2",
    ),
    (
        "lorta",
        {"a": (2, 5), "b": (2, 2), "c_head": (3, 2), "c_kind": (2,), "c_layer": (2,)},
        "heads must divide n_out, as 1, 2, 4, 8 do; given heads=3, n_out=8",
    ),
    ("aurora", {"core": (2, 2, 3), "p": (2,), "u": (2, 5), "v": (8, 2)}, r"core has shape \(2, 2, 3\); expected"),
]


@pytest.mark.parametrize("name, shapes, message", WRONG_PARAMETERS, ids=lambda value: str(value)[:40])
def test_parameters_of_the_wrong_shape_or_name(name, shapes, message):
    params = {key: jnp.zeros(shape) for key, shape in shapes.items()}
    with pytest.raises(ValueError, match=message):
        FAMILIES[name].matvec(params, jnp.zeros(5), 8)
    with pytest.raises(ValueError, match=message):
        FAMILIES[name].to_dense(params, 8, 5)


@pytest.mark.parametrize("name", FAMILIES)
def test_x_of_the_wrong_length(name):
    params = Case(name, (), 8, 12).start("float32")
    with pytest.raises(ValueError, match="n_in=9|n_in=11"):
        FAMILIES[name].matvec(params, jnp.zeros((3, 11 if name != "kronecker" else 9)), 4)
    with pytest.raises(ValueError, match=r"x has shape \(3, 0\); expected \(\.\.\., n_in\)"):
        FAMILIES[name].matvec(params, jnp.zeros((3, 0)), 8)


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_below_one(name):
    family = FAMILIES[name]
    for make in (family.num_params, lambda n_out, n_in: family.init(KEY, n_out, n_in)):
        with pytest.raises(ValueError, match="at least 1; given n_out=0, n_in=5"):
            make(0, 5)
    with pytest.raises(ValueError, match="at least 1; given n_out=5, n_in=0"):
        family.project(jnp.zeros((5, 0)), **({"fixed": {}} if family.fixed else {}))


@pytest.mark.parametrize(
    "name, chosen, message",
    [
        (
            "toeplitz",
            {"symmetric": False},
            r"given factors=2, symmetric=False; expected factors=1, symmetric=False",
        ),
        ("toeplitz", {"factors": 3}, "factors must be 1 or 2; given factors=3"),
        ("kronecker", {"rank": 4}, "rank must divide n_out and n_in, as 1, 2, 3, 6 do; given rank=4, n_out=12, n_in=6"),
        ("kronecker", {"rank": 0}, "rank must be at least 1; given rank=0"),
        ("kronecker", {"terms": 0}, "terms must be at least 1; given terms=0"),
        ("low_displacement_rank", {"rank": 0}, "rank must be at least 1; given rank=0"),
        ("low_rank", {"rank": -1}, "rank must be at least 1; given rank=-1"),
        ("block_circulant", {"block_size": 4}, "block_size must divide.*block_size=4, n_out=12, n_in=6"),
        ("block_circulant", {"block_size": 0}, "block_size must be at least 1; given block_size=0"),
        ("c3a", {"block_size": 4}, "block_size must divide.*block_size=4, n_out=12, n_in=6"),
        ("melora", {"blocks": 4}, "blocks must divide n_out and n_in, as 1, 2, 3, 6 do; given blocks=4"),
        ("melora", {"rank": 0}, "rank must be at least 1; given rank=0"),
        ("monarch", {"blocks": 4}, "blocks must divide n_out and n_in, as 1, 2, 3, 6 do; given blocks=4"),
        ("monarch", {"rank": 0}, "rank must be at least 1; given rank=0"),
        ("diagonal_circulant", {"block_size": 4}, "block_size must divide.*block_size=4, n_out=12, n_in=6"),
        ("lora_xs", {"rank": 0}, "rank must be at least 1; given rank=0"),
        ("vera", {"rank": 0}, "rank must be at least 1; given rank=0"),
        ("adalora", {"rank": 0}, "rank must be at least 1; given rank=0"),
        ("adalora", {"rank": 4, "initial_rank": 3}, "at most initial_rank; given rank=4, initial_rank=3"),
        ("dora_dynamic", {"rank": 4, "initial_rank": 3}, "at most initial_rank; given rank=4, initial_rank=3"),
        ("lora2", {"rank": 4, "initial_rank": 3}, "at most initial_rank; given rank=4, initial_rank=3"),
        ("lora2", {"inner": 0}, "inner must be at least 1; given inner=0"),
        ("lorta", {"heads": 5}, "heads must divide n_out, as 1, 2, 3, 4, 6, 12 do; given heads=5, n_out=12"),
        ("aurora", {"rank": 0}, "rank must be at least 1; given rank=0"),
    ],
)
def test_options_that_do_not_fit(name, chosen, message):
    family = FAMILIES[name]
    for call in (
        lambda: family.num_params(12, 6, **chosen),
        lambda: family.init(KEY, 12, 6, **chosen),
        lambda: family.project(jnp.zeros((12, 6)), **chosen, **({"fixed": {}} if family.fixed else {})),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_unknown_family():
    with pytest.raises(ValueError, match="given family 'circular'; expected one of circulant, skew"):
        options("circular")


def test_displacement_of_what_is_not_square():
    with pytest.raises(ValueError, match=r"dense has shape \(2, 3\); expected a square matrix"):
        from_dense(jnp.zeros((2, 3)), rank=1)
    with pytest.raises(ValueError, match="rank must be at least 1; given rank=0"):
        from_dense(jnp.zeros((3, 3)), rank=0)
    with pytest.raises(ValueError, match="n must be at least 1; given n=0"):
        shift(0, 1.0)
