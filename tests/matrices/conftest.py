"""Precision of the tests: float64 only where a test asks for it; ranks are never promoted silently."""

import jax
import pytest

from .cases import CASES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test that takes a `case` over the whole table."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES, ids=str)


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield "float64"


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param
