"""Finished runs, opened again: the trained model with its tokenizer or image processor, config, metrics and result."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Float

from surm import config as configs
from surm import files
from surm.data import given_images
from surm.data.splits import ArraySplit
from surm.data.texts import TextSplit
from surm.errors import InputError
from surm.machine.notes import say
from surm.models import catalogue, gguf, hub, processor_files
from surm.models.architecture import LANGUAGE, ImageShape
from surm.models.processor import Processor
from surm.models.sampling import Sampling
from surm.models.weights import Weights
from surm.peft import store
from surm.report import run_folder
from surm.report.run_folder import RESULT
from surm.rundir import named_paths
from surm.rundir.workdir import Workdir
from surm.tasks import files_beside, labels
from surm.tasks.dialect import Dialect, Prompt
from surm.tasks.generated import Request
from surm.tasks.images import squashing
from surm.tasks.kinds import TASKS, task_of
from surm.tasks.labels import Targets
from surm.tasks.task import Task, with_outputs
from surm.tasks.texts import tokenizer_of_0_1
from surm.training import kept, preparation, writing


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedRun:
    """A finished run.

    Attributes:
      config: the run's configuration.
      model: the base model with the trained adapter, in evaluation mode.
      metrics: the lines of `metrics.jsonl`, each with `step`, `split` and `values`.
      result: the contents of `result.json`.
      task: the run's task, with the processor or tokenizer of its examples.
      base_model_name: the name by which transformers opens the pretrained model: that on the hub, or a folder; empty
        if it can open none, such as a package or a GGUF file.
    """

    config: ml_collections.ConfigDict
    model: nnx.Module
    metrics: list[dict[str, Any]]
    result: dict[str, Any]
    task: Task
    base_model_name: str = ""

    @property
    def feed(self) -> Task:
        """The task, under its name in surm 0.1.0."""
        return self.task

    def predict(self, examples: Iterable[Any]) -> Float[np.ndarray, "n outputs"]:
        """Computes the model's outputs for examples, which are preprocessed as in the run's evaluation.

        Args:
          examples: for images, a uint8 array N×H×W[×C], or an iterable of uint8 arrays H×W[×C] or Pillow images, which
            may differ in size and channels; for texts, an iterable of strings, or of pairs of strings if the run was
            trained on pairs.

        Returns:
          One row per example, in order: the logits of `result["classes"]`, or one number for regression.

        Raises:
          InputError: if the examples are not of that form, or the run trained a language model, which has no classes.
        """
        if self.task.outputs is None:
            raise InputError("predict is for classes and numbers, but this run trained a language model: use generate")
        if not isinstance(examples, Iterable) or isinstance(examples, bytes | Mapping):
            raise InputError(f"given a {type(examples).__name__}, expected {self._expected}")
        if not isinstance(examples, Sequence | np.ndarray | jax.Array):
            examples = list(examples)
        if isinstance(examples, np.ndarray | jax.Array) and not examples.ndim:
            raise InputError(f"given an array of one number, expected {self._expected}")
        outputs = np.empty((len(examples), with_outputs(self.task, "predict").outputs), np.float32)
        if len(examples) or isinstance(examples, str):
            split = self.task.ready(self._split(examples))
            batches = self.task.evaluation(split)
            found = [np.asarray(self._answer(batch))[batch["mask"]] for batch in batches]
            outputs[self.task.order(split)] = np.concatenate(found)
        return outputs

    def generate(
        self,
        prompts: Sequence[Prompt] | Prompt,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int = 0,
        stream: bool = False,
        raw: bool = False,
        batch_size: int = 8,
        adapters: Mapping[str, jax.Array] | None = None,
        ids: Sequence[int] | None = None,
    ) -> list[str] | Iterator[str]:
        """Writes the continuation of prompts with a language model.

        Args:
          prompts: a list of prompts, or one. A prompt is a list of messages, each with `role` and `content`, or a
            string: that is one message of the user if the model has a chat template, and else the beginning of a text.
          max_new_tokens: the largest number of new tokens. A text ends before at the model's token for the end, or with
            the model's context.
          temperature: 0 chooses the most probable token; otherwise tokens are drawn, see `surm.models.sampling`.
          top_k: tokens are drawn from the k most probable ones; None or 0 for all.
          top_p: tokens are drawn from the most probable ones with this total probability.
          repetition_penalty: above 1 makes tokens of the prompt and of the text less probable.
          stop: strings that end a text, which does not include them.
          seed: the seed of random choices. Each text depends on it and on the index of its prompt, not on the others.
          stream: whether the text is returned in pieces while it is written, for one prompt.
          raw: whether a string is continued as it is although the model has a chat template.
          batch_size: how many prompts are continued at once.
          adapters: the result of `surm.stack_adapters`, for an adapter of each prompt's own; None for the run's.
          ids: the adapter of each prompt.

        Returns:
          One text per prompt, in order, without the prompt; if `stream`, an iterator over pieces of the text.

        Raises:
          InputError: if the run trained no language model, a prompt is empty, longer than the context or a chat without
            a template for it, or a setting is out of range.
        """
        if self.task.name != LANGUAGE:
            raise InputError(f"generate is for language models, but this run trained {self.task.name!r}: use predict")
        sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
        strings = (stop,) if isinstance(stop, str) else tuple(stop)
        request = Request(max_new_tokens, sampling, strings, seed, batch_size)
        model = self._quick if adapters is None else self.model
        options = {"raw": raw, "stream": stream, "adapters": adapters, "ids": ids}
        return writing.write(model, self._dialect, prompts, request, **options)

    @property
    def beside(self) -> dict[str, Any]:
        """Further arguments of `surm.export_merged`, for all that belongs to the run's model beside its weights."""
        if self.task.name == LANGUAGE:
            return files_beside.of(self.task)
        labels = [str(name) for name in self.result["classes"]] or None
        return {"labels": labels, "processor": self.task.processor, "tokenizer": self.task.tokenizer}

    @functools.cached_property
    def _quick(self) -> nnx.Module:
        return writing.quick(self.model)

    @functools.cached_property
    def _dialect(self) -> Dialect:
        return Dialect.of(self.task)

    @functools.cached_property
    def _answer(self) -> Callable[[dict[str, np.ndarray]], jax.Array]:
        """The model as a function of a batch, compiled once per shape."""
        graphdef, state = nnx.split(self.model)
        answer = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(**self.task.inputs(batch)))
        return functools.partial(answer, state)

    def _split(self, examples: Sequence[Any] | np.ndarray | jax.Array) -> ArraySplit | TextSplit:
        labels = np.zeros(len(examples), np.int32)
        if self.result["kind"] == "text":
            return TextSplit(self._texts(examples), labels)
        if isinstance(examples, str):
            raise InputError(f"given {examples!r:.80}, expected {self._expected}")
        return ArraySplit(given_images.images_of(examples), labels)

    @property
    def _expected(self) -> str:
        """The examples that `predict` takes, for messages."""
        if self.result["kind"] == "text":
            one = "strings" if self.result["num_texts"] == 1 else "pairs of strings"
            return f"a list of {one}, as the run was trained on"
        return (
            "a list of images, such as [image], each a uint8 array or an image of Pillow's, as PIL.Image.open gives it"
        )

    def _texts(self, examples: Sequence[Any] | np.ndarray) -> list[tuple[str, ...]]:
        number = self.result["num_texts"]
        texts = [(text,) if isinstance(text, str) else text for text in examples]
        fit = [
            isinstance(text, tuple | list) and len(text) == number and all(isinstance(part, str) for part in text)
            for text in texts
        ]
        if isinstance(examples, str) or not all(fit):
            given = repr(examples) if isinstance(examples, str) else repr(examples[fit.index(False)])
            raise InputError(f"given {given:.80}, expected {self._expected}")
        return [tuple(map(str, text)) for text in texts]


