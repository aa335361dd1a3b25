"""Bases in fewer bits: packed matrices, products with them, and every kind of adapter beside them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import surm
from surm.matrices import FAMILIES
from surm.models.decoder import Decoder, DecoderConfig
from surm.ops import packed
from surm.ops.packed import Packed, PackedEmbed, PackedLinear
from surm.peft import store, surgery
from surm.peft.together import bases
from surm.training import writing

MATRIX = jax.random.normal(jax.random.key(0), (64, 24)) / 8
TOKENS = jax.random.randint(jax.random.key(1), (2, 6), 0, 256)
TINY = DecoderConfig(256, 32, 2, 2, 1, 16, 48, tied=True)


@functools.cache
def base() -> Decoder:
    return Decoder(TINY, rngs=nnx.Rngs(0))


@functools.cache
def stored(form: str) -> Decoder:
    return surm.with_base_dtype(base(), form)


def error(one, other) -> float:
    return float(jnp.linalg.norm(one - other) / jnp.linalg.norm(other))


@pytest.mark.parametrize(
    ("form", "most", "bytes_a_number"), [("bfloat16", 2e-3, 2), ("int8", 8e-3, 17 / 16), ("int4", 0.12, 9 / 16)]
)
@pytest.mark.parametrize("axis", [-2, -1])
def test_a_packed_matrix_is_nearly_the_matrix_in_fewer_bytes(form, most, bytes_a_number, axis):
    matrix = MATRIX if axis == -2 else MATRIX.T
    found = packed.pack(matrix, form, axis)
    assert error(found[...], matrix) < most
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(found)) == bytes_a_number * matrix.size
    assert (found.shape, found.dtype, found.ndim) == (matrix.shape, matrix.dtype, 2)
    assert all(leaf.dtype.itemsize <= 2 and leaf.dtype != jnp.int4 for leaf in jax.tree.leaves(found))


def test_int4_is_the_rounding_of_qwix():
    import qwix

    expected = qwix.quantize(MATRIX, jnp.int4, channelwise_axes=(1,), tiled_axes={0: 32}, scale_dtype=jnp.float16)
    found = packed.pack(MATRIX, "int4", -2)
    scale = jnp.repeat(expected.scale.astype(jnp.float32), 32, axis=0)
    np.testing.assert_allclose(found[...], expected.qvalue.astype(jnp.float32) * scale, rtol=1e-6)
    np.testing.assert_array_equal(np.unique(found[...] / scale).round(), np.arange(-8, 8))


@pytest.mark.parametrize("rows", [1, 7, 11, 40])
def test_any_length_can_be_packed(rows):
    found = packed.pack(MATRIX[:rows], "int4", -2)
    assert error(found[...], MATRIX[:rows]) < 0.2
    np.testing.assert_allclose(packed.pack(jnp.zeros((rows, 3)), "int4", -2)[...], 0)


@pytest.mark.parametrize("form", packed.FORMS)
@pytest.mark.parametrize("transposed", [False, True])
def test_the_product_and_its_slope_are_those_of_the_unpacked_matrix(form, transposed):
    matrix = packed.pack(MATRIX, form, -2)
    x = jax.random.normal(jax.random.key(2), (3, 24 if transposed else 64))

    @jax.jit
    def both(x, matrix):
        plain = lambda x: jnp.sum(jnp.sin(x @ (matrix[...].T if transposed else matrix[...])))  # noqa: E731
        ours = lambda x: jnp.sum(jnp.sin(packed.product(x, matrix, transposed=transposed)))  # noqa: E731
        return jax.value_and_grad(plain)(x), jax.value_and_grad(ours)(x)

    for one, other in zip(*map(jax.tree.leaves, both(x, matrix)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_nothing_but_the_packed_kernel_is_kept_for_the_backward_pass():
    matrix, x = packed.pack(MATRIX, "int4", -2), jnp.ones((3, 64))
    _, back = jax.vjp(lambda x: packed.product(x, matrix), x)
    kept = [leaf for leaf in jax.tree.leaves(back) if leaf.size >= MATRIX.size // 2]
    assert {leaf.dtype for leaf in kept} <= {jnp.dtype(jnp.uint8)}


@functools.cache
def answers(form: str) -> jax.Array:
    graphdef, state = nnx.split(stored(form) if form != "float32" else base())
    return jax.jit(lambda state: nnx.merge(graphdef, state)(TOKENS))(state)


@pytest.mark.parametrize(("form", "most"), [("bfloat16", 0.01), ("int8", 0.03), ("int4", 0.3)])
def test_a_decoder_on_a_packed_base_answers_nearly_alike(form, most):
    model = stored(form)
    assert type(model.blocks[1].mlp.down) is PackedLinear and type(model.embed.word) is PackedEmbed
    assert error(answers(form), answers("float32")) < most
    assert surm.count_parameters(model) == surm.count_parameters(base())


def test_int4_takes_three_tenths_of_bfloat16():
    size = lambda form: sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(stored(form), nnx.Param)))  # noqa: E731
    assert size("int4") <= 0.3 * size("bfloat16")


SPECS = {
    **{name: {"family": name} for name in FAMILIES},
    "magnitude": {"family": "low_rank", "magnitude": True},
    "adapter": {"method": "adapter"},
    "bitfit": {"method": "norms"} if "norms" in surm.METHODS else {"family": "circulant"},
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("low_rank", "svft", "magnitude") else pytest.mark.slow) for name in SPECS],
)
def test_every_family_acts_on_a_packed_base_as_on_the_unpacked_one(name):
    spec = surm.PeftSpec(**{"targets": ".*(query|up)", "train": (), **SPECS[name]})
    model = surm.attach(stored("int4"), spec, nnx.Rngs(1))
    graphdef, trained, frozen = surgery.split(model)
    trained = {
        path: array + 0.05 * jnp.cos(jnp.arange(array.size)).reshape(array.shape) for path, array in trained.items()
    }
    model = surgery.join(graphdef, trained, frozen)
    loss = lambda trained, frozen: jnp.sum(jnp.sin(surgery.join(graphdef, trained, frozen)(TOKENS)))  # noqa: E731
    value, slopes = jax.jit(jax.value_and_grad(loss))(trained, frozen)
    assert all(np.isfinite(slope).all() and np.abs(slope).max() > 0 for slope in slopes.values())
    if isinstance(next(iter(surgery.layers_by_path(model).values())), surm.peft.layers.MergeableLinear):
        merged = surm.merge(model)
        np.testing.assert_allclose(jnp.sum(jnp.sin(merged(TOKENS))), value, rtol=1e-4)


def test_unmerging_restores_the_packed_base():
    model = surm.attach(stored("int4"), surm.PeftSpec(family="low_rank", targets=".*query", train=()), nnx.Rngs(1))
    merged = surm.merge(model)
    assert merged.blocks[0].attention.query.base.kernel.get_value().dtype == jnp.float32
    back = surm.unmerge(merged).blocks[0].attention.query.base.kernel.get_value()
    assert isinstance(back, Packed)
    jax.tree.map(np.testing.assert_array_equal, back, model.blocks[0].attention.query.base.kernel.get_value())


def test_an_adapter_belongs_to_the_base_in_its_dtype(tmp_path):
    spec = surm.PeftSpec(family="low_rank", targets=".*query", train=())
    surm.save_adapter(tmp_path, surm.attach(stored("int4"), spec, nnx.Rngs(1)))
    loaded = surm.load_adapter(tmp_path, stored("int4"))
    assert store.base_hash(loaded) == store.base_hash(surm.attach(stored("int4"), spec, nnx.Rngs(2)))
    with pytest.raises(surm.InputError, match="was trained on base"):
        surm.load_adapter(tmp_path, base())


@pytest.mark.parametrize("form", packed.FORMS)
def test_nothing_is_unpacked_to_write_to_be_hashed_or_to_be_stacked(form, monkeypatch):
    spec = surm.PeftSpec(family="low_rank", targets=".*query", train=())
    model, other = (surm.attach(surm.with_base_dtype(base(), form), spec, nnx.Rngs(seed)) for seed in (1, 2))
    changed = surm.attach(surm.with_base_dtype(base(), form), spec, nnx.Rngs(1))
    kernel = changed.blocks[1].mlp.down.kernel
    packed_kernel = kernel.get_value()
    values = packed_kernel.values.at[0, 0].add(1)
    kernel.set_value(dataclasses.replace(packed_kernel, values=values))

    def refused(*_, **__):
        raise AssertionError("a kernel was unpacked")

    monkeypatch.setattr(Packed, "dense", refused)
    assert writing.quick(model) is model
    assert store.base_hash(model) == store.base_hash(other) != store.base_hash(changed)
    assert {len(array) for array in surm.stack_adapters([model, other]).values()} == {2}
    with pytest.raises(surm.InputError, match=r"have different bases: blocks\.1\.mlp\.down\.kernel$"):
        surm.stack_adapters([model, changed])
    with pytest.raises(surm.InputError, match="have different bases: blocks.1.mlp.down.kernel"):
        bases.differing({"one": model, "two": changed})


def test_what_trains_is_not_packed():
    spec = surm.PeftSpec(family="low_rank", targets=".*query", train=("blocks.1.mlp.down",))
    model = surm.with_base_dtype(base(), "int8", spec)
    assert type(model.blocks[1].mlp.down) is nnx.Linear and type(model.blocks[0].mlp.down) is PackedLinear


@pytest.mark.parametrize(
    ("dtype", "spec", "said"),
    [
        ("int3", None, "base_dtype='int3', expected float32, bfloat16, int8, int4"),
        ("int8", surm.PeftSpec(method="full", targets=".*"), "base_dtype='int8', but no matrix of the model is frozen"),
    ],
)
def test_what_cannot_be_is_said(dtype, spec, said):
    with pytest.raises(surm.InputError, match=said):
        surm.with_base_dtype(base(), dtype, spec)
    assert surm.with_base_dtype(base(), "float32") is base()


def test_a_fused_path_is_refused_on_a_packed_base_that_computes_in_float32():
    with pytest.raises(surm.InputError, match="path='fused', but the layer is packed and computes in float32"):
        spec = surm.PeftSpec(family="circulant", targets=".*query", train=(), path="fused")
        surm.attach(stored("int8"), spec, nnx.Rngs(1))
