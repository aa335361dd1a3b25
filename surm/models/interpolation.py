"""Bicubic interpolation of a square grid of vectors that agrees with PyTorch's up to rounding.

JAX's own interpolation has another kernel without antialiasing. Here, each side is resized by a small matrix, which is
computed with NumPy.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resized(square: Float[Array, "old old size"], side: int, *, smooth: bool) -> Float[Array, "new new size"]:
    """Resizes a square grid of vectors as `torch.nn.functional.interpolate(mode="bicubic")` does.

    Args:
      square: one vector per place of the grid.
      side: the side of the new grid.
      smooth: whether the kernel is widened if the grid shrinks (`antialias=True`).

    Returns:
      The new grid, in float32.
    """
    along = jnp.asarray(matrix(square.shape[0], side, smooth=smooth), jnp.float32)
    return jnp.einsum("ai,bj,ijs->abs", along, along, square.astype(jnp.float32))


def matrix(old: int, new: int, *, smooth: bool) -> np.ndarray:
    """The matrix that resizes one side.

    Args:
      old: the length before.
      new: the length afterwards.
      smooth: see `resized`.

    Returns:
      A matrix (new, old) whose rows sum to 1.
    """
    return _smoothing(old, new) if smooth else _plain(old, new)


def _plain(old: int, new: int) -> np.ndarray:
    """Interpolates between the four nearest places; places beyond the border are replaced by the one at the border."""
    place = (np.arange(new) + 0.5) * old / new - 0.5
    found = np.zeros((new, old))
    for step in range(-1, 3):
        neighbour = np.floor(place).astype(int) + step
        np.add.at(found, (np.arange(new), neighbour.clip(0, old - 1)), _kernel(place - neighbour, -0.75))
    return found


def _smoothing(old: int, new: int) -> np.ndarray:
    """Interpolates with the kernel widened by old/new if the side shrinks; places beyond the border have no weight."""
    step = old / new
    centre = step * (np.arange(new) + 0.5)
    found = _kernel((np.arange(old) + 0.5 - centre[:, None]) / max(step, 1.0), -0.5)
    return found / found.sum(axis=1, keepdims=True)


def _kernel(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic kernel, which is 0 for |x| > 2; `a` is its slope at 1. Source: Keys, IEEE ASSP 29 (1981)."""
    x = np.abs(x)
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
