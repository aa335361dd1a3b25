"""Texts that a decoder writes: prompts as tokens, texts in pieces, stop strings, chats."""

import numpy as np
import pytest
import tokenizers
from flax import nnx
from tokenizers import decoders, models, pre_tokenizers, processors

from surm import InputError
from surm.data.tokenizer import Opened
from surm.models import decoder
from surm.models.sampling import Sampling
from surm.tasks import generated
from surm.tasks.chat import ChatTemplate
from surm.tasks.dialect import Dialect
from surm.tasks.generated import Reader, Request
from surm.tasks.language import Language

TEXT = "Ein Äffchen 🐒 sagt: naïve 中文! End."


MARKED = ChatTemplate(
    "{% for one in messages %}{{ '<' + one.role + '>' + (one.content | upper if shout else one.content) + '<end>' }}"
    "{% endfor %}{{ '<assistant>' if add_generation_prompt }}",
    "'a test'",
)


@pytest.fixture(scope="module")
def tokenizer() -> tokenizers.Tokenizer:
    """One token a byte, and three that are special."""
    made = tokenizers.Tokenizer(
        models.BPE({sign: n for n, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<end>", "<user>", "<assistant>"])
    return made


@pytest.fixture(scope="module")
def plain(tokenizer) -> Dialect:
    return Dialect(tokenizer, None, (256,))


@pytest.fixture(scope="module")
def chatting(tokenizer) -> Dialect:
    return Dialect(tokenizer, MARKED, (256,))


@pytest.fixture(scope="module")
def model() -> decoder.Decoder:
    return decoder.Decoder(decoder.DecoderConfig(259, 16, 1, 2, 1, 8, 24, positions=64, tied=True), rngs=nnx.Rngs(0))


def read(dialect: Dialect, tokens: list[int], stop: tuple[str, ...] = (), size: int = 1) -> tuple[list[str], Reader]:
    reader = Reader(dialect, stop)
    steps = range(size, len(tokens) + size, size)
    return [reader.read(tokens[:n], last=n >= len(tokens)) for n in steps], reader


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pieces_are_the_text_and_hold_no_half_character(plain, size):
    pieces, reader = read(plain, plain.tokens(TEXT), size=size)
    assert "".join(pieces) == TEXT == reader.text and not any("\ufffd" in piece for piece in pieces)


def of_words() -> tokenizers.Tokenizer:
    """Words with a sign for the space before them, bytes, and a special token, decoded as Llama 2's are."""
    words = ["<unk>", "▁", "▁a", "b", "▁c", *(f"<0x{byte:02X}>" for byte in range(256))]
    made = tokenizers.Tokenizer(
        models.BPE({word: number for number, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<s>"])
    return made


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_pieces_are_the_text_for_words_with_a_space_before_them_too(size):
    opened, rng = of_words(), np.random.default_rng(size)
    monkey = [5 + byte for byte in "🐒".encode()]
    parts = [[1], [2], [3], [4], monkey, [opened.token_to_id("<s>")]]
    for _ in range(40):
        tokens = [token for part in rng.integers(0, len(parts), 12) for token in parts[part]]
        pieces, reader = read(Dialect(opened, None, ()), tokens, size=size)
        assert "".join(pieces) == reader.text == opened.decode(tokens)


def test_a_long_text_is_not_decoded_anew_for_every_piece(plain, monkeypatch):
    text, decoded = Dialect.text, []
    monkeypatch.setattr(Dialect, "text", lambda self, tokens: decoded.append(len(tokens)) or text(self, tokens))
    read(plain, plain.tokens("ab 🐒" * 50), size=4)
    assert max(decoded) < 20


def test_what_is_no_character_is_shown_at_the_end(plain):
    tokens = plain.tokens("ab🐒")[:-1]
    pieces, _ = read(plain, tokens)
    assert pieces[:-1] == ["a", "b", "", ""] and set(pieces[-1]) == {"\ufffd"}
    assert "".join(read(plain, [*tokens, *plain.tokens("c")])[0]).endswith("\ufffdc")


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("sagt",), "Ein Äffchen 🐒 "),
        (("zzz", "naïve", "sagt: n"), "Ein Äffchen 🐒 "),
        (("End.",), TEXT.removesuffix("End.")),
        (("End..",), TEXT),
        (("Ein",), ""),
        (("🐒",), "Ein Äffchen "),
    ],
)
def test_a_text_ends_before_a_stop_string_of_which_nothing_is_shown(plain, stop, expected):
    tokens = plain.tokens(TEXT)
    for size in (1, 4, 100):
        pieces, reader = read(plain, tokens, stop, size)
        assert "".join(pieces) == expected == reader.text and reader.stopped == (expected != TEXT)


def test_a_string_is_one_turn_of_the_user_unless_it_is_raw(chatting, plain, tokenizer):
    turn = tokenizer.encode("<user>Hi<end><assistant>").ids
    assert chatting.tokens("Hi") == turn == chatting.tokens([{"role": "user", "content": "Hi"}])
    assert chatting.tokens("Hi", raw=True) == plain.tokens("Hi") == tokenizer.encode("Hi").ids
    assert chatting.text(turn) == "Hi"
    shouting = Dialect(tokenizer, MARKED, (), arguments={"shout": True})
    assert shouting.tokens("Hi") == tokenizer.encode("<user>HI<end><assistant>").ids


def test_a_raw_prompt_goes_on_although_the_tokenizer_ends_every_text(tokenizer):
    ending = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    ending.post_processor = processors.TemplateProcessing(
        single="<user> $A <end>", special_tokens=[("<user>", 257), ("<end>", 256)]
    )
    begun = Dialect(ending, None, (256,))
    assert begun.tokens("Hi") == [257, *tokenizer.encode("Hi").ids]
    assert begun.tokens("Hi<end>") == [257, *tokenizer.encode("Hi").ids, 256]  # which the prompt itself says


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "a prompt is [], expected a string, or a list of messages such as {'role': 'user', 'content': 'Hello'}"),
        ([{"role": "user"}], "a prompt is [{'role': 'user'}], expected a string, or a list of messages such as "
                             "{'role': 'user', 'content': 'Hello'}"),
    ],
)  # fmt: skip
def test_other_prompts_are_refused_in_a_line(chatting, given, message):
    with pytest.raises(InputError) as error:
        chatting.tokens(given)
    assert str(error.value) == message


