"""Folders with a decoder's tokenizer: which class is followed, and what it does; tests/parity asks transformers."""

import json
import pathlib

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from surm.data import tokenizer
from surm.errors import InputError

WORDS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]
MERGES = [("a", "b"), ("▁", "a"), ("▁a", "b"), ("▁", "ab")]


def _folder(path: pathlib.Path, model: str, settings: dict, made: Tokenizer | None) -> tokenizer.Opened:
    if made is not None:
        made.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "config.json").write_text(json.dumps({"model_type": model}))
    return tokenizer.opened(path)


def _characters() -> Tokenizer:
    """As in Llama 2's tokenizer.json: every part of a text gets a space in front by the normaliser."""
    numbers = {word: number for number, word in enumerate(WORDS)}
    made = Tokenizer(models.BPE(vocab=numbers, merges=MERGES, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.add_special_tokens([AddedToken(word, normalized=False) for word in WORDS[:3]])
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(back)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def _bytes() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*alphabet, "ab", "Ġab"])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("Ġ", "ab")]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|end|>", normalized=False)])
    return made


CASES = {
    "llama, a space in front of the text": (
        "llama", {"tokenizer_class": "LlamaTokenizer"}, ["<s>", "▁ab", "</s>", "a"],
    ),
    "llama, a space in front of each part": (
        "llama", {"tokenizer_class": "LlamaTokenizerFast", "legacy": True}, ["<s>", "▁ab", "</s>", "▁a"],
    ),
    "llama, no space": (
        "llama", {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}, ["<s>", "ab", "</s>", "a"],
    ),
    "mistral, tokenizer.json whatever the class": (
        "mistral", {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}, ["<s>", "▁ab", "</s>", "▁a"],
    ),
    "gemma, no space": (
        "gemma2",
        {"tokenizer_class": "GemmaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>",
         "mask_token": "<unk>"},
        ["<s>", "ab", "</s>", "a"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_spaces_are_put_as_the_class_puts_them(tmp_path, case):
    model, settings, expected = CASES[case]
    opened = _folder(tmp_path, model, settings, _characters())
    assert opened.tokenizer.encode("ab</s>a").tokens == expected
    assert opened.tokenizer.decode(opened.tokenizer.encode("ab é").ids) == "ab é" and not opened.segmented


@pytest.mark.parametrize(
    ("model", "name", "composed"),
    [("llama", "LlamaTokenizer", False), ("qwen3", "Qwen2Tokenizer", True), ("qwen2", "PreTrainedTokenizerFast", True),
     ("gpt2", "GPT2Tokenizer", False)],
)  # fmt: skip
def test_merges_of_bytes_are_followed_under_every_name(tmp_path, model, name, composed):
    settings = {
        "tokenizer_class": name,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|end|>"),
    }
    opened = _folder(tmp_path, model, settings, _bytes()).tokenizer
    assert opened.encode("ab ab<|end|>ab").tokens == ["ab", "Ġab", "<|end|>", "ab"]
    assert opened.decode(opened.encode("ab é 12").ids) == "ab é 12"
    assert (opened.encode("e\u0301").ids == opened.encode("é").ids) == composed


def test_without_tokenizer_json_a_text_begins_as_the_settings_say(tmp_path):
    made = _bytes()
    (tmp_path / "vocab.json").write_text(json.dumps(made.get_vocab()))
    (tmp_path / "merges.txt").write_text("a b\nĠ ab")
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": "<|end|>",
        "eos_token": "<|end|>",
        "unk_token": "<|end|>",
    }
    assert _folder(tmp_path, "gpt2", settings, None).tokenizer.encode("ab").tokens == ["ab"]
    both = settings | {"add_bos_token": True, "add_eos_token": True}
    assert _folder(tmp_path, "gpt2", both, None).tokenizer.encode("ab").tokens == ["<|end|>", "ab", "<|end|>"]
    with pytest.raises(InputError, match="add_bos_token='yes'; expected true or false"):
        _folder(tmp_path, "gpt2", settings | {"add_bos_token": "yes"}, None)
