"""Bicubic interpolation of a square of vectors as PyTorch does it, to the last digits.

JAX's own has another kernel where it does not smooth. A side is resized by a small matrix, which is made with NumPy.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resized(square: Float[Array, "old old size"], side: int, *, smooth: bool) -> Float[Array, "new new size"]:
    """Resizes a square of vectors, in float32, as `torch.nn.functional.interpolate(mode="bicubic")`.

    Args:
      square: a vector at every place.
      side: of the new square.
      smooth: whether the kernel becomes wider where the square shrinks (`antialias=True`).

    Returns:
      The new square, in float32.
    """
    along = jnp.asarray(matrix(square.shape[0], side, smooth=smooth), jnp.float32)
    return jnp.einsum("ai,bj,ijs->abs", along, along, square.astype(jnp.float32))


def matrix(old: int, new: int, *, smooth: bool) -> np.ndarray:
    """What one side is resized by.

    Args:
      old: its length.
      new: its length afterwards.
      smooth: see `resized`.

    Returns:
      A matrix (new, old) whose rows sum to 1.
    """
    return _smoothing(old, new) if smooth else _plain(old, new)


def _plain(old: int, new: int) -> np.ndarray:
    """Four neighbours a place; those beyond the border are the border's."""
    place = (np.arange(new) + 0.5) * old / new - 0.5
    found = np.zeros((new, old))
    for step in range(-1, 3):
        neighbour = np.floor(place).astype(int) + step
        np.add.at(found, (np.arange(new), neighbour.clip(0, old - 1)), _kernel(place - neighbour, -0.75))
    return found


def _smoothing(old: int, new: int) -> np.ndarray:
    """As many neighbours as a kernel as wide as the step has; those beyond the border are left out."""
    step = old / new
    centre = step * (np.arange(new) + 0.5)
    found = _kernel((np.arange(old) + 0.5 - centre[:, None]) / max(step, 1.0), -0.5)
    return found / found.sum(axis=1, keepdims=True)


def _kernel(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic, 0 beyond 2; `a` is its slope at 1. Source: Keys, IEEE ASSP 29 (1981)."""
    x = np.abs(x)
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