def test_a_chat_needs_a_template(plain):
    with pytest.raises(InputError, match="a prompt is a chat, but the model has no chat template; expected a string"):
        plain.tokens([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stop": ("",)}, r"stop=\('',\), expected strings that are not empty"),
        ({"batch_size": 0}, "batch_size=0, expected a whole number of at least 1"),
    ],
)
def test_requests_are_refused_in_a_line(given, message):
    with pytest.raises(InputError, match=message):
        Request(**given)


def test_the_answers_of_a_batch_are_found_in_every_text_of_a_row():
    """Rows of two texts, of one text with two answers, and of padding."""
    batch = {"tokens": [[1, 2, 3, 4, 5, 6], [11, 12, 13, 14, 15, 16], [0] * 6],
             "targets": [[2, 3, 0, 5, 6, 0], [12, 13, 14, 15, 16, 0], [0] * 6],
             "segments": [[1, 1, 1, 2, 2, 2], [1] * 6, [0] * 6],
             "weight": [[0, 1, 0, 1, 1, 0], [0, 1, 0, 1, 1, 0], [0] * 6],
             "partial": [[0] * 6, [0] * 6, [0] * 6]}  # fmt: skip
    found = [*generated.answers_of({name: np.array(rows) for name, rows in batch.items()})]
    assert found == [([1, 2], [3]), ([4], [5, 6]), ([11, 12], [13]), ([11, 12, 13, 14], [15, 16])]
    batch["partial"][1] = [0, 0, 0, 1, 1, 0]
    assert [*generated.answers_of({name: np.array(rows) for name, rows in batch.items()})] == found[:3]


