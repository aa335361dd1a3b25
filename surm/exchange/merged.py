"""Writes a whole merged model as transformers loads it, with its image processor or tokenizer."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  lets NumPy hold bfloat16
from flax import nnx
from flax.core import FrozenDict

from surm.errors import InputError
from surm.exchange import folder, names, tokenizer_files
from surm.models import catalogue
from surm.models.architecture import LANGUAGE
from surm.models.processor import Processor
from surm.peft import surgery

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
DTYPES = ("float32", "bfloat16", "float16")


def export_merged(
    path: str | os.PathLike,
    model: nnx.Module,
    *,
    labels: Sequence[str] | None = None,
    processor: Processor | None = None,
    tokenizer: str | os.PathLike | None = None,
    dtype: str = "float32",
    beside: Mapping[str, bytes] = FrozenDict(),
) -> None:
    """Writes a merged model, for `AutoModelForImageClassification` or its counterpart, such as `AutoModelForCausalLM`.

    The keys are those of transformers 4, which versions 4 and 5 both read. If the processor or tokenizer is written
    too, `transformers.pipeline` can open the folder. The frozen weights of a base that is stored in int8 or int4 are
    written as these stand for, rounded as they were in training.

    Args:
      path: the folder, which is created if needed. Files in it are replaced, each in one step.
      model: a model whose head has the same input as the classifier of transformers, such as a ViT with a class token;
        without an adapter, or with one that merges. Left untouched.
      labels: the names of the outputs, in order; None for LABEL_0, LABEL_1, ...; a language model has none.
      processor: the preparation of images, such as `surm.load_run(DIR).task.processor`, which is written as
        preprocessor_config.json. With None the file is not written, and that of the base should be copied.
      tokenizer: a folder with a tokenizer's files, such as the base's, or a tokenizer.json, such as
        `surm.load_run(DIR).task.tokenizer`. The files are copied, with a chat template and a generation_config.json in
        the folder; with None nothing is copied.
      dtype: `float32`, or `bfloat16` or `float16` for files of half the size. The update is added in float32, and the
        sum is rounded once: an update much smaller than the weights is lost in most of them.
      beside: other files by name. `export_merged(path, run.model, **run.beside)` with `run = surm.load_run(DIR)` writes
        all that belongs to a run's model.

    Raises:
      InputError: if transformers has no such classifier (mean pooling, CLIP), if the adapter does not merge, if labels
        are not one different name for each output, if there is no such tokenizer or dtype, or if the path is a file.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r}, expected {', '.join(DTYPES)}")
    naming, reason = names.naming_of_files(model), names.obstacle(model)
    if reason:
        alone = catalogue.of(model).encoder_alone
        of_peft = "; surm export --encoder_only writes it in PEFT's files, without the head" if alone else ""
        raise InputError(f"{reason}. {names.OURS}{of_peft}")
    plain = surgery.detach(surgery.merge(model))
    arrays = {naming.theirs(ours): names.their_array(plain, ours, array)
              for ours, array in names.parameters(plain).items()}  # fmt: skip
    config = _config(plain) | _about_outputs(plain, labels) | ({} if dtype == "float32" else {"torch_dtype": dtype})
    arrays = {key: array.astype(dtype) for key, array in naming.table.together(arrays).items()}
    texts = {CONFIG: config} | ({PROCESSOR: processor.to_json()} if processor else {})
    copies = tokenizer_files.read(tokenizer) if tokenizer is not None else {}
    folder.write(path, {WEIGHTS: arrays}, texts, {**copies, **beside})


def _about_outputs(model: nnx.Module, labels: Sequence[str] | None) -> dict[str, Any]:
    if catalogue.of(model).reads != LANGUAGE:
        return _labels(model.head.kernel.shape[1], labels)
    if labels is not None:
        raise InputError(f"labels={labels!r}, but a language model has none; expected None")
    return {}


def _labels(outputs: int, labels: Sequence[str] | None) -> dict[str, Any]:
    if labels is None:
        labels = [f"LABEL_{index}" for index in range(outputs)]
    if isinstance(labels, str) or len(labels) != outputs:
        raise InputError(f"labels={labels!r}, but the model has {outputs} outputs; expected a name for each")
    if others := [label for label in labels if not isinstance(label, str)]:
        raise InputError(f"labels holds {_listed(others)}; expected strings")
    if repeated := [label for label, count in Counter(labels).items() if count > 1]:
        raise InputError(f"labels names {_listed(repeated)} more than once; expected a different name for each output")
    return {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": "regression" if outputs == 1 else "single_label_classification",
    }


def _listed(labels: Sequence[Any]) -> str:
    more = f" (+{len(labels) - 8} more)" if len(labels) > 8 else ""
    return ", ".join(map(repr, labels[:8])) + more


def _config(model: nnx.Module) -> dict[str, Any]:
    """The config.json that `config_from_hf` reads the model's shape from."""
    about = {"architectures": [names.class_of(model)], "model_type": names.kind_of(model)}
    return about | catalogue.of(model).to_hf(model.config)
