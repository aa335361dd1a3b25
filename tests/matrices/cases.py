"""The table of cases: family × shape × options, and what the laws need of a case."""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surm.matrices import FAMILIES, Family, Params

SHAPES = [(1, 1), (1, 5), (5, 1), (7, 7), (12, 6), (13, 8), (8, 13), (16, 16)]

FEW = [(12, 6), (8, 13)]  # of families that are made of thin products alone, or of another family
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2}

TABLE: list[tuple[str, dict[str, int | bool], list[tuple[int, int]]]] = [
    ("circulant", {}, SHAPES),
    ("circulant", {"hadamard": False}, [(8, 13)]),
    ("skew_circulant", {}, SHAPES),
    ("skew_circulant", {"hadamard": False}, [(8, 13)]),
    ("toeplitz", {}, SHAPES),
    ("toeplitz", {"factors": 1}, [(1, 5), (7, 7), (13, 8), (8, 13)]),
    ("toeplitz", {"factors": 1, "symmetric": False}, [(1, 5), (7, 7), (13, 8), (8, 13)]),
    ("kronecker", {}, SHAPES),
    ("kronecker", {"rank": 6}, [(12, 6)]),  # above √n: the other order of the two products
    ("kronecker", {"rank": 2, "terms": 3}, [(12, 6)]),
    ("low_displacement_rank", {}, SHAPES),
    ("low_displacement_rank", {"rank": 3}, [(12, 6), (8, 13)]),
    ("low_rank", {}, SHAPES),  # rank 8 also where the matrix is smaller
    ("low_rank", {"rank": 2}, [(8, 13)]),
    ("block_circulant", {}, SHAPES),
    ("block_circulant", {"block_size": 3}, [(12, 6)]),
    ("monarch", {}, SHAPES),
    ("monarch", {"rank": 6, "blocks": 3}, [(12, 6)]),
    ("monarch", {"rank": 4, "blocks": 6}, [(12, 6)]),  # some blocks of the grid are 0
    ("diagonal_circulant", {}, SHAPES),
    ("diagonal_circulant", {"block_size": 3}, [(12, 6)]),
    ("c3a", {}, FEW),
    ("c3a", {"block_size": 3}, [(12, 6)]),
    ("melora", {}, FEW),
    ("melora", {"rank": 2, "blocks": 3}, [(12, 6)]),
    ("lora_xs", {"rank": 3}, FEW),  # also where the matrix is smaller
    ("vera", {"rank": 4}, FEW),
    ("adalora", {}, FEW),
    ("adalora", {"rank": 1, "initial_rank": 2}, [(8, 13)]),
    ("dora_dynamic", {}, [(8, 13)]),
    ("lora2", {}, FEW),
    ("lora2", {"rank": 2, "inner": 3}, [(8, 13), (12, 6)]),
    ("lorta", {}, FEW),
    ("lorta", {"rank": 2, "heads": 3}, [(12, 6)]),
    ("aurora", {"rank": 5}, FEW),
]


@dataclasses.dataclass(frozen=True)
class Case:
    """One family with one set of options at one shape."""

    name: str
    options: tuple[tuple[str, int | bool], ...]
    n_out: int
    n_in: int

    def __str__(self) -> str:
        chosen = "".join(f"-{key}={value}" for key, value in self.options)
        return f"{self.name}{chosen}-{self.n_out}x{self.n_in}"

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_out, self.n_in

    @property
    def family(self) -> Family:
        return FAMILIES[self.name]

    def init(self, dtype: jnp.dtype) -> Params:
        """What trains, as it starts."""
        start = compiled(self.family.init, 1, 2, options=(*self.options, ("dtype", str(jnp.dtype(dtype)))))
        return start(jax.random.key(0, impl="rbg"), self.n_out, self.n_in)  # rbg compiles faster than threefry

    def fixed(self, dtype: jnp.dtype) -> Params:
        """What does not train, of a random weight; nothing for most families."""
        if not self.family.fixed:
            return {}
        base = self.random(self.n_out, self.n_in, dtype="float32", salt=77).astype(dtype)
        return compiled(self.family.fixed, options=self.options)(base)

    def random(self, *shape: int, dtype: jnp.dtype, salt: int = 0) -> jax.Array:
        """Normal values that depend on the case alone; from numpy, which compiles nothing."""
        seed = zlib.crc32(f"{self}{salt}".encode())
        return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)

    def member(self, dtype: jnp.dtype) -> Params:
        """Random values in place of those that `init` gives, and what is fixed."""
        shapes = {name: array.shape for name, array in jax.eval_shape(lambda: self.init(dtype)).items()}
        salts = {name: 1 + k for k, name in enumerate(sorted(shapes))}
        trained = {name: self.random(*shapes[name], dtype=dtype, salt=salts[name]) for name in salts}
        return {**trained, **self.fixed(dtype)}

    def start(self, dtype: jnp.dtype) -> Params:
        """What `init` gives, and what is fixed."""
        return {**self.init(dtype), **self.fixed(dtype)}

    def project(self, dense: jax.Array) -> Params:
        """The nearest member, with what is fixed."""
        fixed = self.fixed(dense.dtype)
        return {**projected(self.family, dense, dict(self.options), **({"fixed": fixed} if fixed else {})), **fixed}


