"""Blocks in a scan: the numbers of blocks one after another, whatever their structures, adapters and caches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import surm
from surm.models import scanned
from surm.models.decoder import Decoder, DecoderConfig, Layer
from surm.models.scanned import Run
from surm.peft import layers, surgery

TINY = DecoderConfig(31, 16, 5, 2, 1, 8, 24, layers=(Layer(3), Layer(rotary=None)))
TOKENS = jax.random.randint(jax.random.key(0), (2, 7), 1, 31)
SEGMENTS = jnp.array([[0, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1]])


def decoder(base_dtype: str = "float32", **spec) -> Decoder:
    spec = {"family": "low_rank", "targets": ".*(query|value|down)", "train": (), **spec}
    return surm.attach(
        surm.with_base_dtype(Decoder(TINY, rngs=nnx.Rngs(0)), base_dtype), surm.PeftSpec(**spec), nnx.Rngs(1)
    )


class Kind(nnx.Module):
    def __init__(self, kind: str):
        self.kind = kind


@pytest.mark.parametrize(
    ("kinds", "runs"),
    [
        ("aaaa", [(0, 1, 4)]),
        ("abab", [(0, 2, 2)]),
        ("llllglllgl", [(0, 1, 4), (4, 4, 1)]),
        ("lllglllgll", [(0, 4, 2), (8, 1, 2)]),
        ("abcaa", [(0, 1, 1), (1, 1, 1), (2, 1, 1), (3, 1, 2)]),
        ("", []),
    ],
)
def test_blocks_of_one_structure_or_a_period_make_a_run(kinds, runs):
    found = scanned.runs_of([Kind(kind) for kind in kinds])
    assert [number for run in found for number in range(run.first, run.stop)] == [*range(len(kinds))]
    if runs[1:2] != [(4, 4, 1)]:
        assert [*found] == [Run(*run) for run in runs]


@pytest.mark.parametrize(
    "spec",
    [
        {"rules": {"blocks.0.*query": {"family": "circulant"}}},
        pytest.param({"family": "vera", "targets": ".*(query|output)", "dropout": 0.0}, marks=pytest.mark.slow),
        pytest.param({"method": "full", "targets": ".*"}, marks=pytest.mark.slow),
        pytest.param({"base_dtype": "int4"}, marks=pytest.mark.slow),
    ],
    ids=["rules", "shared", "full", "packed"],
)
def test_a_scan_gives_what_blocks_one_by_one_give(spec):
    model = decoder(**spec)
    _, trained, frozen = surgery.split(model)
    trained = {path: array + 0.1 * jnp.sin(jnp.arange(array.size)).reshape(array.shape)
               for path, array in trained.items()}  # fmt: skip
    plain = surgery.split(model)[0]
    model.scan()
    graphdef = surgery.split(model)[0]
    assert model.runs == (((0, 1, 1), (1, 2, 2)) if "rules" in spec else ((0, 2, 2), (4, 1, 1)))
    layout = scanned.layout(model.runs, trained)
    packed, stacks = scanned.packed(trained, layout), scanned.stacked(model.runs, frozen)
    assert len(packed) < len(trained)

    def loss(graphdef, trained, frozen):
        found = surgery.join(graphdef, trained, frozen)(TOKENS, segments=SEGMENTS)
        return jnp.sum(jnp.sin(found))

    def both(trained, frozen, packed, stacks):
        one = jax.value_and_grad(lambda trained: loss(plain, trained, frozen))(trained)
        other = jax.value_and_grad(lambda packed: loss(graphdef, scanned.spread(packed, layout), stacks))(packed)
        return one, (other[0], scanned.unpacked(other[1], layout)), loss(graphdef, trained, frozen)

    one, other, inside = jax.jit(both)(trained, frozen, packed, stacks)
    np.testing.assert_allclose(inside, one[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), other, one)


def test_packing_is_undone():
    arrays = {f"blocks.{n}.a.b": jnp.full(3, n) for n in range(5)} | {"norm.scale": jnp.ones(2)}
    layout = scanned.layout([Run(0, 2, 2), Run(4, 1, 1)], arrays)
    assert layout == {
        "blocks.0.a.b": ("blocks.0.a.b", "blocks.2.a.b"),
        "blocks.1.a.b": ("blocks.1.a.b", "blocks.3.a.b"),
    }
    back = scanned.unpacked(scanned.packed(arrays, layout), layout)
    assert back.keys() == arrays.keys()
    jax.tree.map(np.testing.assert_array_equal, back, arrays)
    assert scanned.layout([Run(0, 2, 2)], arrays, lambda path: path) == {}


def test_dropout_differs_between_blocks():
    model = decoder(dropout=0.5)
    model.scan()
    layers.reseed_dropout(model, jax.random.key(0))
    streams = [module.rngs.key[...] for _, module in nnx.iter_modules(model) if isinstance(module, nnx.Dropout)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in streams}) == len(streams)
    graphdef, trained, frozen = surgery.split(model)
    stacks = scanned.stacked(model.runs, frozen)
    jax.jit(lambda trained, frozen: surgery.join(graphdef, trained, frozen)(TOKENS))(trained, stacks)


def test_a_scan_reads_and_writes_the_cache():
    model = decoder()
    graphdef, state = nnx.split(model)
    model.scan()
    in_scan = nnx.split(model)[0]

    @jax.jit
    def answers(state):
        whole = nnx.merge(graphdef, state)(TOKENS)
        model = nnx.merge(in_scan, state)
        first, cache = model(TOKENS[:, :4], cache=model.empty_cache(2, 8))
        second, cache = model(TOKENS[:, 4:], positions=jnp.broadcast_to(jnp.arange(4, 7), (2, 3)), cache=cache)
        return whole, jnp.concatenate([first, second], axis=1), model.hidden_states(TOKENS)[0]

    whole, parts, states = answers(state)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)
    assert len(states) == TINY.depth + 1


def test_computing_again_saves_memory_even_on_a_cpu():
    def needed(remat: bool) -> int:
        config = dataclasses.replace(TINY, depth=8, mlp_width=128, layers=(Layer(),))
        model = surm.attach(
            Decoder(config, remat=remat, rngs=nnx.Rngs(0)),
            surm.PeftSpec(family="low_rank", targets=".*down", train=()),
            nnx.Rngs(1),
        )
        model.scan()
        graphdef, trained, frozen = surgery.split(model)
        frozen = scanned.stacked(model.runs, frozen)
        tokens = jnp.ones((4, 64), int)
        loss = lambda trained, frozen: jnp.sum(surgery.join(graphdef, trained, frozen)(tokens) ** 2)  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(trained, frozen).compile().memory_analysis().temp_size_in_bytes

    assert needed(True) < 0.5 * needed(False)


@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_the_arrays_of_blocks_are_parts_of_the_stacks(dtype):
    model = decoder(dtype)
    model.scan()
    frozen = surgery.split(model)[2]
    stacks = scanned.stacked(model.runs, frozen)
    parts = scanned.parts_of(model.runs, stacks)
    jax.tree.map(np.testing.assert_array_equal, parts, frozen)
    of = lambda state, number: dict(nnx.to_flat_state(state))["blocks", number, "mlp", "up", "kernel"]  # noqa: E731
    whole, part = jax.tree.leaves(of(stacks, 0))[0], jax.tree.leaves(of(parts, 2))[0]
    assert np.shares_memory(np.asarray(whole), part)
