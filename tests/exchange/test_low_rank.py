import numpy as np
import pytest
from flax import nnx

import surm
from surm import InputError
from surm.exchange import to_low_rank
from surm.peft import select, surgery
from surm.peft.together.several import combine
from tests.exchange.models import adapted, answer, base, one_line


def deltas(model):
    return {select.dotted(path): layer.scale * np.asarray(layer.delta.to_dense(), np.float64)
            for path, layer in surgery.wrapped_layers(model)}  # fmt: skip


@pytest.fixture(scope="module")
def toeplitz():
    return adapted("vit", family="toeplitz", scale=0.5, targets=(r".*\.query", r".*\.mlp\.up"), dropout=0.1)


def test_the_errors_are_those_of_the_matrices_and_the_least_there_are(toeplitz, capsys):
    before = deltas(toeplitz)
    model, errors = to_low_rank(toeplitz, rank=3)
    assert errors.keys() == before.keys()
    for path, near in deltas(model).items():
        values = np.linalg.svd(before[path], compute_uv=False)
        least = np.sqrt((values[3:] ** 2).sum() / (values**2).sum())
        measured = np.linalg.norm(before[path] - near) / np.linalg.norm(before[path])
        np.testing.assert_allclose([errors[path], measured], least, rtol=1e-4)
        assert np.linalg.matrix_rank(near, tol=1e-5) == 3
    assert capsys.readouterr().out == ""  # a library says nothing that nobody asked for


def test_a_lora_that_loses_much_is_warned_of_with_the_exact_format_if_there_is_one(toeplitz, caplog):
    circulant = adapted("vit", family="circulant", targets=(r".*\.query",), dropout=0.0)
    for model, way_on in ((circulant, "writes it exactly, as C3A"), (toeplitz, "a higher rank loses less")):
        _, errors = to_low_rank(model, rank=1)
        (warning,) = caplog.messages
        assert f"of {len(errors)} layers have a relative error above 0.5" in warning and way_on in warning
        caplog.clear()
        to_low_rank(model, rank=16)
        assert not caplog.messages


def test_a_share_of_the_energy_takes_the_smallest_rank_that_keeps_it(toeplitz):
    model, errors = to_low_rank(toeplitz, energy=0.95)
    rank = surgery.spec_of(model).options["rank"]
    assert max(errors.values()) ** 2 <= 0.05
    lost = [np.linalg.svd(delta, compute_uv=False)[rank - 1 :] for delta in deltas(toeplitz).values()]
    least = [np.linalg.norm(delta) for delta in deltas(toeplitz).values()]
    assert max(np.sum(a**2) / b**2 for a, b in zip(lost, least, strict=True)) > 0.05


def test_the_full_rank_gives_the_same_answers_and_keeps_everything_else(toeplitz):
    model, errors = to_low_rank(surm.merge(toeplitz), rank=16)
    expected = nnx.clone(toeplitz)
    expected.eval()
    np.testing.assert_allclose(answer(model), answer(expected), rtol=1e-4, atol=1e-5)
    assert not any(layer.dropout.deterministic for _, layer in surgery.wrapped_layers(toeplitz))
    assert max(errors.values()) < 1e-6
    assert all(layer.dropout.deterministic for _, layer in surgery.wrapped_layers(model))
    spec, before = surgery.spec_of(model), surgery.spec_of(toeplitz)
    assert (spec.family, spec.options["rank"], spec.path) == ("low_rank", 16, "auto")
    for field in ("method", "targets", "scale", "dropout", "train"):
        assert getattr(spec, field) == getattr(before, field)


def test_scales_and_magnitudes_of_layers_stay():
    rules = r".*\.value => family=low_rank, rank=2, scale=2; .*\.0\.attention\.query => magnitude=True; .*key => off"
    model = adapted(family="c3a", options="block_size=4", rules=rules, targets=".*(query|key)")
    near, _ = to_low_rank(model, rank=16)
    assert {(path[-1], path[1], layer.scale, layer.magnitude is not None)
            for path, layer in surgery.wrapped_layers(near)} == {
        ("query", 0, 1.0, True), ("query", 1, 1.0, False), ("value", 0, 2, False), ("value", 1, 2, False)}  # fmt: skip
    np.testing.assert_allclose(answer(near), answer(model), rtol=1e-4, atol=1e-5)


def test_an_update_that_blew_up_is_refused():
    graphdef, trained, frozen = surgery.split(adapted(family="low_rank"))
    trained = {place: array * np.nan for place, array in trained.items()}
    with pytest.raises(InputError, match="blocks.0.attention.*: the given .* not finite") as error:
        to_low_rank(surgery.join(graphdef, trained, frozen), rank=2)
    one_line(error)


def test_all_the_energy_of_a_low_rank_is_its_rank():
    near, _ = to_low_rank(adapted(family="low_rank", options="rank=2"), energy=1.0)
    assert surgery.spec_of(near).options["rank"] == 2


def test_an_untrained_update_has_no_error():
    model = surm.attach(base("vit"), surm.PeftSpec(family="circulant"), nnx.Rngs(0))
    near, errors = to_low_rank(model, energy=0.9)
    assert set(errors.values()) == {0.0} and surgery.spec_of(near).options["rank"] == 1
    np.testing.assert_array_equal(answer(near), answer(base("vit")))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "rank=None, energy=None; expected one of them"),
        ({"rank": 2, "energy": 0.5}, "rank=2, energy=0.5; expected one"),
        ({"rank": 0}, "rank=0, expected a whole number of at least 1"),
        ({"rank": True}, "rank=True, expected"),
        ({"energy": 0.0}, "energy=0.0, expected a share"),
        ({"energy": 1.5}, "energy=1.5, expected a share"),
        ({"energy": float("nan")}, "energy=nan, expected a share"),
    ],
)
def test_unusable_numbers_are_refused(toeplitz, given, message):
    with pytest.raises(InputError, match=message) as error:
        to_low_rank(toeplitz, **given)
    one_line(error)


def test_models_without_an_update_are_refused():
    with pytest.raises(InputError, match="the model has no adapter; expected an update"):
        to_low_rank(base("vit"), rank=1)
    with pytest.raises(InputError, match="the model has method='adapter'; expected"):
        to_low_rank(adapted(method="adapter"), rank=1)
    both = combine({"one": adapted(), "other": adapted(family="low_rank")}, head="one")
    with pytest.raises(InputError, match="the model has several adapters, 'one', 'other'; expected one") as error:
        to_low_rank(both, rank=1)
    one_line(error)
