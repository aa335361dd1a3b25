"""Turns a finished pretraining run into a backbone that ships: half-precision safetensors and a card beside it.

    python scripts/export_backbone.py runs/pretrain vit_micro

Writes surm/models/assets/NAME.safetensors and NAME.md. The top-1 on the card is measured on the exported file, read
back through the ordinary loading code.
"""

import json
import pathlib
import sys

import jax
import ml_collections
import numpy as np
import safetensors.numpy
from flax import nnx

from surm import files
from surm.data import pipeline, sources
from surm.errors import InputError
from surm.machine.status import status_of
from surm.models import convert, vit, weights
from surm.peft import store, tensors
from surm.tasks import labels

ASSETS = pathlib.Path(__file__).parent.parent / "surm" / "models" / "assets"
CARD = """# {name}

A Vision Transformer for {size}×{size} images, patches of {patch}×{patch}, width {width}, {depth} blocks, mean pooling;
{parameters:,} parameters, stored in half precision. Made by this project, with its own trainer.

| | |
|---|---|
| data | Tiny-ImageNet (200 classes) shrunk to 32×32: 95,000 training images, no other data or labels |
| command | `python -m surm.train --config=configs/pretrain_vit.py --workdir=runs/pretrain` |
| hardware | {machine}, {device}, shared with other work |
| training | {steps:,} steps of {batch}, {minutes:.0f} minutes |
| top-1, validation split (10,000 images) | **{accuracy:.2%}**, measured on the shipped file |
| top-1, training run's own evaluation | {own:.2%} in single precision |
| pixels | uint8 / 255, minus {mean}, over {std} |

The full result of the run, config and versions included, is `{name}.json` beside this card. Use it as
`config.model.weights=asset:{name}`. Research data (Le and Yang, "Tiny ImageNet Visual Recognition Challenge", 2015);
the images themselves are not contained.
"""


def export(run: pathlib.Path, target: pathlib.Path, model: str) -> None:
    """Writes the run's weights in half precision, whole or not at all."""
    arrays = safetensors.numpy.load_file(run / "adapter" / store.WEIGHTS)
    halves = {name: array.astype(np.float16) for name, array in arrays.items()}
    about = {"model": model, "mean": [0.5] * 3, "std": [0.5] * 3}
    files.replace(target, tensors.encoded(halves, {"surm": json.dumps(about)}))


def measure(name: str, config: ml_collections.ConfigDict) -> float:
    """Top-1 of an asset on the held-out split of its pretraining data."""
    opened = weights.open_weights(f"asset:{name}")
    data = sources.load(config.data.source)
    shape = vit.preset(opened.model)
    model = convert.restore(vit.ViT(shape, data.num_classes, rngs=nnx.Rngs(0)), opened, head=True)
    graphdef, state = nnx.split(model)
    task = labels.Labels(labels.Targets(data.num_classes))

    @jax.jit
    def answer(state: nnx.State, batch: dict) -> dict:
        outputs = nnx.merge(graphdef, state)(pipeline.normalize(batch["image"], opened.mean, opened.std))
        return task.answers(outputs, batch) | task.known(batch)

    batches = pipeline.evaluation_batches(data.test, 500, shape.image_size)
    return task.measured(answer(state, batch) for batch in batches)[0]["accuracy"]


def main(run: str, name: str) -> None:
    """Exports, measures, and writes the card."""
    folder = pathlib.Path(run)
    result = files.read_object(folder / "result.json")
    config = ml_collections.ConfigDict(result["config"])
    export(folder, ASSETS / f"{name}.safetensors", config.model.name)
    accuracy = measure(name, config)
    shape = vit.preset(config.model.name)
    config.data.source = pathlib.Path(config.data.source).name
    result |= {"config": config.to_dict(), "shipped": {"accuracy": accuracy, "dtype": "float16"}}
    files.replace(ASSETS / f"{name}.json", json.dumps(result, indent=2) + "\n")
    card = CARD.format(
        name=name, size=shape.image_size, patch=shape.patch_size, width=shape.width, depth=shape.depth,
        parameters=result["total_parameters"], machine=result["versions"]["machine"],
        device=result["versions"]["device"], steps=result["steps"], batch=config.optim.batch_size,
        minutes=result["seconds"] / 60, accuracy=accuracy, own=result["eval"]["accuracy"], mean=0.5, std=0.5,
    )  # fmt: skip
    files.replace(ASSETS / f"{name}.md", card)
    print(card)


def command() -> int:
    """The command line."""
    if len(sys.argv) != 3:
        raise InputError("expected python scripts/export_backbone.py RUN NAME")
    main(*sys.argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(status_of(command))
