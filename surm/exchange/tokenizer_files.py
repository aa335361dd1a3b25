"""The files of a tokenizer, copied as they are to a model that is exported."""

import json
import os

from etils import epath

from surm import files
from surm.errors import InputError
from surm.exchange.folder import read_object

SAVED, SETTINGS = "tokenizer.json", "tokenizer_config.json"
NAMES = (
    SAVED, SETTINGS, "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt",
    "sentencepiece.bpe.model", "spiece.model", "spm.model",
)  # fmt: skip
"""What transformers keeps a tokenizer in; each has some of them."""

AS_IT_STANDS = "PreTrainedTokenizerFast"  # the class that takes all of tokenizer.json
_SPECIAL = {
    "pad_token": ("[PAD]", "<pad>"), "unk_token": ("[UNK]", "<unk>"), "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"), "mask_token": ("[MASK]", "<mask>"),
}  # fmt: skip


def read(path: str | os.PathLike) -> dict[str, bytes]:
    """What the files of a tokenizer hold, for the folder of another model.

    Args:
      path: a folder with such files, or the weights in one; or a tokenizer.json, which then is used as it stands: the
        class that does so is named beside it.

    Returns:
      The bytes by name.

    Raises:
      InputError: if there are none.
    """
    place = files.path(path)
    if place.is_file() and place.suffix == ".json":
        return {SAVED: place.read_bytes(), SETTINGS: _settings(place).encode()}
    folder = place.parent if place.suffix == ".safetensors" else place
    held = {name: (folder / name).read_bytes() for name in NAMES if (folder / name).is_file()}
    if not held:
        raise InputError(f"no tokenizer in {str(folder)!r}; expected a folder with {SAVED} or {', '.join(NAMES[4:])}")
    return held


def _settings(file: epath.Path) -> str:
    """A tokenizer_config.json that has transformers use a tokenizer.json as it stands, and tells its special tokens."""
    tokens = read_object(file).get("added_tokens") or ()
    there = {token.get("content") for token in tokens if isinstance(token, dict)}
    found = {name: next((text for text in texts if text in there), None) for name, texts in _SPECIAL.items()}
    settings = {"tokenizer_class": AS_IT_STANDS} | {name: text for name, text in found.items() if text}
    return json.dumps(settings, indent=2, allow_nan=False) + "\n"
