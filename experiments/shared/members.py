"""Members of the families: random ones, the error of the nearest one, and pictures of matrices in a row."""

import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from surm import matrices


def random(family: str, options: dict[str, Any], n: int) -> np.ndarray:
    """A member with normal numbers for all parameters, n×n."""
    module = matrices.FAMILIES[family]
    shapes = jax.eval_shape(lambda key: module.init(key, n, n, **options), jax.random.key(0))
    keys = dict(zip(shapes, jax.random.split(jax.random.key(1), len(shapes)), strict=True))
    params = {name: jax.random.normal(keys[name], shape.shape) for name, shape in shapes.items()}
    return np.asarray(module.to_dense(params, n, n))


def nearest_error(
    matrix: Float[Array, "n n"], family: str, options: dict[str, Any], base: Float[Array, "n n"] | None = None
) -> float:
    """‖M - member‖_F / ‖M‖_F of the member that `project` finds for M; some families depend on the base weight."""
    module, unit = matrices.FAMILIES[family], matrix / jnp.linalg.norm(matrix)
    fixed = module.fixed(base, **options) if module.fixed else {}
    params = _projecting(family, tuple(options.items()))(unit, **({"fixed": fixed} if fixed else {}))
    return float(jnp.linalg.norm(unit - module.to_dense(params | fixed, *unit.shape)))


@functools.cache
def _projecting(family: str, options: tuple[tuple[str, Any], ...]) -> Any:
    return jax.jit(functools.partial(matrices.FAMILIES[family].project, **dict(options)))


def draw(
    file: str | os.PathLike,
    members: Mapping[str, np.ndarray],
    captions: Mapping[str, str],
    size: tuple[float, float],
    fontsize: int,
) -> None:
    """Draws matrices in one row, by title, each with its caption below."""
    figure = Figure(figsize=size, layout="constrained")
    for axes, (title, dense) in zip(figure.subplots(1, len(members)), members.items(), strict=True):
        axes.imshow(dense / abs(dense).max(), cmap="RdBu", vmin=-1, vmax=1)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(captions[title], fontsize=fontsize)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(file, dpi=110)
