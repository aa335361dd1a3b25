"""What `auto` takes for devices that nobody here has: no FFT, no gather, and the same numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import print_saved_residuals

import surm
from surm import PeftSpec, matrices
from surm.matrices import block_circulant
from surm.matrices.algebra import diagonals, f_circulant
from surm.matrices.algebra.platforms import platform_of
from surm.peft import surgery
from surm.peft.multiply import paths
from surm.training import operations
from tests.described import KINDS, described
from tests.peft.randomize import randomize

LOWERED = {"tpu": "tpu", "gpu": "cuda"}
SHAPES = [(24, 24), *(pytest.param((a, b), marks=pytest.mark.slow) for a, b in ((24, 12), (12, 24)))]
TWO = ("circulant", "toeplitz", "low_displacement_rank", "block_circulant")
"""Families whose matrix is built in another way on each platform."""
TRANSFORMED = [name for name, family in matrices.FAMILIES.items() if family.transforms]
CONVOLVING = [name for name, family in matrices.FAMILIES.items() if family.convolutional]
SLOW = ("fft", "gather", "dynamic_gather", "scatter", "dynamic_slice", "dynamic_update_slice", "while")


def updated(
    family: str, n_out: int = 24, n_in: int = 24, dtype: jnp.dtype = jnp.bfloat16, deviation: float = 0.05, **spec
) -> tuple:
    base = nnx.Linear(n_in, n_out, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    spec = PeftSpec(family=family, targets="query", train="", **spec)
    return surgery.split(randomize(surm.attach(nnx.Dict(query=base), spec, nnx.Rngs(1)), deviation=deviation))


def lowered(family: str, platform: str, *shape: int, **spec) -> str:
    """Forward and backward, as StableHLO for a platform."""
    graphdef, trainable, frozen = updated(family, *shape, **spec)
    n_out, n_in = shape or (24, 24)
    x, dy = jnp.ones((6, n_in), jnp.bfloat16), jnp.ones((6, n_out), jnp.bfloat16)

    def gradients(trainable, frozen, x, dy):
        y, pull = jax.vjp(lambda t, x: surgery.join(graphdef, t, frozen).query(x), trainable, x)
        return y, pull(dy)

    with described(platform):
        return (
            jax.jit(gradients).trace(trainable, frozen, x, dy).lower(lowering_platforms=(LOWERED[platform],)).as_text()
        )


def slow_operations(text: str) -> set[str]:
    return {name for name in SLOW if re.search(rf"stablehlo\.{name}\b", text)}


def slow_beside(*fast: str, among=tuple(matrices.FAMILIES)) -> list:
    """Families, of which those that repeat a kind are tested with the slow ones."""
    return [family if family in fast else pytest.param(family, marks=pytest.mark.slow) for family in among]


@pytest.mark.parametrize(
    ("family", "platform"),
    [(family, platform) for family in matrices.FAMILIES for platform in KINDS if platform == "tpu" or family in TWO],
)
def test_the_default_product_has_no_fft_and_no_gather(family, platform):
    assert not slow_operations(lowered(family, platform))


@pytest.mark.parametrize("shape", [(24, 12), (12, 24)], ids=str)
@pytest.mark.parametrize("family", slow_beside("toeplitz", among=TRANSFORMED))
def test_nor_has_that_of_a_matrix_that_is_not_square(family, shape):
    assert not slow_operations(lowered(family, "tpu", *shape)) and not slow_operations(lowered(family, "gpu", *shape))


@pytest.mark.parametrize("options", [{"factors": 1}, {"factors": 1, "symmetric": False}], ids=str)
@pytest.mark.parametrize("platform", KINDS)
def test_nor_has_that_of_one_toeplitz_factor(platform, options):
    assert not slow_operations(lowered("toeplitz", platform, options=options))


def test_a_gpu_keeps_the_two_products_of_an_input_apart():
    # merged by XLA into one with [W, ΔWᵀ] they take a pass more, and twice the memory
    beside = {platform: lowered("circulant", platform, path="branch_dense") for platform in KINDS}
    barriers = {platform: text.count("optimization_barrier") for platform, text in beside.items()}
    assert barriers["gpu"] > barriers["tpu"]


@pytest.mark.parametrize("platform", KINDS)
def test_a_step_has_one_or_three_products_more_than_the_layer_has(platform):
    x, dy = jnp.ones((512, 24), jnp.bfloat16), jnp.ones((512, 40), jnp.bfloat16)
    for path, products in (("fused_dense", 3), ("branch_dense", 5)):
        graphdef, trainable, frozen = updated("circulant", 40, 24, path=path)

        def step(trainable, frozen, x, dy, graphdef=graphdef):
            y, pull = jax.vjp(lambda t, x: surgery.join(graphdef, t, frozen).query(x), trainable, x)
            return y, pull(dy)

        with described(platform):
            found = operations.counted(jax.jit(step).trace(trainable, frozen, x, dy).jaxpr)
        assert found / (2 * 512 * 40 * 24) == products, path


@pytest.mark.parametrize("family", slow_beside("circulant", among=CONVOLVING))
def test_the_gradient_may_go_through_small_products(family):
    assert "fft" in slow_operations(lowered(family, "tpu", path="fused"))
    assert not slow_operations(lowered(family, "tpu", path="fused_dft"))


def test_the_gradient_by_small_products_costs_a_small_part_of_a_product():
    graphdef, trainable, frozen = updated("circulant", 1024, 1024, path="fused_dft")

    def gradient(trainable, frozen, x, dy):
        return jax.vjp(lambda t: surgery.join(graphdef, t, frozen).query(x), trainable)[1](dy)

    x = jnp.ones((8192, 1024), jnp.bfloat16)
    with described("tpu"):
        found = operations.counted(jax.jit(gradient).trace(trainable, frozen, x, x).jaxpr)
    assert found < 0.3 * 2 * 8192 * 1024**2


def test_the_search_for_slow_operations_finds_them():
    assert "fft" in slow_operations(lowered("circulant", "tpu", path="branch"))
    with described("cpu"):  # where ΔW is gathered
        text = jax.jit(lambda d: diagonals.columns(d, 4, 5)).trace(jnp.ones(8)).lower().as_text()
    assert slow_operations(text) == {"gather"}


@pytest.mark.parametrize("platform", KINDS)
@pytest.mark.parametrize("step", [1, 5])
def test_columns_are_the_same_entries_on_every_platform(platform, step):
    for n_out, n_in in [(1, 1), (1, 7), (20, 37)]:
        v = np.arange(2.0 * (n_out + n_in - 1), dtype=np.float32).reshape(2, -1)
        expected = np.stack([v[:, np.arange(n_out) - j + n_in - 1] for j in range(0, n_in, step)], axis=1)

        def columns_and_gradient(v, n_out=n_out, n_in=n_in):
            found, pull = jax.vjp(lambda v: diagonals.columns(v, n_out, n_in, step), v)
            return found, pull(found)

        with described(platform):
            found, gradient = jax.jit(columns_and_gradient)(v)
        here, wanted = jax.jit(columns_and_gradient)(v)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found, here)
        np.testing.assert_allclose(gradient, wanted, rtol=1e-6)


@pytest.mark.parametrize("platform", KINDS)
def test_blocks_of_circulants_are_the_same_entries_on_every_platform(platform):
    c = {"c": jax.random.normal(jax.random.key(0), (2, 3, 5))}
    dense = jax.jit(block_circulant.to_dense, static_argnums=(1, 2))
    with described(platform):
        found = dense(c, 10, 15)
    np.testing.assert_array_equal(found, dense(c, 10, 15))
    np.testing.assert_array_equal(found[:5, :5], f_circulant.dense(c["c"][0, 0], 5, 5, 1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", slow_beside(*TWO))
def test_the_default_of_an_accelerator_computes_what_the_definition_says(family, shape):
    n_out, n_in = shape
    graphdef, trainable, frozen = updated(family, n_out, n_in, deviation=0.5)  # products of three count, too
    layer = surgery.join(graphdef, trainable, frozen).query
    x = jax.random.normal(jax.random.key(2), (6, n_in), jnp.bfloat16)
    wide, reference = np.asarray(x, np.float32), np.asarray(layer.base(x), np.float32)
    expected = wide @ np.asarray(layer.kernel[...], np.float32) + wide @ np.asarray(layer.delta.to_dense()).T
    for platform in KINDS:
        with described(platform):
            found = jax.jit(lambda t, f, x: surgery.join(graphdef, t, f).query(x))(trainable, frozen, x)
        assert found.dtype == jnp.bfloat16
        found = np.asarray(found, np.float32)
        np.testing.assert_allclose(found, expected, atol=2**-7 * np.abs(expected).max(), err_msg=platform)
        assert np.abs(found - reference).max() > 2**-5  # the update counts


@pytest.mark.parametrize("platform", KINDS)
@pytest.mark.parametrize("family", slow_beside("toeplitz", among=TRANSFORMED))
def test_its_gradients_are_those_of_the_branch(family, platform):
    x, found = jax.random.normal(jax.random.key(2), (6, 24)), {}
    for path in ("auto", "branch"):
        graphdef, trainable, frozen = updated(family, dtype=jnp.float32, path=path)
        loss = lambda t, x, g=graphdef, f=frozen: jnp.sum(jnp.sin(surgery.join(g, t, f).query(x)))  # noqa: E731
        with described(platform):
            found[path] = jax.jit(jax.grad(loss, argnums=(0, 1)))(trainable, x)
    for one, other in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(np.asarray(other)).max())


@pytest.mark.parametrize("path", ["branch_dense", "fused_dense"])
@pytest.mark.parametrize("family", slow_beside("toeplitz", "low_displacement_rank", among=TRANSFORMED))
def test_nothing_but_the_matrix_is_kept_for_the_backward_pass(family, path, capsys):
    graphdef, trainable, frozen = updated(family, 24, 16, path=path)
    with described("tpu"):
        print_saved_residuals(
            lambda t, x: surgery.join(graphdef, t, frozen).query(x), trainable, jnp.ones((6, 16), jnp.bfloat16)
        )
    lines = capsys.readouterr().out.splitlines()
    made = [line.split()[0] for line in lines if not re.search(r"from the argument|constant|literal", line)]
    assert len(lines) > 2 and made == (["bf16[16,24]"] if path == "branch_dense" else []), lines


@pytest.mark.parametrize("family", matrices.FAMILIES)
def test_where_nothing_is_measured_the_path_goes_by_the_platform(family):
    for fusible, n in ((False, 64), (True, 64), (False, 4096)):
        asked = (family, n, n, 8192, {"a": (8, n), "b": (n, 8)}, "float32")
        taken = {name: paths.quickest(*asked, name, fusible=fusible) for name in ("tpu", "gpu")}
        assert paths.unmeasured(family, n, n, 8192, "cpu", fusible=fusible) == "branch"
        assert taken["tpu"] in paths.available("update", family)
        if matrices.FAMILIES[family].product in ("convolution", "two_convolutions") and n == 4096:
            assert taken == {"tpu": "branch_dft", "gpu": "branch_dense"}
            continue
        assert taken["tpu"] == taken["gpu"]
        if family in TRANSFORMED:
            assert taken["tpu"] == ("fused_dense" if fusible else "branch_dense")
        elif n == 4096:
            assert taken["tpu"] == ("branch_dense" if family == "svft" else "branch")  # whose product is not thin
        else:
            assert (taken["tpu"] == "branch") == (matrices.FAMILIES[family].product == "thin")


@pytest.mark.parametrize("family", matrices.FAMILIES)
def test_for_few_vectors_no_matrix_is_made_where_a_thin_product_is_there(family):
    taken, larger = (paths.unmeasured(family, n, n, 8, "tpu", fusible=True) for n in (64, 1024))
    assert taken == larger == ("branch" if matrices.FAMILIES[family].product.startswith("thin") else "branch_dense")


@pytest.mark.parametrize("platform", KINDS)
@pytest.mark.parametrize("family", TRANSFORMED)
def test_for_few_vectors_a_large_matrix_is_not_made_if_there_are_small_products(family, platform):
    taken = paths.unmeasured(family, 2048, 2048, 511, platform, fusible=True)
    assert taken == ("branch_dft" if matrices.FAMILIES[family].convolutional else "branch_dense")


@pytest.mark.parametrize("platform", KINDS)
def test_small_products_have_to_be_small(platform):
    few = {
        (family, n_out): paths.unmeasured(family, n_out, 4096, 8, platform, fusible=True)
        for family in ("circulant", "toeplitz")
        for n_out in (4099, 30522)
    }
    # a Toeplitz matrix convolves in the next length that has many divisors
    assert few.pop(("toeplitz", 4099)) == few.pop(("toeplitz", 30522)) == "branch_dft"
    assert {*few.values()} == {"branch_dense"}
    served = [paths.beside_each(family, 4099, 4096, platform) for family in ("circulant", "toeplitz")]
    assert served == ["branch_dense", "branch_dft"]


def test_what_counts_is_the_number_of_vectors_and_not_the_side():
    taken = {
        (platform, n, rows): paths.unmeasured("toeplitz", n, n, rows, platform, fusible=True)
        for platform, rows in (("tpu", 2047), ("tpu", 2048), ("gpu", 511), ("gpu", 512))
        for n in (64, 16384)
    }
    many = {(platform, rows): {taken[platform, n, rows] for n in (64, 16384)} for platform, _, rows in taken}
    assert many["tpu", 2048] == many["gpu", 512] == {"fused_dense"}
    assert many["tpu", 2047] == many["gpu", 511] == {"branch_dense", "branch_dft"}


@pytest.mark.parametrize(
    ("family", "from_here", "then"),
    [
        ("circulant", 6144, "fused_dft"),
        ("skew_circulant", 6144, "fused_dft"),
        ("low_displacement_rank", 4096, "fused_dense"),
    ],
)
def test_a_huge_convolution_is_by_small_products_on_a_tpu(family, from_here, then):
    def taken(n_out, n_in, rows, platform="tpu", fusible=True):
        return paths.unmeasured(family, n_out, n_in, rows, platform, fusible=fusible)

    assert taken(4096, 4096, 2048) == taken(14336, 4096, from_here - 1) == "branch_dft"
    assert taken(4096, 14336, from_here) == then and taken(4096, 4096, from_here, fusible=False) == "branch_dft"
    assert taken(4096, 4099, 2048) == taken(30522, 768, 2048) == taken(2**18, 640, 2048) == "fused_dense"
    assert taken(4096, 4095, 2048) == taken(4096, 4096, from_here, "gpu") == "fused_dense"


def test_several_terms_are_not_by_small_products_if_they_are_huge():
    asked = lambda r: ("low_displacement_rank", 4096, 4096, 2048, {"g": (r, 4096), "h": (r, 4096)}, "float32", "tpu")  # noqa: E731
    taken = [paths.quickest(*asked(rank), fusible=True) for rank in (1, 2)]
    assert taken == ["branch_dft", "fused_dense"]


def test_the_platform_is_that_of_the_mesh():
    x = jnp.ones(3)
    assert platform_of() == platform_of(x) == platform_of("no array", x) == jax.default_backend() == "cpu"
    with described("tpu"):
        assert platform_of() == platform_of(x) == "tpu"
    with described("cuda"):
        assert platform_of(x) == "gpu"
    with jax.default_device("cpu"):
        assert platform_of(x) == "cpu"
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    on_mesh = jax.device_put(x, jax.NamedSharding(mesh, jax.P()))
    with described("tpu"):
        assert platform_of(on_mesh) == "cpu"  # an array's own mesh comes first
        assert platform_of(x, on_mesh) in ("cpu", "tpu")


def test_the_line_says_what_is_taken_and_by_what(caplog):
    layer = surgery.join(*updated("circulant", dtype=jnp.float16)).query  # it is said once; no other test has this type
    with described("tpu"):
        assert [layer._path(jnp.ones((2, 24), jnp.float16)) for _ in range(2)] == 2 * ["branch_dense"]
    assert [record.getMessage() for record in caplog.records] == [
        "path='auto' is 'branch_dense' according to XLA's compilers (experiments/compiled): "
        "circulant in float16 on a tpu has not been measured (`surm calibrate` does so)"
    ]


class Net(nnx.Module):
    """A model of one layer."""

    def __init__(self):
        self.query = nnx.Linear(24, 24, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.query(x)


@pytest.mark.parametrize("platform", KINDS)
@pytest.mark.parametrize("family", slow_beside("circulant", among=("circulant", "block_circulant", "low_rank")))
def test_examples_that_have_an_adapter_each_are_answered_without_an_fft(family, platform):
    fresh = surm.attach(Net(), PeftSpec(family=family, targets="query", train=""), nnx.Rngs(1))
    models = [randomize(fresh, seed) for seed in range(3)]
    x, ids = jax.random.normal(jax.random.key(0), (4, 5, 24)), jnp.array([2, 0, 2, 1])
    together = surm.stack_adapters(models)
    serve = lambda together, x: surm.serve_batch(models[0], together, x, [2, 0, 2, 1])  # noqa: E731
    with described(platform):
        traced = jax.jit(serve).trace(together, x)
        text = traced.lower(lowering_platforms=(LOWERED[platform],)).as_text()
        found = jax.jit(serve)(together, x)
    assert "fft" not in text
    alone = jnp.stack([models[index](x[place]) for place, index in enumerate(ids.tolist())])
    np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)
