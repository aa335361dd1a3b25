"""The real command on a small decoder: it learns answers, is measured as numpy measures, stops and goes on exactly."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import surm
from surm import train
from surm.cli import command_line
from surm.models import decoder
from surm.peft import surgery
from surm.training import optim, placing, preparation, progress, step
from tests.language import small_decoder

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "lm_text.py")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """A folder of weights and one of chats."""
    folder = tmp_path_factory.mktemp("language")
    return small_decoder.write(folder / "weights"), small_decoder.write_chats(folder / "chats")


@pytest.fixture(scope="module")
def material(folders) -> list[str]:
    weights, chats = folders
    return [
        f"--config={CONFIG}:data={chats}",
        f"--config.model.weights={weights}",
        "--config.data.lengths=48",
        "--config.peft.targets=.*query",  # each adapted layer takes time to compile
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
    tokenizer = small_decoder.tokenizer()
    for question, answer in small_decoder.QUESTIONS[-5:]:
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        before, ids = (tokenizer.encode(text).ids for text in (prompt, f"{prompt}{answer}<|im_end|>"))
        logits = np.asarray(loaded.model(jnp.array([ids])), np.float64)[0]
        for place in range(len(before), len(ids)):
            row = logits[place - 1]
            losses.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[ids[place]])
            hits.append(row.argmax() == ids[place])
    assert loaded.result["eval"]["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert loaded.result["eval"]["token_accuracy"] == pytest.approx(np.mean(hits))


def test_predict_refuses_a_language_model_in_a_line(finished):
    with pytest.raises(surm.InputError, match="this run trained a language model: use generate"):
        surm.load_run(finished).predict(["what is the capital"])


def test_updates_adapt_all_seven_maps_of_every_block(material, tmp_path, capsys):
    result = run(tmp_path / "run", *material, "--config.optim.steps=1", "--config.peft.targets=")
    maps = ["attention.key", "attention.output", "attention.query", "attention.value", "mlp.down", "mlp.gate", "mlp.up"]
    assert sorted(result["layers"]) == [f"blocks.{block}.{name}" for block in range(2) for name in maps]
    assert result["adapter_parameters"] == result["trainable_parameters"] == 2 * (2 * 4 * 32 + 2 * 3 * 48 + 2 * 32 - 64)


@pytest.mark.parametrize("more", [[], ["--config.data.packing=True"]], ids=["buckets", "packed"])
def test_a_stopped_run_goes_on_exactly(material, tmp_path, monkeypatch, more):
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


def test_a_population_is_its_runs_alone(material, tmp_path):
    options = [*material, "--config.optim.steps=4", "--config.eval_every_steps=2", "--config.peft.dropout=0.1"]
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


def test_the_best_step_is_that_of_least_loss(material, tmp_path):
    more = ["eval.choose=best", "eval_every_steps=2", "data.validation_examples=3", "optim.epochs=4", "seed=3"]
    result = run(tmp_path / "run", *material, *FULL, *(f"--config.{one}" for one in more))
    losses = {one["step"]: one["values"]["loss"] for one in lines(tmp_path / "run") if one["split"] == "validation"}
    assert result["chosen_step"] == min(losses, key=losses.get) and len(losses) == 4


def one_step(material: list[str], **more: str) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The metrics of the first step, and what trains after it."""
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in more.items()]
    parsed = command_line.parse(["x", "--workdir=none", *material, "--config.optim.steps=4", *flags])
    prepared = preparation.prepare(parsed.config)
    numbers = optim.hyperparameters(prepared.config.optim, surgery.spec_of(prepared.model), 4)
    state, frozen = step.initial_state(prepared, 0, averaged=False), surgery.split(prepared.model)[2]
    batch = next(prepared.training_batches(0))
    state, values = jax.jit(step.train_step(prepared))(state, frozen, batch, numbers)
    return jax.device_get(values), jax.device_get(state["trainable"])


@pytest.fixture(scope="module")
def whole(material) -> dict[str, float]:
    """The metrics of a step on all chats at once, each in a row of its own, of which four are empty."""
    return one_step(material, optim__batch_size="16")[0]


@pytest.mark.parametrize(
    "more",
    [
        {"optim__batch_size": "16", "optim__accumulation_steps": "4"},
        {"optim__batch_size": "12", "data__packing": "True", "data__lengths": "96"},
        {"optim__batch_size": "8", "data__packing": "True", "data__lengths": "160", "optim__accumulation_steps": "2"},
    ],
    ids=["in parts", "packed", "packed in parts"],
)
def test_a_step_is_the_same_however_its_rows_are_laid_out(material, whole, more):
    values, _ = one_step(material, **more)
    assert values.keys() == whole.keys()
    for name, value in whole.items():
        assert float(values[name]) == pytest.approx(float(value), rel=1e-4), name


def test_on_all_tokens_the_loss_is_another_and_the_measure_is_not(material, tmp_path):
    results = [
        run(tmp_path / on, *material, f"--config.data.train_on={on}", "--config.optim.steps=1")
        for on in ("answers", "all")
    ]
    first = [lines(tmp_path / on)[0]["values"]["loss"] for on in ("answers", "all")]
    assert abs(first[0] - first[1]) > 1e-3
    assert results[0]["eval"]["loss"] == pytest.approx(results[1]["eval"]["loss"], rel=0.02)


def test_prompts_and_texts_train_without_a_template_and_chats_do_not(tmp_path, capsys):
    weights = small_decoder.write(tmp_path / "weights", template=None)
    pairs = [json.dumps({"prompt": one, "completion": f" {other}"}) for one, other in small_decoder.QUESTIONS]
    texts = [json.dumps({"text": f"{one} {other}"}) for one, other in small_decoder.QUESTIONS]
    for name, rows in (("pairs", pairs), ("texts", texts)):
        data = small_decoder.write_rows(tmp_path / name, {"train": rows, "test": rows[:4]})
        arguments = [f"--config={CONFIG}:data={data}", f"--config.model.weights={weights}", "--config.data.lengths=32",
                     "--config.optim.steps=1"]  # fmt: skip
        assert run(tmp_path / f"run_{name}", *arguments)["eval"]["loss"] > 0
    chats = small_decoder.write_chats(tmp_path / "chats")
    more = [f"--config.data.source={chats}", f"--workdir={tmp_path / 'no'}"]
    capsys.readouterr()
    assert train.main(["surm.train", *arguments, *more]) == 2
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
    from tests.language import templates

    weights = small_decoder.write(tmp_path / "weights", template=templates.PLAIN["mistral"])
    twice = {"messages": [{"role": role, "content": "a"} for role in ("user", "user", "assistant")]}
    data = small_decoder.write_chats(tmp_path / "chats")
    with (data / "train.jsonl").open("a") as file:
        file.write(json.dumps(twice) + "\n")
    arguments = [f"--config={CONFIG}:data={data}", f"--config.model.weights={weights}", "--config.data.lengths=48"]
    assert train.main(["surm.train", *arguments, f"--workdir={tmp_path / 'r'}"]) == 2
    error = capsys.readouterr().err.strip()
    assert "train.jsonl', line 13: " in error and "Conversation roles must alternate" in error and "\n" not in error
    assert not (tmp_path / "r").exists()


def test_progress_counts_tokens(material, tmp_path, capsys):
    run(tmp_path / "r", *material, "--config.optim.steps=8")
    out = capsys.readouterr()
    assert "tokens a second); 1 more will take about" in out.out + out.err and "tok/s" in out.err


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
