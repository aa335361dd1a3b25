"""Averages and sums of adapters: exact where a family is linear, near by projection elsewhere."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

import surm
from surm import InputError, PeftSpec, matrices
from surm.models import vit
from surm.peft import surgery
from surm.peft.together import arithmetic
from tests.conftest import SMALL
from tests.peft.randomize import randomize

TARGETS = r"blocks\.0\.(attention\.query|mlp\.up)"
LINEAR = [
    ("circulant", "hadamard=False"),
    ("skew_circulant", "hadamard=False"),
    ("toeplitz", "factors=1"),
    ("toeplitz", "factors=1,symmetric=False"),
    ("block_circulant", "block_size=6"),
    ("c3a", "block_size=6"),
    ("lora_xs", "rank=3"),
]
OF_FAMILIES = {name: family.linear for name, family in matrices.FAMILIES.items() if family.linear}
LINEAR += [(name, "") for name in OF_FAMILIES if name not in {name for name, _ in LINEAR}]
PRODUCTS = [("circulant", ""), ("low_rank", "rank=2"), ("vera", "rank=4")]


def attach(base: nnx.Module, seed: int, **spec) -> nnx.Module:
    spec = PeftSpec(**{"targets": TARGETS, "train": "head", **spec})
    return randomize(surm.attach(base, spec, nnx.Rngs(1)), seed)


@pytest.fixture(scope="module")
def base() -> vit.ViT:
    return vit.ViT(SMALL, 5, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def low_rank(base) -> list[nnx.Module]:
    return [attach(base, seed, family="low_rank", options="rank=2") for seed in range(2)]


def updates(model: nnx.Module) -> dict[str, np.ndarray]:
    layers = surgery.wrapped_layers(model)
    return {surgery.select.dotted(path): np.asarray(layer.scale * layer.delta.to_dense()) for path, layer in layers}


@pytest.mark.parametrize(("family", "options"), LINEAR)
def test_the_average_of_a_linear_family_is_that_of_the_matrices(base, family, options):
    models = [attach(base, seed, family=family, options=options) for seed in range(2)]
    result, errors = arithmetic.average(models)
    assert set(errors.values()) == {0.0}
    first, second, mean = map(updates, (*models, result))
    copied = family in ("circulant", "skew_circulant", "toeplitz", "block_circulant")  # entries of ΔW are parameters
    exact = {"rtol": 0, "atol": 0} if copied else {"rtol": 1e-5, "atol": 1e-5}
    for path in mean:
        assert np.ptp(mean[path]) > 1e-2
        np.testing.assert_allclose(mean[path], 0.5 * first[path] + 0.5 * second[path], **exact)
    kernels = [np.asarray(model.head.kernel[...]) for model in (*models, result)]
    np.testing.assert_array_equal(kernels[2], 0.5 * kernels[0] + 0.5 * kernels[1])


def test_all_linear_forms_are_named_and_no_other():
    linear = {family: set() for family in OF_FAMILIES}
    for family, options in LINEAR:
        linear[family] |= names(family, **PeftSpec(family=family, options=options).options)
    assert linear == {family: set(of_family) for family, of_family in OF_FAMILIES.items()}
    for family in matrices.FAMILIES:
        assert len(names(family)) > 1 or names(family) <= set(OF_FAMILIES[family]), family


def names(family: str, **options) -> set[str]:
    return set(jax.eval_shape(lambda key: matrices.FAMILIES[family].init(key, 12, 12, **options), jax.random.key(0)))


@pytest.mark.parametrize(("family", "options"), PRODUCTS)
def test_elsewhere_the_matrices_are_added_and_the_error_is_told(base, family, options):
    models = [attach(base, seed, family=family, options=options, scale=0.5) for seed in range(2)]
    result, errors = arithmetic.average(models, [3, 1])
    first, second, found = map(updates, (*models, result))
    for path, error in errors.items():
        wanted = 0.75 * first[path] + 0.25 * second[path]
        np.testing.assert_allclose(error, np.linalg.norm(found[path] - wanted) / np.linalg.norm(wanted), atol=1e-5)
        assert error < 1e-5 if family == "circulant" else error < 0.9


def test_a_family_with_room_for_the_sum_has_it_exactly(base, low_rank):
    spec = PeftSpec(family="low_rank", options="rank=4", targets=TARGETS, train="head", scale=0.5)
    result, errors = arithmetic.add(low_rank, [1, -0.5], spec=spec)
    assert max(errors.values()) < 1e-5 < 0.1 < max(arithmetic.add(low_rank, [1, -0.5])[1].values())
    first, second, found = map(updates, (*low_rank, result))
    for path in found:
        np.testing.assert_allclose(found[path], first[path] - 0.5 * second[path], rtol=1e-4, atol=1e-4)
    assert surgery.spec_of(result) == spec and surm.count_parameters(result).trainable > 65


def test_different_families_scales_and_targets_add_up(base):
    dense = PeftSpec(family="low_rank", options="rank=12", targets=r"blocks\.0\.(attention\.(query|value)|mlp\.up)")
    models = [
        attach(base, 1, family="circulant", options="hadamard=False", scale=2.0, train=()),
        attach(base, 2, family="lorta", options="heads=3", targets=r"blocks\.0\.attention\.(query|value)", train=()),
    ]
    result, errors = arithmetic.add(models, [1.0, 1.0], spec=dense)
    assert max(errors.values()) < 1e-4
    first, second, found = map(updates, (*models, result))
    for path, delta in found.items():
        np.testing.assert_allclose(delta, first.get(path, 0) + second.get(path, 0), rtol=1e-3, atol=1e-4)
    assert len(found) == 3 and first.keys() & second.keys()


def test_scales_of_one_family_are_minded(base):
    models = [attach(base, s, family="c3a", options="block_size=6", scale=scale) for s, scale in enumerate((0.5, 3.0))]
    first, second, found = (updates(m)["blocks.0.mlp.up"] for m in (*models, arithmetic.add(models, [1, 1])[0]))
    np.testing.assert_allclose(found, first + second, rtol=1e-4, atol=1e-5)


def test_a_negative_weight_takes_a_skill_away(low_rank):
    result, errors = arithmetic.add(low_rank[:1], [-1.0])
    assert max(errors.values()) < 1e-5
    for path, delta in updates(result).items():
        np.testing.assert_allclose(delta, -updates(low_rank[0])[path], rtol=1e-4, atol=1e-5)


def test_heads_are_the_mean_or_one_models(low_rank):
    first, second = (np.asarray(model.head.bias[...]) for model in low_rank)
    for head, expected in ((None, 0.5 * first + 0.5 * second), (1, second)):
        result, _ = arithmetic.add(low_rank, [2.0, -1.0], head=head)
        np.testing.assert_array_equal(result.head.bias[...], expected)
    result, _ = arithmetic.average(low_rank, [0.0, 2.0])
    np.testing.assert_array_equal(result.head.bias[...], second)
    assert isinstance(result.head.bias, surm.Trainable)


def test_the_result_is_an_adapter_and_the_models_stay_as_they_are(tmp_path, base, low_rank, images):
    before = [[np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))] for model in low_rank]
    result, _ = arithmetic.average([surm.merge(model) for model in low_rank])
    arithmetic.average(low_rank)
    for arrays, model in zip(before, low_rank, strict=True):
        for was, now in zip(arrays, jax.tree.leaves(nnx.state(model)), strict=True):
            np.testing.assert_array_equal(was, now)
    surm.save_adapter(tmp_path, result)
    np.testing.assert_array_equal(surm.load_adapter(tmp_path, base)(images), result(images))


def test_weights_that_are_none_are_refused(low_rank):
    for call, message in (
        (lambda: arithmetic.average(low_rank, [1, -1]), r"weights=\[1.0, -1.0\], expected numbers of at least 0"),
        (lambda: arithmetic.average(low_rank, [0, 0]), r"weights=\[0.0, 0.0\], expected numbers of at least 0 that"),
        (lambda: arithmetic.add(low_rank, [1]), r"weights=\[1\] for 2 models, expected one finite number for each"),
        (lambda: arithmetic.add(low_rank, [1, float("inf")]), r"weights=\[1, inf\] for 2 models, expected one finite"),
        (lambda: arithmetic.add(low_rank, [1, 1], head=2), "head=2, expected None or the index of a model, 0 to 1"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_models_that_do_not_add_up_are_refused(base, low_rank):
    shared = PeftSpec(family="lorta", options="heads=3", targets=TARGETS, train="head")
    for others, spec, message in (
        ([base], None, r"models\[2\] has no adapter; expected an update"),
        ([attach(base, 0, method="adapter", targets=())], None, r"models\[2\] has method='adapter'; expected an"),
        ([attach(base, 0, targets=r".*down")], None, r"mlp\.down is updated in models\[2\], but is not a target"),
        ([], PeftSpec(targets=TARGETS), r"head\.bias is trained in models\[0\], but not by the result's spec"),
        ([], shared, "lorta shares a, b, c_head, c_kind, c_layer among layers"),
        ([attach(vit.ViT(SMALL, 5, rngs=nnx.Rngs(1)), 0)], None, r"models\[0\] and models\[2\] have different bases"),
        ([attach(vit.ViT(SMALL, 7, rngs=nnx.Rngs(0)), 0)], None, r"has the shapes \(5,\), \(7,\), expected the same"),
        ([attach(base, 0, magnitude=True)], None, r"models\[2\]: blocks\.0\.attention\.query has a magnitude"),
    ):
        models = [*low_rank, *others]
        with pytest.raises(InputError, match=message):
            arithmetic.add(models, [1] * len(models), spec=spec)
    assert jnp.isfinite(base.head.kernel[...]).all()


@pytest.mark.parametrize(("models", "given"), [([], "an empty one"), ("one", "a ViT"), (7, "a int")])
def test_what_is_no_list_of_models_is_refused(monkeypatch, low_rank, models, given):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # or the annotations refuse some of them first
    for function in (arithmetic.average, lambda models: arithmetic.add(models, [1.0])):
        with pytest.raises(InputError, match=f"models: given {given}, expected a list of models"):
            function(low_rank[0] if models == "one" else models)


def test_sums_that_are_not_finite_are_refused(base):
    model = attach(base, 0, family="circulant", options="hadamard=False")
    layer = model.blocks[0].attention.query
    layer.delta.parameters["c"][...] = layer.delta.parameters["c"].at[0].set(jnp.nan)
    with pytest.raises(InputError, match=r"blocks\.0\.attention\.query: the sum of the updates has entries that"):
        arithmetic.average([model, model])