TABLE += [(name, {}, FEW) for name in FAMILIES if name not in {row[0] for row in TABLE}]
CASES = [Case(name, tuple(options.items()), *shape) for name, options, shapes in TABLE for shape in shapes]
DISTINCT = [name for name, family in FAMILIES.items() if family.measured_as == name] + ["lora_xs", "lorta"]
"""The families that multiply in a way of their own, and two of those that multiply by thin matrices alone."""
WIDE_CASE = {name: next(c for c in CASES if (c.name, c.shape) == (name, (8, 13))) for name in FAMILIES}
every_case = pytest.mark.parametrize("case", CASES, ids=str)
TALL, WIDE = (12, 6), (8, 13)  # even, odd
TWO_SHAPES = [c for c in CASES if c.shape in (TALL, WIDE)]
two_shapes = pytest.mark.parametrize("case", TWO_SHAPES, ids=str)
# Every family with each of its options.
ONE_SHAPE = [c for c in CASES if c.shape == WIDE or (c.options and c.shape == TALL)]
one_shape = pytest.mark.parametrize("case", ONE_SHAPE, ids=str)


@functools.cache
def compiled(function, *static: int, options: tuple[tuple[str, int | bool | str], ...] = ()):
    """With options of a family: one program for all tests that call it, where every operation would be one."""
    return jax.jit(functools.partial(function, **dict(options)), static_argnums=static)


def projected(
    family: Family, dense: jax.Array, options: dict[str, int | bool] | None = None, **fixed: Params
) -> Params:
    """The member of a family that is nearest to a matrix."""
    return compiled(family.project, options=tuple((options or {}).items()))(dense, **fixed)


def product(case: Case, params: Params, x: jax.Array) -> jax.Array:
    return compiled(case.family.matvec, 2)(params, x, case.n_out)


def dense_of(case: Case, params: Params) -> np.ndarray:
    """The dense matrix, whose definition the oracles check; float64, so that numpy can multiply with it."""
    return np.asarray(compiled(case.family.to_dense, 1, 2)(params, case.n_out, case.n_in), np.float64)


def assert_close(actual: jax.Array, expected: jax.Array, dtype: str, scale: jax.Array | None = None) -> None:
    """Equal up to the type's tolerance times the largest entry of `scale` (of `expected` by default)."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    size = np.abs(expected if scale is None else np.asarray(scale, np.float64)).max()
    assert size > 0, "nothing to compare with"
    error = np.abs(actual - expected).max() / size
    assert error <= TOLERANCE[dtype], f"relative error {error:.1e} in {dtype}"


STEP = 1e-5
"""Of the differences: their errors, of STEP² and of the rounding by STEP, are about the same in float64."""


def assert_derivatives(function, *arguments) -> None:
    """Forwards they are the central differences, backwards their transpose; along a random direction, in float64.

    One program says all, where `jax.test_util.check_grads` compiles every sum and product of its own for every shape.
    """
    random = np.random.default_rng(0)
    direction = jax.tree.map(lambda array: random.standard_normal(array.shape), arguments)
    cotangent = random.standard_normal(jax.eval_shape(function, *arguments).shape)

    def scaled(tree, by):
        return jax.tree.map(lambda array: by * array, tree)

    @jax.jit
    def derivatives(arguments, direction, cotangent):
        ahead, behind = (function(*jax.tree.map(jnp.add, arguments, scaled(direction, s))) for s in (STEP, -STEP))
        _, forwards = jax.jvp(function, arguments, direction)
        _, pull = jax.vjp(function, *arguments)
        parts = jax.tree.map(lambda back, d: jnp.sum(back * d), pull(cotangent), direction)
        return forwards, (ahead - behind) / (2 * STEP), sum(jax.tree.leaves(parts))

    forwards, differences, backwards = derivatives(arguments, direction, cotangent)
    size = np.abs(differences).max()
    assert size > 0, "nothing to compare with"
    np.testing.assert_allclose(forwards, differences, rtol=0, atol=1e-7 * size)
    np.testing.assert_allclose(backwards, np.sum(cotangent * forwards), rtol=1e-9, atol=1e-11 * size)
