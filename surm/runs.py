"""A finished run, opened again: the trained model with all that it needs to answer, config, metrics and result."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx
from jaxtyping import Float

from surm import preparation
from surm.data.splits import ArraySplit
from surm.data.texts import TextSplit
from surm.errors import InputError
from surm.peft import store
from surm.workdir import Workdir


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedRun:
    """What a run's folder holds.

    Attributes:
      config: the run's configuration.
      model: the base with the trained adapter, in evaluation mode.
      metrics: the lines of `metrics.jsonl`: step, split, values.
      result: what `result.json` holds.
      feed: how examples reach the model.
    """

    config: ml_collections.ConfigDict
    model: nnx.Module
    metrics: list[dict[str, Any]]
    result: dict[str, Any]
    feed: preparation.Feed

    def predict(self, examples: Sequence[Any]) -> Float[np.ndarray, "n outputs"]:
        """The model's outputs for examples, prepared just as in training.

        Args:
          examples: uint8 images of one size, N×H×W[×C]; or texts: strings, or pairs of them.

        Returns:
          One row an example, in order: logits of the classes, or one number for regression.
        """
        split = self._split(examples)
        graphdef, state = nnx.split(self.model)
        answer = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(**self.feed.inputs(batch)))
        found = [np.asarray(answer(state, batch))[batch["mask"]] for batch in self.feed.evaluation(split)]
        outputs = np.empty((len(split), self.result["num_outputs"]), np.float32)
        outputs[self.feed.order(split)] = np.concatenate(found)
        return outputs

    def _split(self, examples: Sequence[Any]) -> ArraySplit | TextSplit:
        labels = np.zeros(len(examples), np.int32)
        if self.result["kind"] == "text":
            return TextSplit([(text,) if isinstance(text, str) else tuple(text) for text in examples], labels)
        images = np.asarray(examples)
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise InputError(f"images are {images.dtype} of shape {images.shape}, expected uint8 N×H×W[×C]")
        return ArraySplit(images[..., None] if images.ndim == 3 else images, labels)


def load_run(folder: str | os.PathLike) -> LoadedRun:
    """Opens the folder of a finished run.

    Args:
      folder: the `--workdir` of `python -m surm.train`.

    Returns:
      The run; its weights are opened by the name in its config.

    Raises:
      InputError: if the folder holds no finished run, or its weights cannot be opened any more.
    """
    path = pathlib.Path(folder)
    if not (path / "result.json").is_file():
        raise InputError(f"{str(folder)!r} holds no finished run: result.json is missing")
    result = json.loads((path / "result.json").read_text())
    config = ml_collections.ConfigDict(result["config"])
    weights = preparation.weights_of(config)
    base = preparation.base_model(config, weights, result["kind"], result["num_outputs"])
    return LoadedRun(
        config=config,
        model=store.load_adapter(path / "adapter", base),
        metrics=Workdir(path, config).metrics(),
        result=result,
        feed=preparation.feed_of(config, weights, base),
    )
