"""Draws the two pictures of docs/why.md: `python scripts/draw_why.py docs`.

The first shows one random update of each family. The second shows committed results of experiments/approximation: how
near the nearest member of a family comes to three kinds of matrices, against its number of parameters.
"""

import pathlib
import sys

import numpy as np
from matplotlib.figure import Figure

from experiments.approximation import run as approximation
from experiments.shared import members
from surm import matrices
from surm.errors import InputError
from surm.machine.status import status_of
from surm.report import figures

SIZE, DRAWN = 768, 32
"""The size that parameters and ranks are counted for, that of BERT-base and ViT-B, and the size that is drawn."""
UPDATES = {
    "low rank, r = 1": ("low_rank", {"rank": 1}),
    "low rank, r = 8": ("low_rank", {"rank": 8}),
    "circulant": ("circulant", {"hadamard": False}),
    "Toeplitz": ("toeplitz", {"factors": 1, "symmetric": False}),
    "Kronecker": ("kronecker", {}),
    "W(G,H), r = 1": ("low_displacement_rank", {"rank": 1}),
}
RESULTS = [approximation.RESULTS / f"{group}.json" for group in ("random", "updates")]
TARGETS = {
    "displacement2": "displacement rank 2, and noise",
    "rank4": "rank 4, and noise",
    "updates_mrpc": "ΔW of full fine-tuning (MiniLM, MRPC)",
}
LINES = ("low rank", "circulant", "Toeplitz", "Kronecker", "W(G,H)")


def counted(family: str, options: dict[str, object]) -> tuple[int, int]:
    """The number of parameters and the rank of a random member of the full size."""
    dense = np.asarray(members.random(family, options, SIZE), np.float64)
    return matrices.FAMILIES[family].num_params(SIZE, SIZE, **options), int(np.linalg.matrix_rank(dense, rtol=1e-5))


def errors(target: str) -> dict[str, list[tuple[float, float]]]:
    """For every family (parameters over n, mean relative error) at the largest n that was measured."""
    rows = approximation.largest(approximation.committed(), target)
    return {
        line: sorted((row["parameters"] / row["n"], row["mean"]) for row in rows if row["line"] == line)
        for line in LINES
    }


def draw_updates(path: pathlib.Path) -> None:
    """Draws all families in one row, with parameters and rank of a 768×768 update below each."""
    shown = {title: members.random(*update, DRAWN) for title, update in UPDATES.items()}
    captions = {title: "{:,} parameters\nrank {}".format(*counted(*update)) for title, update in UPDATES.items()}
    members.draw(path, shown, captions, (13, 2.9), fontsize=9)


def draw_errors(path: pathlib.Path) -> None:
    """Draws the error of the nearest member against its parameters, one panel a target."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    panels = figure.subplots(1, len(TARGETS), sharey=True)
    for axes, (target, title) in zip(panels, TARGETS.items(), strict=True):
        for number, (line, points) in enumerate(errors(target).items()):
            axes.plot(*zip(*points, strict=True), marker="o", ms=5, color=f"C{number}", label=line)
        axes.set_title(f"target: {title}", fontsize=10)
        axes.set_xlabel("parameters / n", fontsize=9)
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        axes.set_ylim(0, 1.05)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("error of the nearest member", fontsize=9)
    panels[0].legend(fontsize=8, loc="lower left")
    figures.save(figure, path, RESULTS)


def main(folder: str) -> None:
    """Draws both pictures into a folder."""
    draw_updates(pathlib.Path(folder) / "why_updates.png")
    draw_errors(pathlib.Path(folder) / "why_errors.png")


def command() -> int:
    """The command line."""
    if len(sys.argv) != 2:
        raise InputError("expected python scripts/draw_why.py FOLDER")
    main(sys.argv[1])
    return 0


if __name__ == "__main__":
    sys.exit(status_of(command))
