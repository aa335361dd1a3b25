"""A finished run, opened again: the trained model with all that it needs to answer, config, metrics and result."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx
from jaxtyping import Float

from surm import config as configs
from surm import kept, preparation
from surm.data.splits import ArraySplit
from surm.data.texts import TextSplit
from surm.errors import InputError
from surm.feed import Feed, feed_of
from surm.peft import store
from surm.workdir import LOCK, Workdir, read_object


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
    feed: Feed

    def predict(self, examples: Iterable[Any]) -> Float[np.ndarray, "n outputs"]:
        """The model's outputs for examples, prepared just as in training.

        Args:
          examples: uint8 images of one size, N×H×W[×C]; or texts: strings, or pairs of them, as in training; any
            iterable of them.

        Returns:
          One row an example, in order: logits of `result["classes"]`, or one number for regression.

        Raises:
          InputError: if the examples are not of that form.
        """
        if not isinstance(examples, Iterable):
            raise InputError(f"given a {type(examples).__name__}, expected images or texts")
        if not isinstance(examples, Sequence | np.ndarray | jax.Array):
            examples = list(examples)
        outputs = np.empty((len(examples), self.result["num_outputs"]), np.float32)
        if len(examples) or isinstance(examples, str):
            split = self.feed.ready(self._split(examples))
            batches = self.feed.evaluation(split)
            found = [np.asarray(self._answer(batch))[batch["mask"]] for batch in batches]
            outputs[self.feed.order(split)] = np.concatenate(found)
        return outputs

    @functools.cached_property
    def _answer(self) -> Callable[[dict[str, np.ndarray]], jax.Array]:
        """The model on a batch, compiled once a shape."""
        graphdef, state = nnx.split(self.model)
        answer = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(**self.feed.inputs(batch)))
        return functools.partial(answer, state)

    def _split(self, examples: Sequence[Any]) -> ArraySplit | TextSplit:
        labels = np.zeros(len(examples), np.int32)
        if self.result["kind"] == "text":
            return TextSplit(self._texts(examples), labels)
        try:
            images = np.asarray(examples)
        except ValueError as error:
            raise InputError(f"the images do not make one array ({error}), expected uint8 N×H×W[×C]") from error
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise InputError(f"images are {images.dtype} of shape {images.shape}, expected uint8 N×H×W[×C]")
        return ArraySplit(images[..., None] if images.ndim == 3 else images, labels)

    def _texts(self, examples: Sequence[Any]) -> list[tuple[str, ...]]:
        number = self.result["num_texts"]
        texts = [(text,) if isinstance(text, str) else text for text in examples]
        fit = [
            isinstance(text, tuple | list) and len(text) == number and all(isinstance(part, str) for part in text)
            for text in texts
        ]
        if isinstance(examples, str) or not all(fit):
            given = repr(examples) if isinstance(examples, str) else repr(examples[fit.index(False)])
            expected = "strings" if number == 1 else "pairs of strings"
            raise InputError(f"given {given:.80}, expected a list of {expected}, as the run was trained on")
        return [tuple(map(str, text)) for text in texts]


def load_run(folder: str | os.PathLike, *, step: int | str | None = None) -> LoadedRun:
    """Opens the folder of a finished run.

    Args:
      folder: the `--workdir` of `python -m surm.train`.
      step: whose trained arrays the model shall have: a step whose checkpoint is kept, or `best` of those; None for
        what the run ended with, its `adapter`. Metrics and result are the run's in any case.

    Returns:
      The run; its weights are opened by the name in its config.

    Raises:
      InputError: if the folder holds no finished run, its result is damaged, its weights cannot be opened any more, or
        no checkpoint of the step is kept.
    """
    path = pathlib.Path(folder)
    if not (step is None or step == kept.BEST or (isinstance(step, int) and not isinstance(step, bool))):
        raise InputError(f"step={step!r}, expected a number of steps, 'best' or None")
    if not (path / "result.json").is_file():
        raise InputError(f"{str(folder)!r} holds {_instead_of_a_finished_run(path)}")
    result = read_object(path / "result.json")
    if "population" in result:
        best = path / "members" / result["best"]
        raise InputError(f"{str(folder)!r} holds a population; open one of its members, the best is {str(best)!r}")
    if missing := {"config", "kind", "num_outputs", "num_texts"} - result.keys():
        raise InputError(
            f"{str(path / 'result.json')!r} lacks {', '.join(sorted(missing))}: written by another version?"
        )
    config = configs.of_an_earlier_run(result["config"])
    try:
        configs.check(config)
    except InputError as error:
        raise InputError(f"{str(path / 'result.json')!r}: {error}") from error
    weights = preparation.weights_of(config)
    base = preparation.base_model(config, weights, result["kind"], result["num_outputs"])
    model = store.load_adapter(path / "adapter", base)
    return LoadedRun(
        config=config,
        model=model if step is None else kept.at_step(path, model, step, result),
        metrics=Workdir(path, config).metrics(),
        result=result,
        feed=feed_of(config, weights, base),
    )


def _instead_of_a_finished_run(path: pathlib.Path) -> str:
    """What a folder without a result is, and what to do where a run has begun in it."""
    if (path / "config.json").is_file() and any((path / name).exists() for name in (LOCK, "metrics.jsonl")):
        return (
            "an unfinished run: wait for it, or start the command it was started with again, which goes on from the "
            "last checkpoint"
        )
    return "no finished run: " + ("result.json is missing" if path.is_dir() else "there is no such folder")
