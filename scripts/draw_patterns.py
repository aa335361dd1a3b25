"""Draws one random member of every family as an image: `python scripts/draw_patterns.py docs/patterns.png`."""

import sys

import jax
import matplotlib.figure

from surm import matrices
from surm.errors import InputError
from surm.machine.status import status_of

SHOWN = {
    "circulant": {}, "skew_circulant": {}, "toeplitz": {"factors": 1, "symmetric": False}, "kronecker": {"rank": 4},
    "low_displacement_rank": {"rank": 1}, "block_circulant": {"block_size": 6}, "low_rank": {"rank": 1},
}  # fmt: skip
SIZE = 24


def member(name: str, options: dict[str, object]) -> jax.Array:
    """A random member: the initial parameters with normal noise, as a dense matrix."""
    family = matrices.FAMILIES[name]
    params = family.init(jax.random.key(0), SIZE, SIZE, **options)
    keys = dict(zip(params, jax.random.split(jax.random.key(1), len(params)), strict=True))
    return family.to_dense({n: jax.random.normal(keys[n], v.shape) for n, v in params.items()}, SIZE, SIZE)


def main(path: str) -> None:
    """Draws all families in one row, with the number of parameters below each."""
    figure = matplotlib.figure.Figure(figsize=(14, 2.6), layout="constrained")
    for axes, (name, options) in zip(figure.subplots(1, len(SHOWN)), SHOWN.items(), strict=True):
        dense = member(name, options)
        axes.imshow(dense / abs(dense).max(), cmap="RdBu", vmin=-1, vmax=1)
        axes.set_title(name.replace("_", " "), fontsize=10)
        count = matrices.FAMILIES[name].num_params(SIZE, SIZE, **options)
        axes.set_xlabel(f"{count} parameters, rank {int(jax.numpy.linalg.matrix_rank(dense))}", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(path, dpi=110)


def command() -> int:
    """The command line."""
    if len(sys.argv) != 2:
        raise InputError("expected python scripts/draw_patterns.py FILE.png")
    main(sys.argv[1])
    return 0


if __name__ == "__main__":
    sys.exit(status_of(command))
