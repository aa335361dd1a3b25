"""Documentation: the examples in docstrings run, and everything public has a docstring."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import surm

MODULES = ["surm", *(module.name for module in pkgutil.walk_packages(surm.__path__, "surm."))]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert failures == 0


@pytest.mark.parametrize("name", MODULES)
def test_all_that_is_public_is_documented_and_typed(name):
    module = importlib.import_module(name)
    assert module.__doc__ or name == "surm.version"
    for member in vars(module).values():
        if getattr(member, "__module__", None) != name or getattr(member, "__name__", "_").startswith("_"):
            continue
        if inspect.isclass(member):
            assert member.__doc__, member
        elif inspect.isfunction(member):
            assert member.__doc__, member
            signature = inspect.signature(member)
            assert signature.return_annotation is not inspect.Signature.empty, member
            untyped = [p.name for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty]
            assert not untyped, (member, untyped)
