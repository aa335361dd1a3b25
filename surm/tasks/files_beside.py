"""The files that belong into the folder of a merged language model: those of its base, and others that are made."""

import json
from typing import Any

from surm import files
from surm.data.tokenizer_files import SAVED_FILE, SETTINGS
from surm.models import gguf
from surm.tasks import special_tokens
from surm.tasks.dialect import Dialect
from surm.tasks.language import Language

GENERATION = "generation_config.json"
_KEPT = ("bos_token", "eos_token", "unk_token", "pad_token")


def of(task: Language) -> dict[str, Any]:
    """Names and makes the files of a run's task.

    Args:
      task: the task, which knows the tokenizer and the chat template.

    Returns:
      Under `tokenizer` the path whose files are copied; None for a GGUF file, which transformers does not open. Under
      `beside` the contents of the other files by name: a generation_config.json with the tokens that end a text, if
      none is copied; and, for a GGUF file, tokenizer.json and tokenizer_config.json, which holds the special tokens and
      the chat template.
    """
    place = files.path(task.tokenizer)
    own = place if place.is_dir() else place.parent
    made = _of_gguf(task) if gguf.is_named(place) else {}
    copied = None if made else task.tokenizer
    if made or place.suffix == ".json" or not (own / GENERATION).is_file():
        made[GENERATION] = _encoded({"eos_token_id": list(Dialect.of(task).ends)})
    return {"tokenizer": copied, "beside": made}


def _of_gguf(task: Language) -> dict[str, bytes]:
    special = {name: text for name, text in special_tokens.texts(task.tokenizer).items() if name in _KEPT}
    settings = special | {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {} if task.template is None else {"chat_template": task.template.source}
    return {SAVED_FILE: task.opened.tokenizer.to_str(pretty=True).encode(), SETTINGS: _encoded(settings)}


def _encoded(value: dict[str, Any]) -> bytes:
    return f"{json.dumps(value, indent=2, ensure_ascii=False)}\n".encode()
