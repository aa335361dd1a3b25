"""Precision of the tests: float64 only where a test asks for it; ranks are never promoted silently."""

import jax
import pytest


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield "float64"
