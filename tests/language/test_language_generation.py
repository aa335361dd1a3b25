"""A run on chats answers: from Python, on the command line, in a chat, and by an adapter of each prompt's own."""

import io
import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

import surm
from surm import InputError, PeftSpec, train
from surm import __main__ as command
from surm.cli import generating
from surm.models.generation import generate
from surm.tasks.dialect import Dialect
from surm.training import writing
from tests.language import small_decoder
from tests.peft.randomize import randomize

CONFIG = "from surm import config\n\n\ndef get_config():\n    return config.default()\n"
QUESTIONS, ANSWERS = (list(column) for column in zip(*small_decoder.QUESTIONS, strict=True))
SHORT = {"max_new_tokens": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """The folder of a run that has learned the answers."""
    place = tmp_path_factory.mktemp("generation")
    weights, chats = small_decoder.write(place / "weights"), small_decoder.write_chats(place / "chats")
    (place / "config.py").write_text(CONFIG)
    given = (f"config={place / 'config.py'}", f"config.data.source={chats}", f"config.model.weights={weights}",
             f"workdir={place / 'run'}", "config.data.lengths=48", "config.peft.method=full",
             "config.optim.learning_rate=1e-2", "config.optim.epochs=160", "config.optim.batch_size=8",
             "config.optim.gradient_clip=1.0", "config.optim.schedule=linear", "config.data.generate=True",
             "config.data.generate_tokens=12")  # fmt: skip
    assert train.main(["surm.train", *(f"--{one}" for one in given)]) == 0
    return place / "run"


@pytest.fixture(scope="module")
def run(folder):
    return surm.load_run(folder)


@pytest.fixture(scope="module")
def texts(run) -> list[str]:
    return run.generate(QUESTIONS, **SHORT)


def printed(capsys, *given: str, status: int = 0) -> str:
    assert command.main(["generate", *given]) == status
    out, err = capsys.readouterr()
    assert bool(err) == bool(status)
    return err if status else out


def test_the_answers_are_what_it_has_learned(texts):
    assert np.mean([text == answer for text, answer in zip(texts, ANSWERS, strict=True)]) > 0.8


def test_the_exact_match_of_a_result_is_the_share_of_right_texts(folder, texts):
    result = json.loads((folder / "result.json").read_text())
    assert result["eval"]["exact_match"] == np.mean([texts[row] == ANSWERS[row] for row in range(7, 12)])
    assert result["metrics"]["exact_match"] == {"better": "more", "unit": "%"} and result["metric"] == "loss"


@pytest.mark.slow
def test_every_member_of_a_population_writes_its_own_answers(folder, tmp_path):
    config = json.loads((folder / "result.json").read_text())["config"]
    given = (f"config={folder.parent / 'config.py'}", f"config.data.source={config['data']['source']}",
             f"config.model.weights={config['model']['weights']}", f"workdir={tmp_path / 'two'}",
             "config.data.lengths=48", "config.peft.method=full", "config.optim.epochs=60", "config.optim.batch_size=8",
             "config.optim.gradient_clip=1.0", "config.data.generate=True", "config.data.generate_tokens=12",
             "config.population=learning_rate=1e-2|1e-5")  # fmt: skip
    assert train.main(["surm.train", *(f"--{one}" for one in given)]) == 0
    for member in sorted((tmp_path / "two" / "members").iterdir()):
        right = [
            text == answer
            for text, answer in zip(surm.load_run(member).generate(QUESTIONS[7:], **SHORT), ANSWERS[7:], strict=True)
        ]
        assert json.loads((member / "result.json").read_text())["eval"]["exact_match"] == np.mean(right)


def test_a_string_is_a_message_of_the_user_and_one_prompt_may_stand_alone(run, texts):
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    assert run.generate(chats, **SHORT) == texts
    assert run.generate(QUESTIONS[1], **SHORT) == texts[1:2] == run.generate(chats[1], **SHORT)
    written = f"<|im_start|>user\n{QUESTIONS[1]}<|im_end|>\n<|im_start|>assistant\n"
    assert run.generate([written], raw=True, **SHORT) == texts[1:2] != run.generate(QUESTIONS[1:2], raw=True, **SHORT)


def test_a_stream_and_stop_strings(run, texts):
    pieces = [*run.generate(QUESTIONS[3:4], stream=True, **SHORT)]
    assert "".join(pieces) == texts[3] == "red green one"
    assert run.generate(QUESTIONS[3:4], stop=" gr", **SHORT) == ["red"]
    assert [*run.generate(QUESTIONS[3], stop=["zzz", "n"], stream=True, **SHORT)] == ["red gree"]


def test_random_texts_of_the_same_seed_are_the_same(run):
    hot = {"temperature": 3.0, "top_k": 200, **SHORT}
    first = run.generate(QUESTIONS[:2], seed=1, **hot)
    assert first == run.generate(QUESTIONS[:2], seed=1, **hot) == run.generate(QUESTIONS[:3], seed=1, **hot)[:2]
    assert first != run.generate(QUESTIONS[:2], seed=2, **hot)


def test_every_prompt_can_have_an_adapter_of_its_own(run, texts):
    other = randomize(run.model, 0, 0.2)
    adapters = surm.stack_adapters([run.model, other])
    served = run.generate(QUESTIONS[:3], adapters=adapters, ids=[0, 1, 0], **SHORT)
    dialect = Dialect.of(run.task)
    alone = generate(other, [dialect.tokens(QUESTIONS[1])], max_new_tokens=12, ends=dialect.ends)[0]
    assert served == [texts[0], dialect.text(alone), texts[2]] and served[1] != texts[1]


@pytest.mark.parametrize("spec", [{"family": "toeplitz"}, {"family": "low_rank", "magnitude": True}])
def test_updates_are_merged_before_many_tokens_are_written(run, spec):
    base = surm.detach(run.model)
    model = randomize(surm.attach(base, PeftSpec(targets=(r".*(query|down)",), train=(), **spec), nnx.Rngs(0)), 1, 0.05)
    merged = writing.quick(model)
    assert not [one for _, one in nnx.iter_modules(merged) if type(one).__name__ == "UpdatedLinear"]
    tokens = np.arange(8)[None]
    answers = [jax.jit(lambda tokens, model=model: model(tokens))(tokens) for model in (model, merged)]
    np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-4)


