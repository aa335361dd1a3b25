"""The names of the package: imported when they are asked for, and all there."""

import importlib

import pytest

import surm


@pytest.mark.parametrize("name", surm.__all__)
def test_every_name_that_is_said_to_be_there_is(name):
    assert getattr(surm, name) is not None and name in dir(surm)


def test_the_names_are_said_alike_everywhere():
    assert {*surm._HOMES, *surm._MODULES, "InputError", "__version__"} == {*surm.__all__}
    for name, home in surm._HOMES.items():
        assert getattr(importlib.import_module(home), name) is getattr(surm, name)


def test_what_is_not_there_is_no_attribute():
    with pytest.raises(AttributeError, match="module 'surm' has no attribute 'nothing'"):
        surm.nothing  # noqa: B018
