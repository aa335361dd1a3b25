"""The record of a family: what it takes from a module, the defaults of what that leaves out, and what it refuses."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import pytest

from surm.matrices import FAMILIES, Family, adalora, low_rank, svft
from surm.matrices.family import check_together

NOTHING = object()


def module(like: types.ModuleType = low_rank, **changes: Any) -> types.ModuleType:
    """A module with the public parts of another, some of them changed, added or, for NOTHING, left out."""
    made = types.ModuleType("surm.matrices.mine")
    parts = {name: value for name, value in vars(like).items() if not name.startswith("_")} | changes
    vars(made).update({name: value for name, value in parts.items() if value is not NOTHING})
    return made


def test_the_functions_are_those_of_the_module():
    for function in ("init", "matvec", "to_dense", "num_params", "project", "fixed", "quick_dense"):
        assert getattr(FAMILIES["svft"], function) is getattr(svft, function)
    assert FAMILIES["adalora"].gate.scores is adalora.scores and FAMILIES["adalora"].penalty is adalora.penalty


def test_what_a_module_leaves_out_has_the_default_that_is_written_down():
    optional = ("ADAPTER_LEARNING_RATE", "LEARNING_RATE_BY_ROOT", "PRODUCT")
    family = Family.of(module(LEARNING_RATE=0.25, **dict.fromkeys(optional, NOTHING)))
    found = {field.name: getattr(family, field.name) for field in dataclasses.fields(family)}
    functions = {name: getattr(low_rank, name) for name in ("init", "matvec", "to_dense", "num_params", "project")}
    assert found == functions | {
        "name": "mine", "learning_rate": 0.25, "adapter_learning_rate": 0.25, "learning_rate_by_root": None,
        "fixed": None, "quick_dense": None, "dense_matvec": None, "linear": (), "shared": {}, "gate": None,
        "penalty": None, "training": {}, "product": "matmuls", "measured_as": "mine",
    }  # fmt: skip
    assert family.options == {"rank": 8} and not family.convolutional and not family.trained_shared


def test_a_record_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FAMILIES["circulant"].learning_rate = 1.0
    with pytest.raises(TypeError):
        FAMILIES["adalora"].training["penalty"] = 1.0
    assert isinstance(FAMILIES["lorta"].shared, Mapping)


def test_which_products_there_are():
    kinds = {name: family.product for name, family in FAMILIES.items()}
    assert kinds == {
        **dict.fromkeys(("circulant", "skew_circulant"), "convolution"),
        "low_displacement_rank": "two_convolutions",
        **dict.fromkeys(("toeplitz", "block_circulant", "c3a", "diagonal_circulant"), "transforms"),
        **dict.fromkeys(("low_rank", "adalora", "dora_dynamic", "lorta", "aurora"), "thin"),
        **dict.fromkeys(("kronecker", "monarch", "melora", "vera", "lora_xs", "lora2"), "thin_in_large"),
        "svft": "matmuls",
    }
    convolutional = [name for name, family in FAMILIES.items() if family.convolutional]
    assert convolutional == ["circulant", "skew_circulant", "toeplitz", "low_displacement_rank"]
    assert [name for name, family in FAMILIES.items() if family.trained_shared] == ["lorta", "aurora"]


def own(name: str) -> Any:
    """A function that seems to stand in the module."""

    def function(params):
        return params

    function.__name__, function.__module__ = name, "surm.matrices.mine"
    return function


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LINAER": ("a",)}, "no part of a family is called LINAER; the nearest is LINEAR"),
        ({"linear": ("a",)}, "called linear; the nearest is LINEAR"),
        ({"LEARNING_RATES": 1e-2}, "called LEARNING_RATES; the nearest is LEARNING_RATE"),
        ({"quick_dence": own("quick_dence")}, "called quick_dence; the nearest is quick_dense"),
        ({"HELPERS": 3}, "called HELPERS; the names of others start with _"),
        ({"LEARNING_RATE": NOTHING, "project": NOTHING}, "lacks project, LEARNING_RATE; expected"),
        ({"LEARNING_RATE": 0.0}, "LEARNING_RATE must be a float above 0, got 0.0"),
        ({"ADAPTER_LEARNING_RATE": "1e-2"}, "ADAPTER_LEARNING_RATE must be a float above 0, got '1e-2'"),
        ({"LEARNING_RATE_BY_ROOT": "ranks"}, "must be an option of num_params, rank; got 'ranks'"),
        ({"LINEAR": "a"}, "LINEAR must be a tuple of names of parameters, got 'a'"),
        ({"SHARED": {"a": "network"}}, "SHARED must be a dict of names .* got {'a': 'network'}"),
        ({"PRODUCT": "thinn"}, "PRODUCT must be 'matmuls' or 'thin' or .* got 'thinn'"),
        ({"MEASURED_AS": low_rank}, "MEASURED_AS must be the name of a family, got <module"),
        ({"TRAINING": {"begin": "0.1"}}, "TRAINING must be a dict of numbers by name, got"),
        ({"TRAINING": {"begin": 0.1}}, "TRAINING must have no options, according to its GATE and penalty, got begin"),
        ({"penalty": own("penalty")}, "TRAINING must have penalty, penalty_until, .* got none"),
        ({"GATE": "e"}, "has GATE, but lacks first_scores, next_scores, scores, surplus; expected all or none"),
        ({"fixed": {}}, "fixed must be a function of base, got {}"),
        ({"fixed": own("fixed")}, "fixed must be a function of base, got one of params"),
        ({"matvec": low_rank.to_dense}, "matvec must be a function of params, x, n_out, got one of params, n_out"),
        ({"matvec": FAMILIES["circulant"].matvec}, "matvec takes convolve; expected PRODUCT = 'convolution' or"),
    ],
)  # fmt: skip
def test_a_part_that_is_misspelt_or_of_another_type_is_named(changes, message):
    with pytest.raises(TypeError, match=rf"^surm\.matrices\.mine:? .*{message}"):
        Family.of(module(**changes))


def test_families_that_do_not_fit_each_other_are_refused():
    mine = Family.of(module(MEASURED_AS="adalora"))
    with pytest.raises(TypeError, match="mine: MEASURED_AS must be one of circulant, .*, got 'adalora'"):
        check_together({**FAMILIES, "mine": mine})
    with pytest.raises(TypeError, match="FAMILIES has the module 'mine' under the name 'other'"):
        check_together({**FAMILIES, "other": mine})
