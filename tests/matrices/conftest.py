"""Precision of the tests: float64 only where a test asks for it; ranks are never promoted silently."""

import jax
import pytest

from .cases import compiled


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True, scope="package")
def forget_what_was_compiled():
    yield
    compiled.cache_clear()
    jax.clear_caches()


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield "float64"
