import dataclasses

import pytest

from surm import InputError, PeftSpec
from surm.peft.spec import METHODS, parse_options


def test_options_from_text_and_mapping_are_the_same():
    assert PeftSpec(family="low_rank", options="rank=8") == PeftSpec(family="low_rank", options={"rank": 8})


def test_options_are_parsed_as_literals():
    assert parse_options(" terms=2, hadamard=False ") == {"terms": 2, "hadamard": False}
    assert parse_options("") == {}


@pytest.mark.parametrize("text", ["rank", "rank=eight", "rank==8", "rank=8;terms=1"])
def test_malformed_options_name_the_text(text):
    with pytest.raises(InputError, match="NAME=VALUE"):
        parse_options(text)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(InputError, match="nearest: circulant"):
        PeftSpec(family="circulent")
    with pytest.raises(InputError, match="nearest: update"):
        PeftSpec(method="updat")
    with pytest.raises(InputError, match="circulant has no option 'rank'; it has hadamard"):
        PeftSpec(family="circulant", options="rank=2")


def test_dropout_out_of_range_is_refused():
    with pytest.raises(InputError, match=r"dropout=1.0"):
        PeftSpec(dropout=1.0)


def test_every_method_has_its_default_targets():
    for name, method in METHODS.items():
        assert PeftSpec(method=name).targets == method.targets


def test_json_round_trip():
    spec = PeftSpec("update", "toeplitz", "factors=1,symmetric=False", r".*\.output", 0.5, 0.1, "relu", ("head",))
    assert PeftSpec(**spec.to_json()) == spec
    assert hash(spec) == hash(dataclasses.replace(spec))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("options", 5, "options=5, expected a mapping or a string such as 'rank=8'"),
        ("targets", 5, "targets=5, expected a pattern or a sequence of patterns"),
        ("targets", [5], r"targets=\[5\], expected a pattern"),
        ("train", None, "train=None, expected a pattern"),
        ("family", None, "family=None, expected a name"),
        ("dropout", "a", "dropout='a', expected a number"),
        ("scale", True, "scale=True, expected a number"),
        ("scale", float("inf"), "scale=inf, expected a finite number"),
    ],
)
def test_values_of_another_type_are_refused(field, value, expected):
    spec = PeftSpec()
    object.__setattr__(spec, field, value)  # from behind, since the type checker of the tests watches the front
    with pytest.raises(InputError, match=expected):
        spec.__post_init__()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"method": "adapter", "scale": 7.0},
            "scale=7.0, but only 'update' and 'loko' have it; the method 'adapter' does not",
        ),
        ({"method": "head", "targets": "blocks.*"}, "targets='blocks.*', but the method 'head' trains"),
        ({"family": "low_rank", "options": "rank=8,rank=4"}, "'rank=8,rank=4' gives 'rank' twice"),
    ],
)
def test_what_would_not_be_read_is_refused(spec, message):
    with pytest.raises(InputError, match=message):
        PeftSpec(**spec)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"family": "lora"}, "LoRA is family='low_rank', with alpha/r as scale"),
        ({"family": "DoRA"}, "family='low_rank' with magnitude=True"),
        ({"method": "lora"}, "LoRA is family='low_rank'"),
        ({"family": "low_rank", "options": "r=8"}, "it has rank; PEFT's r is rank"),
        ({"family": "low_rank", "options": "alpha=16"}, "alpha/r is scale, a field of its own"),
    ],
)
def test_names_of_hugging_face_peft_lead_to_ours(given, remedy):
    with pytest.raises(InputError, match=remedy):
        PeftSpec(**given)