def load_run(folder: str | os.PathLike, *, step: int | str | None = None) -> LoadedRun:
    """Opens the folder of a finished run.

    Args:
      folder: the `--workdir` of `python -m surm.train`.
      step: the step whose trained arrays the model gets: a step whose checkpoint was kept, or `best` for the best of
        them; None for the final adapter. Metrics and result are the same in all cases.

    Returns:
      The run; its pretrained weights are opened by the name in its config.

    Raises:
      InputError: if the folder holds no finished run, its result is damaged, its weights can no longer be opened, or
        no checkpoint of the step was kept.
    """
    if not (step is None or step == kept.BEST or (isinstance(step, int) and not isinstance(step, bool))):
        raise InputError(f"step={step!r}, expected a number of steps, 'best' or None")
    path = files.path(folder)
    if not (path / RESULT).is_file():
        raise InputError(f"{str(folder)!r} holds {_instead_of_a_finished_run(path)}")
    result = files.read_object(path / RESULT, run_folder.REMEDY)
    if "population" in result:
        best = path / "members" / result["best"]
        raise InputError(f"{str(folder)!r} holds a population; open one of its members, the best is {str(best)!r}")
    if missing := {"config", "kind", "num_outputs", "num_texts"} - result.keys():
        raise InputError(
            f"{str(path / 'result.json')!r} lacks {', '.join(sorted(missing))}: written by another version?"
        )
    kind, named = result["kind"], result.get("task", labels.NAME)
    if kind not in TASKS or named != TASKS[kind].name:
        expected = TASKS[kind].name if kind in TASKS else " or ".join({one.name for one in TASKS.values()})
        raise InputError(
            f"{str(path / 'result.json')!r} is of the task {named!r} on the kind {kind!r}, expected {expected!r}: "
            "written by another version?"
        )
    config = configs.of_an_earlier_run(result["config"])
    try:
        configs.check(config)
    except InputError as error:
        raise InputError(f"{str(path / 'result.json')!r}: {error}") from error
    here = named_paths.found_again(config, result, path)
    weights = preparation.weights_of(here)
    base = preparation.base_model(config, weights, kind, result["num_outputs"])
    model = store.load_adapter(path / "adapter", base)
    processor = _processor(path, result, weights, base.config) if catalogue.of(base).reads == "image" else None
    if kind == "text" and "processor" not in result:
        here.data.tokenizer = tokenizer_of_0_1(here, weights)
    lines = Workdir(path, config).metrics()
    return LoadedRun(
        config=config,
        model=model if step is None else kept.at_step(path, model, step, result, lines),
        metrics=lines,
        result=result,
        task=task_of(here, None if kind == LANGUAGE else Targets.of_result(result), weights, base, processor),
        base_model_name=_base_model_name(weights, base),
    )


