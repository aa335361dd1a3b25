"""Copies the files of a tokenizer to an exported model, and records the class that opens them.

transformers takes the class from tokenizer_config.json, or else from the type of the model in the same folder. The
exported model may have another type, so if no file names a class, it is written to tokenizer_config.json.
"""

import json
import os
from typing import Any

from etils import epath

from surm import files
from surm.errors import InputError
from surm.models import gguf

SAVED, SETTINGS, MODEL = "tokenizer.json", "tokenizer_config.json", "config.json"
NAMES = (
    SAVED, SETTINGS, "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt",
    "sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model",
)  # fmt: skip
"""The files in which transformers keeps tokenizers; each tokenizer has some of them."""
OF_LANGUAGE = ("chat_template.jinja", "chat_template.json", "generation_config.json")
"""Files of language models, which are copied along."""

AS_IT_STANDS = "PreTrainedTokenizerFast"  # the class that follows tokenizer.json in everything
_CLASSES = {
    **dict.fromkeys(("bert", "electra", "ernie"), ("BertTokenizer", ("WordPiece", "WordLevel"))),
    "distilbert": ("DistilBertTokenizer", ("WordPiece", "WordLevel")),
    **dict.fromkeys(("roberta", "data2vec-text"), ("RobertaTokenizer", ("BPE",))),
    "camembert": ("CamembertTokenizer", ("Unigram",)),
    "xlm-roberta": ("XLMRobertaTokenizer", ("Unigram",)),
    "gpt2": ("GPT2Tokenizer", ("BPE",)),
    **dict.fromkeys(("qwen2", "qwen3"), ("Qwen2Tokenizer", ("BPE",))),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), ("GemmaTokenizer", ("BPE",))),
}  # by `model_type`: the tokenizer class used in training, and the types of vocabulary in tokenizer.json that it reads
_SPECIAL = {
    "pad_token": ("[PAD]", "<pad>"), "unk_token": ("[UNK]", "<unk>"), "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"), "mask_token": ("[MASK]", "<mask>"),
}  # fmt: skip


def read(path: str | os.PathLike) -> dict[str, bytes]:
    """The contents of a tokenizer's files, for the folder of another model.

    Args:
      path: a folder with such files, or a file of weights in that folder; or a tokenizer.json, which is used unchanged.

    Returns:
      The bytes of each file, by name.

    Raises:
      InputError: if there are no such files.
    """
    place = files.path(path)
    if gguf.is_named(place):
        raise InputError(
            f"{str(path)!r} holds a tokenizer in a form that transformers does not open; surm merge RUN writes it in "
            "another form; in Python, export_merged(path, run.model, **run.beside) with run = surm.load_run(RUN)"
        )
    if place.is_file() and place.suffix == ".json":
        return {SAVED: place.read_bytes(), SETTINGS: _with_class({}, AS_IT_STANDS, files.json_object(place))}
    folder = place.parent if place.suffix == ".safetensors" else place
    held = {name: (folder / name).read_bytes() for name in NAMES if (folder / name).is_file()}
    if not held:
        raise InputError(f"no tokenizer in {str(folder)!r}; expected a folder with {SAVED} or {', '.join(NAMES[4:])}")
    settings, saved = (files.json_object(folder / name) for name in (SETTINGS, SAVED))
    held |= {name: (folder / name).read_bytes() for name in OF_LANGUAGE if (folder / name).is_file()}
    if (settings or {}).get("tokenizer_class"):
        return held
    return held | {SETTINGS: _with_class(settings or {}, _class_of(folder, saved), saved)}


def _class_of(folder: epath.Path, saved: dict[str, Any] | None) -> str:
    """The class that transformers takes for a folder whose tokenizer_config.json names none."""
    config = files.json_object(folder / MODEL) or {}
    name, vocabularies = _CLASSES.get(config.get("model_type"), (AS_IT_STANDS, ()))
    kind = ((saved or {}).get("model") or {}).get("type")
    fits = kind is None or kind in vocabularies
    return config.get("tokenizer_class") or (name if fits else AS_IT_STANDS)


def _with_class(settings: dict[str, Any], name: str, saved: dict[str, Any] | None) -> bytes:
    """A tokenizer_config.json that names its class and, if the class has none by itself, the special tokens."""
    tokens = (saved or {}).get("added_tokens") or ()
    there = {token.get("content") for token in tokens if isinstance(token, dict)} | {*_vocabulary(saved)}
    found = {kind: next((text for text in texts if text in there), None) for kind, texts in _SPECIAL.items()}
    special = {kind: text for kind, text in found.items() if text} if name == AS_IT_STANDS else {}
    return f"{json.dumps(special | settings | {'tokenizer_class': name}, indent=2, allow_nan=False)}\n".encode()


def _vocabulary(saved: dict[str, Any] | None) -> dict[str, int]:
    vocabulary = ((saved or {}).get("model") or {}).get("vocab")
    return vocabulary if isinstance(vocabulary, dict) else {}