def test_updates_of_kernels_in_half_precision_are_not_merged(run):
    model = surm.attach(surm.detach(run.model), PeftSpec(family="circulant", train=()), nnx.Rngs(0))
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), nnx.split(model)[1])
    model = nnx.merge(nnx.split(model)[0], half)
    assert writing.quick(model) is model


def test_adapters_that_are_not_linear_are_left_as_they_are(run):
    model = surm.attach(surm.detach(run.model), PeftSpec(method="bottleneck", train=()), nnx.Rngs(0))
    assert writing.quick(model) is model


def test_the_model_before_training_is_what_the_adapter_was_put_on(run):
    base = surm.detach(run.model)
    model = randomize(surm.attach(base, PeftSpec(family="circulant", train=()), nnx.Rngs(0)), 0, 0.2)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(writing.untrained(model)), nnx.state(base))
    more = surm.attach(base, PeftSpec(family="circulant", train=("norm",)), nnx.Rngs(0))
    with pytest.raises(InputError, match="but the run has trained norm.scale, which no adapter holds; expected a run"):
        writing.untrained(more)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": ["one", ""]}, "prompt 1 is empty, expected a text"),
        ({"prompts": ["what " * 300]}, "prompt 0 has 323 tokens, but the model's context has 256"),
        ({"prompts": ["a", "b"], "stream": True}, "stream=True writes one text, got 2 prompts"),
        ({"prompts": ["a"], "max_new_tokens": 0}, "max_new_tokens=0, expected a whole number of at least 1"),
        ({"prompts": ["a"], "temperature": -1}, "temperature=-1, expected a number of at least 0"),
        ({"prompts": ["a"], "top_p": 2.0}, "top_p=2.0, expected a number above 0 and at most 1"),
        ({"prompts": ["a"], "stop": [""]}, "stop=('',), expected strings that are not empty"),
        ({"prompts": ["a"], "ids": [0]}, "adapters and ids belong together: give both, or neither"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_a_line(run, given, message):
    with pytest.raises(InputError) as error:
        run.generate(**given)
    assert str(error.value) == message


def test_one_prompt_is_answered_in_plain_text_and_several_in_json(folder, texts, tmp_path, capsys):
    short = [str(folder), "--max_new_tokens=12"]
    assert printed(capsys, *short, "--prompt", QUESTIONS[0]) == texts[0] + "\n"
    lines = printed(capsys, *short, "--prompt", QUESTIONS[0], "--prompt", QUESTIONS[1]).splitlines()
    assert [json.loads(line) for line in lines] == [
        {"prompt": question, "completion": text} for question, text in zip(QUESTIONS[:2], texts, strict=False)
    ]
    turn = [{"role": "user", "content": QUESTIONS[1]}, {"role": "assistant", "content": ANSWERS[1]}]
    rows = [{"messages": turn}, {"prompt": QUESTIONS[2], "completion": ANSWERS[2]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    lines = printed(capsys, *short, "--file", str(tmp_path / "rows.jsonl")).splitlines()
    assert [json.loads(line) for line in lines] == [
        {"messages": turn[:1], "completion": texts[1]}, {"prompt": QUESTIONS[2], "completion": texts[2]}
    ]  # fmt: skip


def test_answers_before_and_after_training_are_shown_side_by_side(folder, capsys, tmp_path):
    def writer(before):
        return lambda prompts, **settings: [f"{before} {prompt}\n{settings['seed']}" for prompt in prompts]

    (tmp_path / "rows.jsonl").write_text('{"prompt": "b"}')
    for given in (["--prompt=a"], [f"--file={tmp_path / 'rows.jsonl'}"]):
        chosen = generating.parser().parse_args([str(folder), "--base", *given])
        assert generating.answer(writer("yes"), chosen, writer("no")) == 0
    *said, last = capsys.readouterr().out.splitlines()
    assert said == ["prompt  a", "before  no a", "        0", "after   yes a", "        0", ""]
    assert json.loads(last) == {"prompt": "b", "base": "no b\n0", "completion": "yes b\n0"}


def test_a_chat_keeps_its_history_and_ends_with_the_input(run, folder, texts, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTIONS[0]}\n\n{QUESTIONS[1]}\n"))
    said = printed(capsys, str(folder), "--chat", "--system", "be brief", "--max_new_tokens=12").splitlines()
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": QUESTIONS[0]}]
    first = run.generate([messages], **SHORT)[0]
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": QUESTIONS[1]}]
    assert said == [first, run.generate([messages], **SHORT)[0]]


def test_ctrl_c_ends_a_chat(folder, capsys, monkeypatch):
    def interrupted(_: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    assert printed(capsys, str(folder), "--chat") == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "one of --prompt, --file and --chat is needed, got none"),
        (["--prompt=a", "--chat"], "one of --prompt, --file and --chat is needed, got --prompt and --chat"),
        (["--prompt=a", "--system=b"], "--system is set, but only --chat has a system message"),
        (["--chat", "--raw"], "--raw is set, but a chat needs the chat template"),
        (["--chat", "--base"], "--base is set, but a chat is answered once; expected --prompt or --file"),
        (
            ["--prompt=a", "--base"],
            "the model without the adapter is asked for, but the run has trained blocks.0.attention.key.kernel, which "
            "no adapter holds; expected a run of peft.method=update or adapter with nothing else to train",
        ),
        (["--file=/nowhere.jsonl"], "there is no file '/nowhere.jsonl'"),
        (["--prompt=a", "--temperature=-1"], "temperature=-1.0, expected a number of at least 0"),
    ],
)
def test_flags_are_refused_in_a_line(folder, capsys, given, message):
    assert printed(capsys, str(folder), *given, status=2) == f"error: {message}\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
        ('{"text": "a"}', "line 1: {\"text\": \"a\"}, expected an object with 'prompt', a text, or with 'messages', a "
                          "list"),
    ],
)  # fmt: skip
def test_a_file_of_other_rows_is_refused_in_a_line(folder, tmp_path, capsys, line, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(line)
    assert printed(capsys, str(folder), "--file", str(file), status=2) == f"error: '{file}', {message}\n"
