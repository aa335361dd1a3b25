"""The real command on a small decoder: it learns answers, is measured as numpy measures, stops and goes on exactly."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import surm
import surm.__main__ as command
from surm import train
from surm.cli import command_line
from surm.models import decoder
from surm.peft import surgery
from surm.training import optim, placing, preparation, progress, step, writing
from surm.training.prepared import Run
from tests.language import small_decoder, templates

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "lm_text.py")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """A folder of weights and one of chats."""
    folder = tmp_path_factory.mktemp("language")
    return small_decoder.write(folder / "weights", depth=1), small_decoder.write_chats(folder / "chats")


@pytest.fixture(scope="module")
def material(folders) -> list[str]:
    weights, chats = folders
    return [
        f"--config={CONFIG}:data={chats},family=low_rank",
        f"--config.model.weights={weights}",
        "--config.data.lengths=48",
        "--config.peft.targets=.*query",  # every adapted layer takes time to compile
        "--config.optim.batch_size=8",
        "--config.log_every_steps=1",
    ]


def run(workdir: pathlib.Path, *arguments: str) -> dict:
    assert train.main(["surm.train", f"--workdir={workdir}", *arguments]) == 0
    return json.loads((workdir / "result.json").read_text())


def lines(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


FULL = (
    "--config.peft.method=full",
    "--config.optim.learning_rate=1e-2",
    "--config.optim.epochs=60",
    "--config.peft.targets=",
)


@pytest.fixture(scope="module")
def finished(material, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("run") / "chats"
    run(workdir, *material, *FULL)
    return workdir


def test_training_on_chats_learns_the_answers(finished):
    result = json.loads((finished / "result.json").read_text())
    assert result["eval"]["token_accuracy"] > 0.8 and result["eval"]["loss"] < 0.5
    assert result["eval"]["perplexity"] == pytest.approx(np.exp(result["eval"]["loss"]), rel=1e-6)
    assert (result["task"], result["kind"], result["metric"]) == ("language", "language", "loss")
    assert (result["num_outputs"], result["classes"], result["processor"]) == (None, [], None)
    assert result["metrics"] == {
        "loss": {"better": "less", "unit": "nats"},
        "perplexity": {"better": "less", "unit": ""},
        "token_accuracy": {"better": "more", "unit": "%"},
    }
    assert "confusion" not in result and (finished / "curves.png").exists()


def test_the_loss_is_that_of_the_answers_token_by_token(finished):
    loaded, losses, hits = surm.load_run(finished), [], []
    tokenizer, questions = small_decoder.tokenizer(), small_decoder.QUESTIONS[-5:]
    prompts = [f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question, _ in questions]
    begins = [len(tokenizer.encode(prompt).ids) for prompt in prompts]
    each = [tokenizer.encode(f"{prompts[row]}{answer}<|im_end|>").ids for row, (_, answer) in enumerate(questions)]
    padded = jnp.array([ids + [0] * (48 - len(ids)) for ids in each])
    logits = np.asarray(jax.jit(lambda tokens: loaded.model(tokens))(padded), np.float64)
    for row, (begin, ids) in enumerate(zip(begins, each, strict=True)):
        for place in range(begin, len(ids)):
            of_place = logits[row, place - 1]
            losses.append(np.log(np.exp(of_place - of_place.max()).sum()) + of_place.max() - of_place[ids[place]])
            hits.append(of_place.argmax() == ids[place])
    assert loaded.result["eval"]["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert loaded.result["eval"]["token_accuracy"] == pytest.approx(np.mean(hits))


def test_predict_refuses_a_language_model_in_a_line(finished):
    with pytest.raises(surm.InputError, match="this run trained a language model: use generate"):
        surm.load_run(finished).predict(["what is the capital"])


def prepared(material: list[str], *more: str) -> Run:
    flags = [f"--config.{one}" for one in more]
    return preparation.prepare(command_line.parse(["x", "--workdir=none", *material, *flags]).config)


def test_several_processes_that_are_to_write_answers_are_refused_before_the_training(material, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(surm.InputError, match="^config.data.generate=True needs one process; use load_run"):
        prepared(material, "data.generate=True")


def test_the_base_is_copied_to_the_device_once_for_all_answers(material, monkeypatch):
    run, given = prepared(material, "data.generate=True"), []
    keep = lambda leaf: leaf if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)  # noqa: E731
    _, trained, frozen = surgery.split(run.model)
    nnx.update(run.model, jax.tree.map(keep, frozen))  # as during a run, see `placing.originals`
    monkeypatch.setattr(writing.generated, "exact_match", lambda model, *_: given.append(model) or 0.5)
    assert writing.exact_match(run, [], trained) == {"exact_match": 0.5}
    assert {type(leaf) for leaf in jax.tree.leaves(nnx.state(given[0]))} == {type(jnp.ones(1))}
    assert isinstance(run.model.norm.scale.get_value(), np.ndarray)


def test_updates_adapt_all_seven_maps_of_every_block(material):
    maps = ["attention.key", "attention.output", "attention.query", "attention.value", "mlp.down", "mlp.gate", "mlp.up"]
    run = prepared(material, "peft.targets=")
    assert sorted(surgery.structured_matrices(run.model)) == [f"blocks.0.{name}" for name in maps]
    assert {path.rpartition(".delta.")[0] for path in surgery.split(run.model)[1]} == {
        f"blocks.0.{one}" for one in maps
    }
    adapter = prepared(material, "peft.targets=", "peft.method=adapter", "peft.family=circulant")
    assert sorted(surgery.structured_matrices(adapter.model)) == ["blocks.0.attention.output", "blocks.0.mlp.down"]


def test_a_hadamard_adapter_trains_from_the_first_step_since_there_is_no_head(material):
    of_method = [material[0].replace("family=low_rank", "method=hadamard_adapter"), *material[1:]]
    run = prepared(of_method, "peft.targets=")
    assert run.plan.head_first_fraction == 0
    with pytest.raises(surm.InputError, match=r"the adapter's; set config\.optim\.head_first_fraction=0$"):
        prepared(of_method, "peft.targets=", "optim.head_first_fraction=0.5")


def test_methods_that_do_not_fit_a_language_model_are_refused_by_name(material):
    with pytest.raises(surm.InputError, match="config.peft.method='loko' needs a task with a fixed number of outputs"):
        prepared(material, "peft.method=loko", "optim.gradient_clip=0.0")
    with pytest.raises(surm.InputError, match="method='bitfit' trains biases, but the model has none"):
        prepared(material, "peft.method=bitfit", "peft.targets=")


@pytest.fixture(scope="module")
def two_blocks(material, tmp_path_factory) -> list[str]:
    """The same with two blocks, which are scanned: their trained arrays are stacked."""
    weights = small_decoder.write(tmp_path_factory.mktemp("two_blocks"), depth=2)
    given = [*material, f"--config.model.weights={weights}", "--config.model.scan=always"]
    assert step.stacked_of(prepared(given))
    return given


@pytest.mark.parametrize(
    ("of", "more"),
    [("material", []), ("material", ["--config.data.packing=True"]), ("two_blocks", ["--config.optim.ema_decay=0.5"])],
    ids=["buckets", "packed", "scanned"],
)
def test_a_stopped_run_goes_on_exactly(request, tmp_path, monkeypatch, of, more):
    material = request.getfixturevalue(of)
    options = [*more, "--config.optim.steps=6", "--config.checkpoint_every_steps=2", "--config.peft.dropout=0.2",
               "--config.optim.batch_size=2", "--config.eval_every_steps=3"]  # fmt: skip
    whole = run(tmp_path / "whole", *material, *options)
    parsed = command_line.parse(["x", f"--workdir={tmp_path / 'cut'}", *material, *options])
    calls, original = iter(range(100)), progress.Progress.step

    def cut(self, *given):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return original(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(progress.Progress, "step", cut)
        with pytest.raises(KeyboardInterrupt):
            train.run(parsed.config, str(tmp_path / "cut"))
    assert train.run(parsed.config, str(tmp_path / "cut"))["eval"] == whole["eval"]
    for name in ("adapter/adapter_model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("of", ["material", "two_blocks"])
def test_a_population_is_its_runs_alone(request, tmp_path, of):
    options = [
        *request.getfixturevalue(of),
        "--config.optim.steps=4",
        "--config.eval_every_steps=2",
        "--config.peft.dropout=0.1",
    ]
    run(tmp_path / "both", *options, "--config.population=seed=0|1")
    alone = run(tmp_path / "alone", *options, "--config.seed=1")
    member = tmp_path / "both" / "members" / "seed=1"
    for one, other in zip(lines(member), lines(tmp_path / "alone"), strict=True):
        assert (one["step"], one["split"]) == (other["step"], other["split"])
        assert one["values"] == pytest.approx(other["values"], rel=2e-4)
    own, theirs = (load_file(folder / "adapter" / "adapter_model.safetensors")
                   for folder in (member, tmp_path / "alone"))  # fmt: skip
    for path, value in theirs.items():
        np.testing.assert_allclose(own[path], value, rtol=2e-4, atol=2e-4 * abs(value).max() + 1e-6)
    assert alone["metric"] == json.loads((tmp_path / "both" / "result.json").read_text())["metric"]


@pytest.mark.parametrize("of", ["material", "two_blocks"])
def test_the_best_step_is_that_of_least_loss(request, tmp_path, of):
    material = request.getfixturevalue(of)
    more = [
        "eval.choose=best",
        "eval_every_steps=2",
        "data.validation_examples=3",
        "optim.epochs=4",
        "seed=3",
    ]
    result = run(tmp_path / "run", *material, *FULL, *(f"--config.{one}" for one in more))
    losses = {one["step"]: one["values"]["loss"] for one in lines(tmp_path / "run") if one["split"] == "validation"}
    assert result["chosen_step"] == min(losses, key=losses.get) and len(losses) == 4


def one_step(material: list[str], *more: str) -> dict[str, float]:
    """The metrics of the first step."""
    run = prepared(material, "optim.steps=4", *more)
    numbers = optim.hyperparameters(run.config.optim, surgery.spec_of(run.model), 4)
    state, frozen = step.initial_state(run, 0, averaged=False), surgery.split(run.model)[2]
    return jax.device_get(jax.jit(step.train_step(run))(state, frozen, next(run.training_batches(0)), numbers)[1])


@pytest.fixture(scope="module")
def whole(material) -> dict[str, float]:
    """The metrics of a step on all chats at once, each in a row of its own, of which four are empty."""
    return one_step(material, "optim.batch_size=16")


@pytest.mark.parametrize(
    "more",
    [
        ["optim.batch_size=16", "optim.accumulation_steps=4"],
        ["optim.batch_size=12", "data.packing=True", "data.lengths=96"],
        ["optim.batch_size=8", "data.packing=True", "data.lengths=160", "optim.accumulation_steps=2"],
    ],
    ids=["in parts", "packed", "packed in parts"],
)
def test_a_step_is_the_same_however_its_rows_are_laid_out(material, whole, more):
    values = one_step(material, *more)
    assert values.keys() == whole.keys()
    for name, value in whole.items():
        assert float(values[name]) == pytest.approx(float(value), rel=1e-4), name


def test_all_tokens_may_train_and_answers_alone_are_measured(material):
    answers, all_tokens = (prepared(material, f"data.train_on={on}") for on in ("answers", "all"))
    one, other = (next(run.training_batches(0)) for run in (answers, all_tokens))
    followed = (other["segments"][:, 1:] > 0).astype(np.float32)  # a token is learned if another one is before it
    np.testing.assert_array_equal(other["weight"][:, :-1], followed)
    assert 0 < one["weight"].sum() < followed.sum() / 2
    for one, other in zip(*(run.evaluation_batches[""]() for run in (answers, all_tokens)), strict=True):
        np.testing.assert_array_equal(one["weight"], other["weight"])


def learned(run: Run) -> list[str]:
    """The texts of the answers in the training split, with the special tokens."""
    tokenizer, source = small_decoder.tokenizer(), run.training
    pieces = zip(source.starts[:-1], source.starts[1:], strict=True)
    each = [source.tokens[begin:end][source.answers[begin:end]].tolist() for begin, end in pieces]
    return [tokenizer.decode(tokens, skip_special_tokens=False) for tokens in each]


def test_prompts_and_texts_train_with_and_without_a_template_and_chats_with_one_only(material, tmp_path, capsys):
    bare = [*material, f"--config.model.weights={small_decoder.write(tmp_path / 'bare', template=None, depth=1)}"]
    rows = {
        "pairs": [json.dumps({"prompt": f"{one} ", "completion": other}) for one, other in small_decoder.QUESTIONS],
        "texts": [json.dumps({"text": f"{one} {other}"}) for one, other in small_decoder.QUESTIONS],
    }
    for name, lines in rows.items():
        small_decoder.write_rows(tmp_path / name, {"train": lines, "test": lines[:4]})
    question, answer = small_decoder.QUESTIONS[0]
    pairs, texts = (f"data.source={tmp_path / name}" for name in ("pairs", "texts"))
    assert learned(prepared(bare, pairs))[0] == f" {answer}<|im_end|>"  # the blank is in the answer's first token
    assert learned(prepared(material, pairs))[0] == f"{answer}<|im_end|>"
    for arguments in (bare, material):
        assert learned(prepared(arguments, texts))[0] == f"{question} {answer}<|im_end|>"
    assert train.main(["surm.train", *bare, f"--workdir={tmp_path / 'no'}"]) == 2
    error = capsys.readouterr().err.strip()
    assert "train.jsonl', line 1: the row holds messages, but the tokenizer" in error and "\n" not in error
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.data.lengths=16,600"], "goes up to 600 tokens, but the model has positions for 256"),
        (["--config.data.lengths=4"], "none of the 12 texts keeps a token of its answer within 4 tokens"),
        (["--config.optim.class_weights=balanced"], "config.optim.class_weights is set, but data.source="),
        (["--config.optim.label_smoothing=0.1"], "holds texts for language models; it is for images and texts"),
        (["--config.data.sampling=balanced"], "config.data.sampling is set, but data.source="),
        (["--config.eval.metrics=accuracy"], "config.eval.metrics is set, but data.source="),
        (["--config.eval.metrics=pearson"], "config.eval.metrics is set, but data.source="),
        (["--config.data.text_columns=question"], "config.data.text_columns is set, but data.source="),
        (["--config.data.task=classification"], "for a language model set config.data.task=language"),
        (["--config.model.pooling=mean"], "config.model.pooling is set, but data.source="),
        (["--config.peft.method=loko", "--config.optim.gradient_clip=0"], "such as 'labels'; got 'language'"),
        (["--config.peft.method=head", "--config.peft.targets="], "trains nothing; set train or targets"),
        (["--config.data.template_arguments=thinking"], "expected such as enable_thinking=False"),
        (
            ["--config.model.weights=asset:vit_micro"],
            "holds texts for language models, which the model of config.model",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(material, tmp_path, capsys, arguments, expected):
    assert train.main(["surm.train", f"--workdir={tmp_path / 'r'}", *material, *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and expected in error and "\n" not in error, error
    assert not (tmp_path / "r").exists()


def test_keys_of_language_models_are_refused_for_labels(tmp_path, capsys):
    flags = [f"--config={ROOT / 'configs' / 'vit_digits.py'}", "--config.data.packing=True"]
    assert train.main(["surm.train", f"--workdir={tmp_path / 'r'}", *flags]) == 2
    said = "config.data.packing is set, but data.source='digits' holds images; it is for texts for language models"
    assert said in capsys.readouterr().err


def test_a_tokenizer_with_more_tokens_than_the_model_has_words_is_one_line(material, folders, tmp_path, capsys):
    saved = json.loads((folders[0] / "tokenizer.json").read_text())
    saved["added_tokens"].append({**saved["added_tokens"][0], "id": 900, "content": "<|strange|>"})
    saved["model"]["vocab"]["strange"] = 900
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    more = [f"--workdir={tmp_path / 'r'}", f"--config.data.tokenizer={tmp_path / 'tokenizer.json'}"]
    assert train.main(["surm.train", *material, *more]) == 2
    assert "but the model's word table has 307 rows" in capsys.readouterr().err


def test_a_chat_that_the_template_refuses_is_one_line_with_its_place(tmp_path, capsys):
    weights = small_decoder.write(tmp_path / "weights", depth=1, template=templates.PLAIN["mistral"])
    twice = {"messages": [{"role": role, "content": "a"} for role in ("user", "user", "assistant")]}
    data = small_decoder.write_chats(tmp_path / "chats")
    with (data / "train.jsonl").open("a") as file:
        file.write(json.dumps(twice) + "\n")
    arguments = [f"--config={CONFIG}:data={data}", f"--config.model.weights={weights}", "--config.data.lengths=48"]
    assert train.main(["surm.train", *arguments, f"--workdir={tmp_path / 'r'}"]) == 2
    error = capsys.readouterr().err.strip()
    assert "train.jsonl', line 13: " in error and "Conversation roles must alternate" in error and "\n" not in error
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("scan", ["always", "never"])
def test_a_calibration_asks_for_each_matrix_once_where_blocks_are_scanned(folders, tmp_path, capsys, monkeypatch, scan):
    weights, chats = folders
    monkeypatch.setenv("SURM_CACHE", str(tmp_path))
    monkeypatch.setitem(decoder.PRESETS, "unheard_of", decoder.DecoderConfig(512, 64, 3, 2, 1, 32, 128))
    more = ["--config.model.weights=none", "--config.model.name=unheard_of", f"--config.data.tokenizer={weights}"]
    more += ["--config.data.lengths=48", "--config.optim.batch_size=8", f"--config.model.scan={scan}"]
    given = [f"--config={CONFIG}:data={chats}", "--config.peft.targets=.*(query|key)", *more]
    assert command.main(["calibrate", *given, "--seconds=1e-9"]) == 0
    *_, query, key, _ = capsys.readouterr().out.splitlines()
    assert query.split()[:4] == ["circulant", "64×64", "384", "float32"]
    assert key.split()[:4] == ["circulant", "32×64", "384", "float32"]


@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_a_dry_run_of_random_weights_makes_no_array(folders, capsys, monkeypatch, dtype):
    weights, chats = folders
    shape = decoder.DecoderConfig(512, 64, 4, 2, 1, 32, 128)
    monkeypatch.setitem(decoder.PRESETS, "unheard_of", shape)
    monkeypatch.setattr(placing, "placed", None)  # which would copy the base to the devices
    more = ["--config.model.weights=none", "--config.model.name=unheard_of", f"--config.data.tokenizer={weights}"]
    more += ["--config.data.lengths=48", "--config.peft.family=low_rank", f"--config.model.base_dtype={dtype}"]
    given = [f"--config={CONFIG}:data={chats}", "--config.optim.batch_size=8", "--config.peft.targets=.*query", *more]
    assert train.main(["surm.train", "--dry_run", *given]) == 0
    said = capsys.readouterr().out
    kibibytes = float(re.search(r"frozen ([\d.]+) KiB", said)[1])
    matrices = 2 * 512 * 64 + 4 * 64 * (64 + 32 + 32 + 64 + 3 * 128)
    assert kibibytes == pytest.approx({"float32": 4, "int4": 9 / 16}[dtype] * matrices / 1024, rel=0.03)
    assert re.search(r"temporary memory [\d.]+ [MK]iB, in all [\d.]+ MiB", said)
