"""Runs that take a few seconds: random images of a few classes, two blocks of width 16 with random weights."""

import pathlib
from typing import Any

import ml_collections
import numpy as np

from surm import config as configs

WEIGHTS = pathlib.Path(__file__).parent / "models" / "golden" / "vit"


def images(folder: pathlib.Path, *, counts: tuple[int, ...] = (24, 8), validation: bool = True, seed: int = 0) -> str:
    """An .npz of images whose brightness says the class, with noise; so many of each class in every split."""
    rng, arrays = np.random.default_rng(seed), {}
    for split in ("train", "test", *(["val"] if validation else [])):
        labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
        mean = 60 + 120 * labels / max(len(counts) - 1, 1)
        noise = rng.normal(0, 60, (len(labels), 8, 8, 3))
        arrays[f"x_{split}"] = np.clip(mean[:, None, None, None] + noise, 0, 255).astype(np.uint8)
        arrays[f"y_{split}"] = labels
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "images.npz", **arrays)
    return str(folder / "images.npz")


def config(source: str, **more: Any) -> ml_collections.ConfigDict:
    """Of a run on them; further keys dotted, with _ for the dot behind the section where they are given by name."""
    found = configs.default()
    found.data.source, found.model.weights, found.model.name = source, str(WEIGHTS), "auto"
    found.model.image_size, found.optim.batch_size, found.log_every_steps = 16, 8, 1
    found.optim.steps, found.optim.schedule, found.optim.warmup_fraction = 6, "constant", 0.0
    found.update_from_flattened_dict(more)
    return found
