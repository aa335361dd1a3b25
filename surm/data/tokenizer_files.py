"""Reads the settings in a tokenizer's files and combines them in transformers 5's order of precedence.

    tokenizer_config.json     class, special tokens, lower case, limit, added_tokens_decoder (added tokens)
    special_tokens_map.json   special tokens, before those of tokenizer_config.json; only without added_tokens_decoder
    added_tokens.json         added tokens; only without added_tokens_decoder
    tokenizer.json            vocabulary and merges; added tokens, after all others and only without
                              added_tokens_decoder; the rest only if the class does not build the tokenizer itself
    vocab.txt, vocab.json     the vocabulary if there is no tokenizer.json (with merges.txt for BPE)
    config.json               the class if tokenizer_config.json names none

Source: `PreTrainedTokenizerBase._from_pretrained` and `AutoTokenizer.from_pretrained` of transformers 5.23.
"""

import dataclasses
import json
from typing import Any

from etils import epath
from tokenizers import AddedToken

from surm import files
from surm.errors import InputError, few
from surm.machine.notes import say

SAVED_FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SAVED = "TokenizersBackend"  # transformers' class that follows tokenizer.json in everything
ITSELF = f"config.data.tokenizer may name {SAVED_FILE} itself, which is then used unchanged"

CLASSES: dict[str, str] = {
    **dict.fromkeys(("BertTokenizer", "ElectraTokenizer", "SqueezeBertTokenizer"), "BertTokenizer"),
    "DistilBertTokenizer": "DistilBertTokenizer",
    **dict.fromkeys(("RobertaTokenizer", "LongformerTokenizer"), "RobertaTokenizer"),
    "CamembertTokenizer": "CamembertTokenizer",
    "XLMRobertaTokenizer": "XLMRobertaTokenizer",
    **{name: name for name in ("GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer", "GemmaTokenizer")},
    **dict.fromkeys((SAVED, "PreTrainedTokenizer", "PythonBackend"), SAVED),
}
"""The supported class for each `tokenizer_class`, whose name is given without "Fast" at the end."""