def _base_model_name(weights: Weights | None, base: nnx.Module) -> str:
    if weights is None or weights.path is None or weights.config.get("model_type") != _kind_of(base):
        return ""
    if weights.name.startswith(hub.PREFIX):
        at = hub.place(weights.name)
        return "" if at.path else at.repository
    return weights.name if files.path(weights.name).is_dir() and not gguf.is_named(weights.path) else ""


def _kind_of(model: nnx.Module) -> str:
    return catalogue.of(model).kind_of(model.config)


def _processor(path: epath.Path, result: dict[str, Any], weights: Weights | None, shape: ImageShape) -> Processor:
    """The image processor of the run; reports if the weights' files describe another one now."""
    now = trained = squashing(weights, shape)  # runs of 0.1.0 ignored the files
    if weights is not None and weights.processor is not None:
        now = weights.processor.fitted(shape.image_size, shape.channels)
    if result.get("processor") is not None:
        noted = processor_files.parsed(result["processor"], repr(str(path / RESULT)), {})
        trained = noted.fitted(shape.image_size, shape.channels)
    if now != trained:
        said = f"not as the files of {weights.name!r} say now" if weights else "not as its weights say now"
        say(f"images are prepared as in the training of {str(path)!r}, {said}")
    return trained


def _instead_of_a_finished_run(path: epath.Path) -> str:
    """The end of a message: what a folder without a result holds, and how to finish an unfinished run in it."""
    if run_folder.state_of(path) == "unfinished":
        return (
            "an unfinished run: wait for it, or start the same command again, which continues from the last checkpoint"
        )
    return "no finished run: " + ("result.json is missing" if path.is_dir() else "there is no such folder")
