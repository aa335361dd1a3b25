"""One forward pass over a batch, each example by an adapter of its own, is what each adapter answers alone."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import surm
from surm import InputError, PeftSpec, matrices
from surm.models import bert, vit
from surm.peft import surgery
from tests.conftest import SMALL
from tests.matrices.cases import DISTINCT
from tests.peft.answer import answer
from tests.peft.randomize import randomize
from tests.peft.test_surgery import KINDS, UPDATES

IDS = np.array([2, 0, 2, 2, 3, 0])  # of four adapters: some twice, one never
TINY = bert.BertConfig(30, 12, 2, 3, 24, positions=10, dropout=0.5)
EVERY_SHAPE = (r"blocks\.0\.(attention\.query|mlp\.(up|down))",)
UPDATES_AND_ADAPTERS = [
    *(pytest.param("update", *row, marks=() if row in KINDS else pytest.mark.slow) for row in UPDATES),
    *(("adapter", family, "") for family in DISTINCT if not matrices.FAMILIES[family].fixed),
]
OTHERS = [("bottleneck", {"options": "size=3"}), ("bitfit", {}), ("head", {}), ("full", {})]


def several(base: nnx.Module, number: int = 4, deviation: float = 0.1, **spec) -> list[nnx.Module]:
    """Models on one base that differ in what they have trained."""
    fresh = surm.attach(base, PeftSpec(**{"train": ("head",), **spec}), nnx.Rngs(3))
    return [randomize(fresh, seed, deviation) for seed in range(number)]


def alone(models: list[nnx.Module], **x) -> np.ndarray:
    """What each example's own adapter says."""
    answers = np.stack([answer(model, **x) for model in models])
    assert np.ptp(answers, axis=0).max(axis=-1).min() > 1e-3  # every adapter its own
    return answers[IDS, np.arange(len(IDS))]


def serve(models: list[nnx.Module], x, ids=IDS):
    return nnx.jit(surm.serve_batch)(models[-1], surm.stack_adapters(models), x, ids)


@pytest.fixture(scope="module")
def six_images() -> jax.Array:
    return jax.random.normal(jax.random.key(8), (len(IDS), 16, 16, 3))


@pytest.fixture(scope="module")
def texts() -> dict[str, jax.Array]:
    tokens = jax.random.randint(jax.random.key(0), (len(IDS), 8), 1, 30)
    mask = jnp.arange(8) < jnp.array([8, 3, 5, 1, 8, 4])[:, None]
    return {"tokens": tokens, "segments": (jnp.arange(8) > 1).astype(jnp.int32) * jnp.ones_like(tokens), "mask": mask}


