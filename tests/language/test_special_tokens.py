"""The tokens that end a text: which files name them, and which is learned."""

import dataclasses
import json
import pathlib

import pytest

from surm.errors import InputError
from surm.models.weights import open_weights
from surm.tasks import special_tokens
from tests.language import small_decoder
from tests.models import gguf_files

TOKENIZER = small_decoder.tokenizer()
TEXT, BEGIN, TURN = map(TOKENIZER.token_to_id, small_decoder.SPECIAL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return small_decoder.write(tmp_path_factory.mktemp("weights"), depth=1)


def stated(place: pathlib.Path, **given: object) -> pathlib.Path:
    """Writes the ends that files of a folder name: those of tokenizer_config.json and of both configurations."""
    place.mkdir(exist_ok=True)
    for name, value in given.items():
        file = place / f"{name}.json"
        old = json.loads(file.read_text()) if file.is_file() else {}
        key = "eos_token" if name == "tokenizer_config" else "eos_token_id"
        file.write_text(json.dumps(old | {key: value}))
    TOKENIZER.save(str(place / "tokenizer.json"))
    return place


def test_every_file_counts_and_the_tokenizers_own_end_comes_first(folder, tmp_path):
    weights = dataclasses.replace(
        open_weights(str(folder)), path=tmp_path, config={"eos_token_id": [TEXT, 99999, True]}
    )
    place = stated(tmp_path, tokenizer_config="<|im_end|>", generation_config=[BEGIN, TEXT])
    assert special_tokens.ends(place, TOKENIZER, weights) == (TURN, TEXT, BEGIN)
    assert special_tokens.ends(place / "tokenizer.json", TOKENIZER) == ()


def test_the_files_of_the_weights_count_for_another_tokenizer_if_it_has_such_a_token(folder, tmp_path):
    weights = dataclasses.replace(open_weights(str(folder)), path=stated(tmp_path / "w", generation_config=[TEXT, 7]),
                                  config={"eos_token_id": BEGIN})  # fmt: skip
    place = stated(tmp_path / "tokenizer", tokenizer_config="<|im_end|>")
    assert special_tokens.ends(place, TOKENIZER, weights) == (TURN, BEGIN, TEXT)


def test_a_named_end_that_the_tokenizer_lacks_is_not_passed_over(folder, tmp_path):
    place = stated(tmp_path, tokenizer_config="</s>")
    with pytest.raises(InputError, match="names eos_token='</s>', which is none of its tokens; expected one of them"):
        special_tokens.ends(place, TOKENIZER)
    weights = dataclasses.replace(open_weights(str(folder)), path=place, config={"eos_token_id": TURN})
    assert special_tokens.ends(place, TOKENIZER, weights) == (TURN,)
    assert special_tokens.ends(stated(place, config=[TEXT, TURN]), TOKENIZER) == (TEXT, TURN)


def test_a_gguf_file_names_the_ends_of_turns_and_messages(tmp_path):
    pytest.importorskip("gguf")
    words = sorted(TOKENIZER.get_vocab(), key=TOKENIZER.token_to_id)
    numbers = {"eos": TEXT, "eot": TURN, "eom": BEGIN}
    entries = {"tokenizer.ggml.tokens": words} | {f"tokenizer.ggml.{name}_token_id": of for name, of in numbers.items()}
    file = gguf_files.write(tmp_path / "x.gguf", "llama", entries, {})
    assert special_tokens.ends(file, TOKENIZER) == (TEXT, TURN, BEGIN)
