"""The curves of one run as a picture."""

import io
import os
from typing import Any

from surm import files


def draw_curves(
    lines: list[dict[str, Any]], path: str | os.PathLike, title: str = "", *, metric: str = "accuracy"
) -> None:
    """Draws the loss and the main metric against the step, for every split that has them.

    Args:
      lines: the lines of `metrics.jsonl`: step, split, values.
      path: the PNG to write.
      title: the title of the picture.
      metric: the name of the main metric.
    """
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(9, 3.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", metric), strict=True):
        for split in dict.fromkeys(line["split"] for line in lines):
            points = [(line["step"], line["values"][name]) for line in lines
                      if line["split"] == split and name in line["values"]]  # fmt: skip
            if not points:
                continue
            marker = "" if split == "train" else "o"
            axes.plot(*zip(*points, strict=True), label=split, marker=marker, linewidth=1)
        axes.set_xlabel("step")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    files.replace(path, picture.getvalue())