def test_a_share_of_answers_needs_one_that_is_whole(model, plain):
    batch = {name: np.ones((1, 2), np.int32) for name in ("tokens", "targets", "segments", "weight", "partial")}
    with pytest.raises(InputError, match="every answer of the held-out data is cut; expected a larger last length in"):
        generated.exact_match(model, plain, [batch], Request())


@pytest.mark.parametrize(
    ("behind", "stop"), [("<end>", ()), ("\n### End", ("### End",)), ("\n### End<end>", ("### End",))]
)
def test_an_answer_is_right_whatever_closes_it(model, tokenizer, monkeypatch, behind, stop):
    dialect = Dialect(tokenizer, None, (256,), stop)
    tokens = tokenizer.encode(f"Q:SELECT 1{behind}").ids
    batch = {"tokens": tokens[:-1], "targets": tokens[1:], "segments": [1] * (len(tokens) - 1),
             "weight": [0] + [1] * (len(tokens) - 2), "partial": [0] * (len(tokens) - 1)}  # fmt: skip
    batches = [{name: np.array([row]) for name, row in batch.items()}]
    for written, share in (("SELECT 1\n", 1.0), ("SELECT 2", 0.0)):
        monkeypatch.setattr(generated, "texts", lambda *given, written=written: [written])
        assert generated.exact_match(model, dialect, batches, Request()) == share


@pytest.mark.parametrize(
    ("closing", "ends", "stop"),
    [
        ("<end>", (256,), ()),
        ("<end>\n<assistant>", (256,), ()),  # the form of Phi-3: text() shows neither, so no string could be found
        ("\n### End\n<end>", (256,), ("### End",)),
        ("\n### End\n", (), ("### End",)),
        ("\n\n", (), ()),
    ],
)
def test_a_text_ends_at_the_first_special_token_of_a_closing_or_the_words_before(tokenizer, closing, ends, stop):
    template = ChatTemplate("{% for one in messages %}{{ one.role + ': ' + one.content + closing }}{% endfor %}", "'a'")
    task = Language.__new__(Language)
    task.opened, task.template, task.arguments, task.ends = Opened(tokenizer), template, {"closing": closing}, (258,)
    found = Dialect.of(task)
    assert (found.ends, found.stop, found.tokenizer) == ((*ends, 258), stop, tokenizer)


def test_texts_are_in_the_order_of_the_prompts_whatever_the_batches(model, plain):
    prompts = [plain.tokens(text) for text in ("a longer one than these", "x", "yy", "zzz", "wxyz")]
    request = Request(max_new_tokens=8, sampling=Sampling(temperature=1.0), seed=2)
    one_by_one = generated.texts(lambda rows: model, plain, prompts, Request(**{**vars(request), "batch_size": 1}))
    asked = []
    texts = generated.texts(
        lambda rows: asked.append(rows) or model, plain, prompts, Request(**{**vars(request), "batch_size": 2})
    )
    assert texts == one_by_one and len({*texts}) > 1
    assert asked == [[1, 2], [3, 4], [0]]


def test_a_stream_is_the_text_and_stop_strings_end_it(model, plain):
    request = Request(max_new_tokens=30, sampling=Sampling(temperature=0.2), seed=1)
    prompt = plain.tokens("Hello")
    whole = generated.texts(lambda rows: model, plain, [prompt], request)[0]
    pieces = [*generated.pieces(model, plain, prompt, request)]
    assert "".join(pieces) == whole and len(pieces) > 2
    stop = whole[7:9]
    stopped = Request(**{**vars(request), "stop": (stop,)})
    expected = whole[: whole.index(stop)]
    assert generated.texts(lambda rows: model, plain, [prompt], stopped) == [expected]
    assert "".join(generated.pieces(model, plain, prompt, stopped)) == expected