@pytest.mark.parametrize(("method", "family", "options"), UPDATES_AND_ADAPTERS)
def test_images_are_answered_as_by_each_adapter_alone(one_block, six_images, method, family, options):
    targets = EVERY_SHAPE if method == "update" else ()
    models = several(one_block, method=method, family=family, options=options, targets=targets)
    np.testing.assert_allclose(serve(models, six_images), alone(models, images=six_images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", DISTINCT)
def test_texts_are_answered_as_by_each_adapter_alone(texts, family):
    models = several(bert.Bert(TINY, 4, rngs=nnx.Rngs(0)), family=family, scale=0.5, dropout=0.5)
    answers = serve(models, texts)  # in training mode, with dropout in base and adapter
    for model in models:
        model.eval()
    np.testing.assert_allclose(answers, alone(models, **texts), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("method", "spec"), OTHERS, ids=[method for method, _ in OTHERS])
def test_whatever_trains_is_each_examples_own(small_vit, six_images, texts, method, spec):
    models = several(small_vit, method=method, **spec)
    np.testing.assert_allclose(serve(models, six_images), alone(models, images=six_images), rtol=1e-4, atol=1e-5)
    models = several(bert.Bert(TINY, 4, rngs=nnx.Rngs(0)), method=method, **spec)
    for model in models:
        model.eval()
    np.testing.assert_allclose(serve(models, texts), alone(models, **texts), rtol=1e-4, atol=1e-5)


def test_loaded_adapters_are_served_merged_ones_and_without_jit_too(tmp_path, small_vit, six_images):
    models = several(small_vit)
    for index, model in enumerate(models):
        surm.save_adapter(tmp_path / str(index), model)
    expected = alone(models, images=six_images)
    loaded = [surm.load_adapter(tmp_path / str(index), small_vit) for index in range(len(models))]
    merged = [surm.merge(model) for model in loaded]
    for model, adapters in ((loaded[0], surm.stack_adapters(merged)), (merged[0], surm.stack_adapters(loaded))):
        answers = surm.serve_batch(model, adapters, np.asarray(six_images), [*map(int, IDS)])
        np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=1e-5)


def test_arguments_that_are_none_stay_so(texts):
    models = several(bert.Bert(TINY, 4, rngs=nnx.Rngs(0)))
    for model in models:
        model.eval()
    tokens = {"tokens": texts["tokens"], "segments": None, "mask": None}
    np.testing.assert_allclose(serve(models, tokens), alone(models, **tokens), rtol=1e-4, atol=1e-5)


def test_the_models_stay_as_they_are(small_vit, six_images):
    models = [surm.merge(model) for model in several(small_vit, dropout=0.5)]
    before = [nnx.graphdef(model) for model in models], [jax.tree.leaves(nnx.state(model)) for model in models]
    adapters = surm.stack_adapters(models)
    surm.serve_batch(models[0], adapters, six_images, IDS)
    after = [nnx.graphdef(model) for model in models], [jax.tree.leaves(nnx.state(model)) for model in models]
    assert after[0] == before[0]
    assert all(now is was for now, was in zip(*map(jax.tree.leaves, (after[1], before[1])), strict=True))
    assert models[0].blocks[0].attention.query.merged and not models[0].blocks[0].attention.query.dropout.deterministic


def test_other_ids_and_adapters_compile_nothing_anew(small_vit, six_images):
    models = several(small_vit)
    adapters, others = surm.stack_adapters(models), surm.stack_adapters(models[::-1])
    answer = jax.jit(lambda adapters, x, ids: surm.serve_batch(models[0], adapters, x, ids))
    first = answer(adapters, six_images, IDS)
    np.testing.assert_array_equal(answer(others, six_images, 3 - IDS), first)
    assert not np.array_equal(answer(adapters, six_images, 3 - IDS), first)
    assert answer._cache_size() == 1


def test_the_frozen_kernels_multiply_the_whole_batch_at_once(small_vit, six_images):
    models = several(small_vit)
    answer = jax.jit(lambda adapters, x, ids: surm.serve_batch(models[0], adapters, x, ids))
    text = answer.lower(surm.stack_adapters(models), six_images, IDS).as_text()
    shapes = re.findall(r"dot_general.*: \(tensor<([\dx]+)xf32>, tensor<([\dx]+)xf32>\)", text)
    assert len(shapes) == text.count("stablehlo.dot_general")
    kernels = {"192x12": 1, "12x12": 4 * SMALL.depth, "12x24": SMALL.depth, "24x12": SMALL.depth}
    for kernel, number in kernels.items():
        of_kernel = [left for left, right in shapes if right == kernel]
        assert len(of_kernel) == number and all(left.startswith("6x") for left in of_kernel), kernel
    of_each = {right for _, right in shapes} - {*kernels}
    assert of_each == {"6x1x3x5x4", "6x12x5"}, "keys and values, and the heads"


def test_no_dense_matrix_is_made_for_an_example(small_vit, six_images):
    texts = set()
    for path in ("branch", "fused_dense", "auto"):
        models = several(small_vit, path=path)
        answer = jax.jit(lambda adapters, x, ids, model=models[0]: surm.serve_batch(model, adapters, x, ids))
        texts.add(answer.lower(surm.stack_adapters(models), six_images, IDS).as_text())
    assert len(texts) == 1


@pytest.mark.parametrize("wrong", [-1, 4, 2**31 - 1])
def test_an_id_out_of_range_is_refused_or_answered_by_nan(small_vit, six_images, wrong):
    models = several(small_vit)
    adapters, ids = surm.stack_adapters(models), np.where(np.arange(len(IDS)) == 3, wrong, IDS)
    for given in (ids, jnp.asarray(ids)):
        with pytest.raises(InputError, match=rf"ids\[3\]={wrong}, expected 0 <= id < 4, the number of adapters"):
            surm.serve_batch(models[0], adapters, six_images, given)
    answers, expected = serve(models, six_images, ids), serve(models, six_images)
    assert np.isnan(answers[3]).all()
    np.testing.assert_array_equal(np.delete(answers, 3, axis=0), np.delete(expected, 3, axis=0))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (IDS[:5], r"5 ids, but x has shape \[6, 16, 16, 3\]; expected one id for each example"),
        (IDS.astype(np.float32), r"ids are float32\[6\], expected one integer for each example"),
        (IDS > 0, r"ids are bool\[6\], expected one integer"),
        (IDS[:, None], r"ids are int64\[6, 1\], expected one integer"),
        (2, r"ids are int64\[\], expected one integer"),
    ],
)
def test_ids_of_another_form_are_refused(small_vit, six_images, ids, message):
    models = several(small_vit, number=3)
    with pytest.raises(InputError, match=message):
        surm.serve_batch(models[0], surm.stack_adapters(models), six_images, ids)


