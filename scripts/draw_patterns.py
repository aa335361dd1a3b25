"""Draws one random member of every family as an image: `python scripts/draw_patterns.py docs/patterns.png`."""

import sys

import numpy as np

from experiments.shared import members
from surm import matrices
from surm.errors import InputError
from surm.machine.status import status_of

SHOWN = {
    "circulant": {}, "skew_circulant": {}, "toeplitz": {"factors": 1, "symmetric": False}, "kronecker": {"rank": 4},
    "low_displacement_rank": {"rank": 1}, "block_circulant": {"block_size": 6}, "low_rank": {"rank": 1},
}  # fmt: skip
SIZE = 24


def main(path: str) -> None:
    """Draws all families in one row, with the number of parameters and the rank below each."""
    shown, captions = {}, {}
    for name, options in SHOWN.items():
        title, count = name.replace("_", " "), matrices.FAMILIES[name].num_params(SIZE, SIZE, **options)
        shown[title] = members.random(name, options, SIZE)
        captions[title] = f"{count} parameters, rank {np.linalg.matrix_rank(shown[title])}"
    members.draw(path, shown, captions, (14, 2.6), fontsize=8)


def command() -> int:
    """The command line."""
    if len(sys.argv) != 2:
        raise InputError("expected python scripts/draw_patterns.py FILE.png")
    main(sys.argv[1])
    return 0


if __name__ == "__main__":
    sys.exit(status_of(command))
