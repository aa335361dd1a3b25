"""Writes a whole merged model as transformers loads it, with the preparation of its pictures."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from flax import nnx

from surm.errors import InputError
from surm.exchange import folder, names, tokenizer_files
from surm.models import catalogue
from surm.models.processor import Processor
from surm.peft import surgery

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"


def export_merged(
    path: str | os.PathLike,
    model: nnx.Module,
    *,
    labels: Sequence[str] | None = None,
    processor: Processor | None = None,
    tokenizer: str | os.PathLike | None = None,
) -> None:
    """Writes a merged model with its head, for `AutoModelForImageClassification` or its counterpart for texts.

    The keys are those of transformers 4, which both versions 4 and 5 read. With its processor or tokenizer beside it
    `transformers.pipeline` opens the folder.

    Args:
      path: the folder; made if absent. Files in it are replaced, each in one step.
      model: one whose head reads what the classifier of transformers reads, such as a ViT with a class token; with an
        adapter that merges, or none. Left untouched.
      labels: what the outputs are called, in order; None for LABEL_0, LABEL_1, ...
      processor: what becomes of pictures before the model reads them, as `surm.load_run(DIR).task.processor`; written
        as preprocessor_config.json. None writes none: copy that of the base then.
      tokenizer: the folder that holds a tokenizer's files, such as the base's, or a tokenizer.json, as
        `surm.load_run(DIR).task.tokenizer`; they are copied. None copies none.

    Raises:
      InputError: if transformers has no such classifier (mean pooling, CLIP), the adapter does not merge, there are not
        as many different labels as outputs, there is no such tokenizer, or the path is a file.
    """
    naming, reason = names.naming_of_files(model), names.obstacle(model)
    if reason:
        alone = catalogue.of(model).encoder_alone
        of_peft = "; surm export --encoder_only writes it in PEFT's files, without the head" if alone else ""
        raise InputError(f"{reason}. {names.OURS}{of_peft}")
    plain = surgery.detach(surgery.merge(model))
    arrays = {naming.theirs(ours): names.their_array(plain, ours, array)
              for ours, array in names.parameters(plain).items()}  # fmt: skip
    outputs = plain.head.kernel.shape[1]
    config = _config(plain) | _labels(outputs, labels)
    arrays = naming.table.together(arrays)
    texts = {CONFIG: config} | ({PROCESSOR: processor.to_json()} if processor else {})
    copies = tokenizer_files.read(tokenizer) if tokenizer is not None else {}
    folder.write(path, {WEIGHTS: arrays}, texts, copies)


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