def test_inputs_of_different_lengths_are_refused_by_name(texts):
    models = several(bert.Bert(TINY, 4, rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match=r"6 ids, but mask has shape \[1, 8\]; expected one id for each example"):
        surm.serve_batch(models[0], surm.stack_adapters(models), {**texts, "mask": texts["mask"][:1]}, IDS)


def test_arrays_that_are_not_the_models_are_refused(small_vit, six_images):
    models = several(small_vit)
    adapters = surm.stack_adapters(models)
    one = {path: array[0] for path, array in adapters.items()}
    uneven = {**adapters, "head.bias": adapters["head.bias"][:2]}
    for wrong, message in (
        ({**adapters, "other": jnp.ones((4, 2))}, "'adapters' does not fit the model: unknown other"),
        (one, r"parameters\.a has shape \(\), expected \(12,\)"),
        (uneven, "arrays of 2 and 4 adapters, expected as many in each"),
    ):
        with pytest.raises(InputError, match=message):
            surm.serve_batch(models[0], wrong, six_images, IDS)
    for plain in (small_vit, surm.detach(models[0])):
        with pytest.raises(InputError, match="model has no adapter; expected a model from attach or load_adapter"):
            surm.serve_batch(plain, adapters, six_images, IDS)


def with_head(outputs: int) -> vit.ViT:
    return vit.ViT(SMALL, outputs, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("spec", "outputs", "message"),
    [
        ({"scale": 0.5}, 5, "scale is 1.0 and 0.5$"),
        ({"family": "skew_circulant"}, 5, "family is circulant and skew_circulant$"),
        ({"method": "adapter"}, 5, r"position is update and adapter; scale is 1.0 and absent; .* \(\+\d+ more\)$"),
        ({"targets": r".*\.query"}, 5, r"key\.delta\.parameters\.a is float32\[12\] and absent; "),
        ({"train": ()}, 5, r"head.bias is float32\[5\] and absent; head.kernel is float32\[12, 5\] and absent$"),
        ({}, 7, r"head.bias is float32\[5\] and float32\[7\]; head.kernel is float32\[12, 5\] and float32\[12, 7\]$"),
    ],
)
def test_adapters_of_another_form_are_not_stacked(spec, outputs, message):
    models = [*several(with_head(5), 2), *several(with_head(outputs), 1, **spec)]
    with pytest.raises(InputError, match=f"models 0 and 2 cannot be stacked: .*{message}"):
        surm.stack_adapters(models)


def test_what_a_method_does_not_read_may_differ(small_vit):
    for method, ignored in (("bitfit", {"family": "toeplitz"}), ("update", {"activation": "relu", "dropout": 0.1})):
        stacked = surm.stack_adapters(
            [*several(small_vit, 1, method=method), *several(small_vit, 1, method=method, **ignored)]
        )
        assert {len(array) for array in stacked.values()} == {2}


def test_adapters_of_other_bases_are_not_stacked(small_vit):
    models, twin = several(small_vit), vit.ViT(SMALL, 5, rngs=nnx.Rngs(0))
    stacked = surm.stack_adapters([*models, *several(twin, 1)])  # built anew, bit for bit the same
    assert {len(array) for array in stacked.values()} == {5}
    kernel = twin.blocks[1].mlp.up.kernel
    kernel[...] = kernel[...].at[0, 0].multiply(1 + 2**-22)
    with pytest.raises(InputError, match=r"models 0 and 4 have different bases: blocks\.1\.mlp\.up\.kernel$"):
        surm.stack_adapters([*models, *several(twin, 1)])
    other = vit.ViT(SMALL, 5, rngs=nnx.Rngs(1))
    with pytest.raises(InputError, match=r"different bases: blocks\.0\.attention\.key\.base\.kernel, .* more\)$"):
        surm.stack_adapters([*models, *several(other, 1)])
    computes_otherwise = nnx.clone(small_vit)
    computes_otherwise.blocks[0].attention.heads = 4
    with pytest.raises(InputError, match="models 0 and 4 have bases of the same arrays, but compute differently"):
        surm.stack_adapters([*models, *several(computes_otherwise, 1)])


def test_nothing_to_stack_is_refused(small_vit):
    with pytest.raises(InputError, match="no model to stack the adapter of, expected at least one"):
        surm.stack_adapters([])
    with pytest.raises(InputError, match=r"models\[1\] has no adapter; expected a model from attach or load_adapter"):
        surm.stack_adapters([*several(small_vit, 1), small_vit])


def test_the_stack_holds_what_was_trained(small_vit):
    models = several(small_vit, 2)
    stacked = surm.stack_adapters(models)
    for index, model in enumerate(models):
        trained = surgery.split(model)[1]
        assert stacked.keys() == trained.keys()
        for path, array in trained.items():
            np.testing.assert_array_equal(stacked[path][index], array)
