"""How a step is spread over devices: what is traced for a mesh that is only described (its numbers: test_mesh)."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

import surm
from surm.models import cross_entropy
from surm.ops import matmul, packed
from surm.ops.spread import by_rows, spread, whole
from surm.peft import surgery
from tests.peft.randomize import randomize

WIDTH = 24


def meshed(data: int = 4, model: int = 2, kind: AxisType = AxisType.Auto):
    return jax.sharding.use_abstract_mesh(AbstractMesh((data, model), ("data", "model"), axis_types=(kind, kind)))


def equations(jaxpr) -> list:
    """All equations, those of programs inside too."""
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if inner := getattr(value, "jaxpr", value if hasattr(value, "eqns") else None):
                found += equations(inner)
    return found


def shapes_of(jaxpr, *names: str) -> list[tuple[int, ...]]:
    """The shapes of the operands of all operations with these names."""
    return [one.invars[0].aval.shape for one in equations(jaxpr.jaxpr) if one.primitive.name in names]


def gradient(family: str, mesh, size: int = 8, *, rows: bool = True, path: str = "branch_dense"):
    """The traced gradient of an updated layer by its trained arrays and its input, and the trained arrays."""
    updates = surm.PeftSpec(family=family, targets="query", train="", path=path)
    layer = nnx.Dict(query=nnx.Linear(WIDTH, WIDTH, dot_general=matmul.dot_general, rngs=nnx.Rngs(0)))
    graphdef, trainable, frozen = surgery.split(randomize(surm.attach(layer, updates, nnx.Rngs(1))))
    loss = lambda t, x: jnp.sum(jnp.sin(surgery.join(graphdef, t, frozen).query(x)))  # noqa: E731
    x = jnp.ones((size, 3, WIDTH))
    with mesh, spread(rows=rows, kernels=False):
        return jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(trainable, x), trainable


@pytest.mark.parametrize(
    ("family", "path"),
    [
        *((family, "branch_dense") for family in ("circulant", "toeplitz", "kronecker", "low_rank")),
        *(("circulant", path) for path in ("branch_dft", "fused_dft", "fused_dense")),
    ],
)
def test_only_gradients_of_trained_arrays_are_added_up(family, path):
    found, trainable = gradient(family, meshed(), path=path)
    summed = shapes_of(found, "psum", "psum_invariant")
    assert sorted(summed) == sorted(value.shape for value in trainable.values())


@pytest.mark.parametrize(
    ("mesh", "size", "rows"),
    [
        (meshed, 8, False),  # outside of a run's step
        (lambda: meshed(data=1), 8, True),
        (meshed, 6, True),  # which do not divide among the devices
        (lambda: meshed(kind=AxisType.Explicit), 8, True),
        (contextlib.nullcontext, 8, True),
    ],
)
def test_where_batches_are_not_spread_nothing_is_added_up(mesh, size, rows):
    found, _ = gradient("circulant", mesh(), size, rows=rows)
    assert not shapes_of(found, "psum", "psum_invariant", "shard_map")


def test_a_kernel_in_parts_is_brought_together_in_each_direction():
    kernel, x = jnp.ones((WIDTH, 2 * WIDTH)), jnp.ones((8, 3, WIDTH))
    loss = lambda x, kernel: jnp.sum(jnp.sin(matmul.matmul(x, kernel)))  # noqa: E731
    found = {}
    for kernels in (False, True):
        with meshed(), spread(rows=True, kernels=kernels):
            found[kernels] = jax.make_jaxpr(jax.grad(loss))(x, kernel)
    assert shapes_of(found[True], "sharding_constraint") == [kernel.shape] * 2
    assert len(shapes_of(found[True], "optimization_barrier")) == 1  # or XLA would keep the first for the second
    assert not shapes_of(found[False], "sharding_constraint", "optimization_barrier")


def test_so_is_a_packed_one_before_it_is_unpacked():
    layer = packed.PackedLinear(nnx.Linear(64, 64, rngs=nnx.Rngs(0)), "int8")
    with meshed(), spread(rows=True, kernels=True):
        found = jax.make_jaxpr(jax.grad(lambda x: jnp.sum(jnp.sin(layer(x)))))(jnp.ones((8, 64)))
    constrained = [one for one in equations(found.jaxpr) if one.primitive.name == "sharding_constraint"]
    kinds = [one.invars[0].aval.dtype for one in constrained]
    assert len(kinds) == 4 and {*map(str, kinds)} == {"int8", "float16"}  # numbers and scales, twice


def test_so_is_a_head_once_for_all_chunks():
    table, x, targets = jnp.ones((50, WIDTH)), jnp.ones((2, 6, WIDTH)), jnp.ones((2, 6), jnp.int32)
    head = lambda table, x: x @ table.T  # noqa: E731
    score = lambda x: cross_entropy.scores(head, table, x, targets, vocabulary=50, chunk=2).loss.sum()  # noqa: E731
    with meshed(), spread(rows=True, kernels=True):
        assert shapes_of(jax.make_jaxpr(jax.grad(score))(x), "sharding_constraint") == [table.shape]


def test_the_numbers_are_those_without():
    x = jax.random.normal(jax.random.key(0), (8, WIDTH))
    function = by_rows(lambda params, x: jnp.tanh(x @ params))
    kernel = jax.random.normal(jax.random.key(1), (WIDTH, WIDTH))
    with spread(rows=True, kernels=True):
        np.testing.assert_array_equal(function(kernel, x), jnp.tanh(x @ kernel))
        assert whole(kernel) is kernel  # without a mesh
    assert whole(kernel) is kernel
