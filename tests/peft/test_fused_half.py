"""An update that is added to a kernel in bfloat16: nothing is lost, nothing is there before it trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import print_saved_residuals

import surm
from surm import PeftSpec
from surm.ops.packed import unpacked
from surm.ops.rounding import dithered
from surm.peft import surgery
from surm.peft.multiply import paths
from tests.peft.randomize import randomize
from tests.peft.test_accelerators import described

FUSED = pytest.mark.parametrize("path", paths.FUSED)
LIKE = ("circulant", "toeplitz", "kronecker", "monarch")
PLATFORMS = pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
N = 128


STORED = ["plain bfloat16", "plain float32", "bfloat16", "int8", "int4"]


def layer(path: str, family: str = "circulant", deviation: float = 0.0, stored: str = "plain bfloat16", **spec):
    plain = stored.removeprefix("plain ")
    param_dtype = plain if plain != stored else jnp.float32
    model = nnx.Dict(query=nnx.Linear(N, N, dtype=jnp.bfloat16, param_dtype=param_dtype, rngs=nnx.Rngs(0)))
    if plain == stored:
        model = surm.with_base_dtype(model, stored)
    spec = PeftSpec(family=family, targets="query", train="", path=path, **spec)
    adapted = surm.attach(model, spec, nnx.Rngs(1))
    return randomize(adapted, deviation=deviation) if deviation else adapted


def answer(adapted: nnx.Module, x: jax.Array, platform: str) -> np.ndarray:
    graphdef, trainable, frozen = surgery.split(adapted)
    with described(platform):
        y = jax.jit(lambda t, f, x: surgery.join(graphdef, t, f).query(x))(trainable, frozen, x)
    assert y.dtype == jnp.bfloat16
    return np.asarray(y, np.float32)


X = jax.random.normal(jax.random.key(3), (2048, N), jnp.bfloat16)


@FUSED
@PLATFORMS
@pytest.mark.parametrize("stored", STORED)
def test_before_training_it_is_the_layer_bit_for_bit(path, platform, stored):
    adapted = layer(path, stored=stored)
    with described(platform):
        base = jax.jit(lambda x: adapted.query.base(x))(X)
    np.testing.assert_array_equal(answer(adapted, X, platform), np.asarray(base, np.float32))


@FUSED
@PLATFORMS
@pytest.mark.parametrize("stored", ["plain bfloat16", "int4"])
def test_an_update_below_half_a_unit_acts_as_strongly_as_beside_the_layer(path, platform, stored):
    adapted = layer(path, deviation=1e-2, scale=0.01, stored=stored)
    dense = 0.01 * np.asarray(adapted.query.delta.to_dense(), np.float32)
    kernel = np.asarray(unpacked(adapted.query.base.kernel.get_value(), jnp.bfloat16), np.float32)
    unit = 2.0 ** (np.floor(np.log2(np.abs(kernel) + 1e-9)) - 7)
    assert 0.05 < np.median(np.abs(dense.T) / unit) < 0.3
    wide = np.asarray(X, np.float32)
    expected, found = wide @ dense.T, answer(adapted, X, platform) - wide @ kernel
    share = np.sum(expected * found) / np.sum(expected**2)
    assert share == pytest.approx(1, abs=0.1)
    lost = np.asarray(jnp.asarray(kernel + dense.T, jnp.bfloat16), np.float32) - kernel
    assert np.sum(expected * (wide @ lost)) / np.sum(expected**2) < 0.9 * share


@PLATFORMS
@pytest.mark.parametrize(
    ("family", "stored", "path"),
    [
        (family, stored, path)
        for family, stored in [*((name, "plain bfloat16") for name in LIKE), ("circulant", "int4")]
        for path in paths.FUSED
        if path in paths.available("update", family)
    ],
)
def test_its_gradients_are_those_of_the_branch(family, stored, path, platform):
    found = {}
    for one in (path, "branch"):
        graphdef, trainable, frozen = surgery.split(layer(one, family, deviation=0.05, stored=stored))

        def loss(trainable, x, graphdef=graphdef, frozen=frozen):
            return jnp.sum(jnp.sin(surgery.join(graphdef, trainable, frozen).query(x)).astype(jnp.float32) ** 2)

        with described(platform):
            found[one] = jax.jit(jax.grad(loss, argnums=(0, 1)))(trainable, X)
    for one, other in zip(*map(jax.tree.leaves, found.values()), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert np.linalg.norm(one - other) < 0.03 * np.linalg.norm(other)


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_auto_takes_it_on_accelerators_and_keeps_no_matrix_for_the_backward_pass(platform, capsys):
    for dropout, expected in ((0.0, "fused_dense"), (0.1, "branch_dense")):
        adapted = layer("auto", dropout=dropout)
        with described(platform):
            assert adapted.query._path(X) == expected
    graphdef, trainable, frozen = surgery.split(layer("auto"))
    loss = lambda t, x: jnp.sum(surgery.join(graphdef, t, frozen).query(x).astype(jnp.float32))  # noqa: E731
    with described(platform):
        print_saved_residuals(loss, trainable, X)
    lines = capsys.readouterr().out.splitlines()
    kept = [line for line in lines if f"[{N},{N}]" in line]
    assert len(lines) > 2 and all("from the argument" in line or "constant" in line for line in kept), kept


@PLATFORMS
def test_a_packed_layer_whose_kernel_an_update_was_merged_into_takes_another(platform):
    merged = surm.detach(surm.merge(layer("auto", stored="int4", deviation=0.05)))
    again = surm.attach(merged, PeftSpec(targets="query", train="", path="fused_dense"), nnx.Rngs(2))
    few = X[:512]  # of more rows a CPU adds up the products of two equal programs in different orders
    with described(platform):
        expected = jax.jit(lambda x: merged.query(x))(few)
    np.testing.assert_array_equal(answer(again, few, platform), np.asarray(expected, np.float32))


def test_on_a_cpu_auto_leaves_it():
    assert layer("auto").query._path(X) not in ("fused", "fused_dense")


def wide_layer(path: str, **spec) -> nnx.Module:
    """A layer without a dtype of its own, whose kernel is in bfloat16."""
    model = nnx.Dict(query=nnx.Linear(N, N, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    return surm.attach(model, PeftSpec(targets="query", train="", path=path, **spec), nnx.Rngs(1))


def test_what_it_computes_in_decides_where_the_layer_has_no_dtype():
    wide, adapted = X.astype(jnp.float32), wide_layer("fused_dense")
    with described("tpu"):
        assert wide_layer("auto").query._path(X) == "fused_dense"
        assert wide_layer("auto").query._path(wide) == "branch_dense"
        with pytest.raises(surm.InputError, match="multiplies float32 in less than its precision"):
            adapted.query(wide)
    assert adapted.query(wide).dtype == jnp.float32


@PLATFORMS
def test_a_merged_kernel_is_the_one_that_it_trained_with(platform):
    adapted = layer("fused_dense", deviation=1e-2, scale=0.01)
    merged = surm.detach(surm.merge(adapted))
    with described(platform):
        expected = jax.jit(lambda x: merged.query(x))(X)
    np.testing.assert_array_equal(answer(adapted, X, platform), np.asarray(expected, np.float32))


@PLATFORMS
def test_it_maps_over_stacks_and_differentiates_twice(platform):
    graphdef, trainable, frozen = surgery.split(layer("fused_dense", deviation=0.05))

    def loss(trainable, x):
        return jnp.sum(surgery.join(graphdef, trainable, frozen).query(x).astype(jnp.float32) ** 2)

    many = jax.tree.map(lambda value: jnp.stack([value, 2 * value]), trainable)
    slopes = jax.grad(loss, argnums=1)
    with described(platform):
        together = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None)))(many, X[:8])
        alone = jax.jit(jax.grad(loss))(trainable, X[:8])
        of_slopes = jax.jit(jax.grad(lambda t: jnp.sum(slopes(t, X[:8]).astype(jnp.float32) ** 2)))(trainable)
    for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one[0], other, rtol=0.05, atol=0.02 * np.abs(other).max())
    assert all(np.abs(value).max() > 0 for value in jax.tree.leaves(of_slopes))


def test_a_merged_combination_keeps_updates_below_half_a_unit_too():
    one = layer("auto", deviation=1e-2, scale=0.01)
    merged = surm.detach(surm.merge(surm.combine({"one": one})))
    summed = one.query.base.kernel[...].astype(jnp.float32) + 0.01 * one.query.delta.to_dense().T
    np.testing.assert_array_equal(merged.query.kernel[...], dithered(summed))