CLASS_OF_MODEL: dict[str, str] = {
    **dict.fromkeys(("bert", "electra", "ernie"), "BertTokenizer"),
    "distilbert": "DistilBertTokenizer",
    **dict.fromkeys(("roberta", "data2vec-text"), "RobertaTokenizer"),
    "camembert": "CamembertTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "gpt2": "GPT2Tokenizer",
    **dict.fromkeys(("qwen2", "qwen3"), "Qwen2Tokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("llama", "smollm3", "mistral", "phi3", "internlm2"), SAVED),
}
"""The class for each `model_type` of config.json, if no `tokenizer_class` is given."""

ALWAYS = {"mistral": SAVED, "phi3": SAVED, "internlm2": SAVED, "qwen2": "Qwen2Tokenizer"}
"""The class of models whose published `tokenizer_class` transformers 5.23 passes over."""

FOLLOWED = {
    *SPECIAL, "tokenizer_class", "do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space",
    "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens",
    "model_max_length", "max_len", "truncation_side", "model_input_names", "split_special_tokens",
    "add_bos_token", "add_eos_token", "legacy",
    "padding_side", "do_basic_tokenize", "never_split",  # unusual values of these are reported
    "init_inputs", "auto_map", "fast_tokenizer_files",  # refused
}  # fmt: skip
# These name files, or matter only for generation, decoding, offsets or single calls.
NO_MATTER = {
    "name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file", "is_local", "backend",
    "local_files_only", "processor_class", "chat_template", "response_template", "response_schema",
    "clean_up_tokenization_spaces", "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
    "errors", "trim_offsets", "verbose", "return_token_type_ids", "stride",
    "max_length", "truncation_strategy", "truncation", "padding", "pad_to_multiple_of", "pad_token_type_id",
    "pad_token_id", "return_tensors", "return_attention_mask", "use_fast", "sp_model_kwargs",
    "tokenizer_type", "device_map", "slow_tokenizer_class", "files_loaded", "transformers_version", "_commit_hash",
    "from_slow", "use_auth_token", "cache_dir", "force_download", "revision", "trust_remote_code", "subfolder",
}  # fmt: skip
_ENDS = ("add_bos_token", "add_eos_token")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


@dataclasses.dataclass(frozen=True)
class Stated:
    """The combined settings of a tokenizer's files.

    Attributes:
      folder: the folder of the files.
      kind: the class, a value of `CLASSES`.
      named: whether a file names the class; otherwise it follows from the type of the model.
      settings: the settings, in the spelling of tokenizer_config.json.
      added: the tokens to be added, by their numbers in the files.
      saved: the contents of tokenizer.json; None if there is no such file.
      bare: whether the folder has neither tokenizer_config.json nor config.json.
    """

    folder: epath.Path
    kind: str
    named: bool
    settings: dict[str, Any]
    added: dict[int, AddedToken]
    saved: dict | None
    bare: bool


def folder_of(place: epath.Path | None) -> epath.Path | None:
    """The folder whose files go with a path: a folder itself, or that of a .safetensors file; None for any other path.

    Any other file, such as a tokenizer.json, is used as it stands.
    """
    if place is None or place.is_dir():
        return place
    return place.parent if place.suffix == ".safetensors" else None


def read(folder: epath.Path) -> Stated:
    """Reads the files of a tokenizer.

    Args:
      folder: the folder of the tokenizer.

    Returns:
      Their combined settings.

    Raises:
      InputError: if a file cannot be read, names code to run, or has a class or value that is not supported.
    """
    stated, config = files.json_object(folder / SETTINGS), files.json_object(folder / "config.json") or {}
    saved = files.json_object(folder / SAVED_FILE)
    settings = dict(stated or {})
    _check_plain(settings)
    kind = _class_of(settings, config, saved)
    named = bool(settings.get("tokenizer_class") or config.get("tokenizer_class"))
    settings = _renamed(settings)
    if "added_tokens_decoder" in settings:
        added = _numbered(SETTINGS, settings["added_tokens_decoder"])
    else:
        settings |= _special_map(folder, settings)
        added = _legacy(folder, settings) | _of_saved(saved)
    settings = {key: _token(value) for key, value in settings.items()}
    by_text = {str(token): token for token in added.values()}
    for key in SPECIAL:
        if (value := settings.get(key)) is not None:
            if not isinstance(value, str | AddedToken):
                raise InputError(f"{str(folder / SETTINGS)!r} says {key}={value!r}; expected a text")
            settings[key] = by_text.get(str(value), value)
    return Stated(folder, kind, named, settings, added, saved, bare=stated is None and not config)


def _check_plain(settings: dict) -> None:
    """Raises InputError for settings that cannot be followed, and reports those that are ignored."""
    if settings.get("auto_map"):
        raise InputError(f"{SETTINGS} names its own code (auto_map), which is never run; {ITSELF}")
    if settings.get("init_inputs"):
        raise InputError(f"{SETTINGS} says init_inputs={settings['init_inputs']!r}; expected none")
    if any(name != SAVED_FILE for name in settings.get("fast_tokenizer_files") or ()):
        raise InputError(f"{SETTINGS} says fast_tokenizer_files={settings['fast_tokenizer_files']!r}; {ITSELF}")
    if settings.get("padding_side", "right") != "right":
        say(f"{SETTINGS} says padding_side={settings['padding_side']!r}; rows are padded on the right nevertheless")
    if settings.get("do_basic_tokenize") is False or settings.get("never_split"):
        say(f"{SETTINGS} sets do_basic_tokenize or never_split, which are ignored, as in transformers 5")
    known = FOLLOWED | NO_MATTER
    if unknown := sorted(key for key in settings if key not in known and not key.endswith("_token")):
        say(f"{SETTINGS} says {few(unknown)}, which is unknown and ignored")


def _class_of(settings: dict, config: dict, saved: dict | None) -> str:
    name, model = settings.get("tokenizer_class") or config.get("tokenizer_class"), config.get("model_type")
    if model in ALWAYS:
        return ALWAYS[model]
    if name is None:
        if model is not None and model not in CLASS_OF_MODEL:
            known = ", ".join(CLASS_OF_MODEL)
            given = f"no tokenizer_class, and config.json says model_type={model!r}"
            raise InputError(f"{given}; supported: {known}; {ITSELF}")
        return CLASS_OF_MODEL[model] if model else SAVED
    if name == "PreTrainedTokenizerFast":
        return SAVED
    if not isinstance(name, str) or name.removesuffix("Fast") not in CLASSES:
        raise InputError(f"tokenizer_class={name!r} is not supported; supported: {', '.join(CLASSES)}; {ITSELF}")
    kind = CLASSES[name.removesuffix("Fast")]
    return SAVED if kind == "LlamaTokenizer" and _of_bytes(saved) else kind


def _of_bytes(saved: dict | None) -> bool:
    """Whether tokenizer.json merges bytes, as that of Llama 3 does, which names the class of Llama 2."""
    return any('"ByteLevel"' in json.dumps((saved or {}).get(part)) for part in ("pre_tokenizer", "decoder"))


def _renamed(settings: dict) -> dict:
    """The settings with today's names for further special tokens."""
    settings = {key: value for key, value in settings.items() if key not in ("tokenizer_class", "init_inputs")}
    if "additional_special_tokens" in settings and not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    named = {
        key: settings.pop(key)
        for key in list(settings)
        if key.endswith("_token") and key not in (*SPECIAL, *_ENDS) and isinstance(settings[key], str)
    }
    if isinstance(settings.get("extra_special_tokens"), dict):
        named |= settings.pop("extra_special_tokens")
    return settings | ({"model_specific_special_tokens": named} if named else {})


def _special_map(folder: epath.Path, settings: dict) -> dict[str, Any]:
    """The settings that special_tokens_map.json changes."""
    changes: dict[str, Any] = {}
    for key, value in (files.json_object(folder / "special_tokens_map.json") or {}).items():
        if isinstance(value, dict) and key != "extra_special_tokens":
            value = _special(value)
        elif isinstance(value, list) and key == "extra_special_tokens":
            value = [*(settings.get(key) or []), *(_special(token) for token in value)]
        changes[key] = value
    if isinstance(changes.get("extra_special_tokens"), dict):
        named = settings.get("model_specific_special_tokens", {}) | changes.pop("extra_special_tokens")
        changes["model_specific_special_tokens"] = named
    return changes


def _special(token: object) -> object:
    return _added_token("special_tokens_map.json", token | {"special": True}) if isinstance(token, dict) else token


def _legacy(folder: epath.Path, settings: dict) -> dict[int, AddedToken]:
    """The tokens of added_tokens.json, by number."""
    special = {str(settings[key]) for key in SPECIAL if settings.get(key)}
    special |= {str(token) for token in settings.get("extra_special_tokens") or []}
    found = {}
    for text, index in (files.json_object(folder / "added_tokens.json") or {}).items():
        if not isinstance(index, int):
            raise InputError(f"added_tokens.json gives {text!r} the number {index!r}; expected a whole number")
        found[index] = AddedToken(text, normalized=text not in special, special=text in special)
    return found


def _of_saved(saved: dict | None) -> dict[int, AddedToken]:
    tokens = (saved or {}).get("added_tokens") or []
    if not all(isinstance(token, dict) and isinstance(token.get("id"), int) for token in tokens):
        raise InputError(f"{SAVED_FILE} has added_tokens that are not objects with a number; the file is damaged")
    return _numbered(SAVED_FILE, {token["id"]: token for token in tokens})


def _numbered(file: str, tokens: object) -> dict[int, AddedToken]:
    if not isinstance(tokens, dict) or not all(isinstance(token, dict) for token in tokens.values()):
        raise InputError(f"{file} has added tokens that are not objects by their number")
    if not all(str(index).isdecimal() for index in tokens):
        raise InputError(f"{file} has added tokens under {few(sorted(map(str, tokens)))}; expected numbers")
    return {int(index): _added_token(file, token) for index, token in tokens.items()}


def _added_token(file: str, fields: dict) -> AddedToken:
    fields = {key: value for key, value in fields.items() if key not in ("id", "__type")}
    flags = all(isinstance(fields.get(name, False), bool) for name in _FLAGS)
    if fields.keys() - {"content", *_FLAGS} or not isinstance(fields.get("content"), str) or not flags:
        raise InputError(f"{file} describes a token as {fields!r}; expected its content, and {few(_FLAGS)} by name")
    return AddedToken(**fields)


def _token(value: object) -> object:
    """The value, in which every object that describes a token is replaced by an `AddedToken`."""
    if isinstance(value, dict) and value.get("__type") == "AddedToken":
        return _added_token(SETTINGS, value)
    if isinstance(value, list):
        return [_token(item) for item in value]
    return {key: _token(item) for key, item in value.items()} if isinstance(value, dict) else value
