"""What a careless user gets from the command line: one clear line, a non-zero status, nothing half-written."""

import json
import pathlib

import numpy as np
import pytest

from surm import train
from surm.cli import command_line

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = f"--config={ROOT / 'configs' / 'vit_digits.py'}"
UNTRAINED = ["--config.model.weights=none", "--config.model.name=vit_micro"]


def refused(capsys, *arguments: str) -> str:
    """Runs the command, demands one line on the error stream and status 2, and returns the line."""
    assert train.main(["surm.train", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    return error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            [CONFIG, "--peft.family=toeplitz"],
            "no flag is called --peft.family; did you mean --config.peft.family",
        ),
        ([CONFIG, "--learning_rate=1"], "no flag is called --learning_rate; did you mean --config.optim.learning_rate"),
        ([CONFIG, "--optm.steps=1"], "no flag is called --optm.steps; did you mean --config.optim.steps=VALUE?"),
        ([CONFIG, "--wrkdir=a"], "no flag is called --wrkdir; did you mean --workdir?"),
        ([CONFIG, "--nonsense=1"], "no flag is called --nonsense"),
        (["--config.optim.steps=3"], "--config.optim.steps changes a config, but --config=FILE, which names"),
    ],
)
def test_a_flag_that_there_is_not_names_the_one_that_was_meant(capsys, tmp_path, arguments, expected):
    assert expected in refused(capsys, f"--workdir={tmp_path / 'run'}", *arguments)


def parsed(*arguments: str):
    return command_line.parse(["surm.train", *arguments]).config


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.peft.famly=circulant", "config has no key 'peft.famly'; nearest: peft.family"),
        ("--config.optm.steps=3", "config has no key 'optm.steps'; nearest: optim.steps"),
        ("--config.optim.steps=many", "config.optim.steps=many, expected a whole number"),
        ("--config.nonsense=1", "config has no key 'nonsense'"),
        ("--config.optim.learning_rat=1", "nearest: optim.learning_rate"),
        ("--config.optim.learning_rate=abc", "learning_rate=abc, expected a number"),
        ("--config.optim.learning_rate=nan", "learning_rate=nan, expected at least 0"),
        ("--config.optim.epochs=0", "neither config.optim.epochs nor config.optim.steps is given"),
        ("--config.peft.scale=nan", "scale=nan, expected a finite number"),
        ("--config.model.pooling=max", "auto or class or mean"),
        ("--config.model.dropout=0.1", "config.model.dropout is set, but data.source='digits' holds images"),
        ("--config.data.lengths=16;32", "expected whole numbers separated by commas"),
        ("--config.peft.options=hadamard=maybe", "with a number, True or False"),
        ("--config.peft.family=circulent", "nearest: circulant"),
        ("--config.peft.method=upd", "nearest: update"),
        ("--config.peft.options=rank=8", "circulant has no option 'rank'; it has hadamard"),
        ("--config.peft.options=hadamard", "NAME=VALUE"),
        (
            "--config.peft.targets=.*qeury",
            "'.*qeury', a regular expression, matches no linear layer; nearest: blocks.0.attention.query, blocks.1.",
        ),
        ("--config.peft.train=haed", "nearest: head"),
        (
            "--config.data.source=digit",
            "data.source='digit' is not known, and there is no such folder; expected",
        ),
        ("--config.data.source=mrpc", "tfds:glue/mrpc"),
        ("--config.data.eval_split=dev", "eval_split='dev', expected test or validation"),
        ("--config.data.eval_split=train", "eval_split='train', expected test or validation"),
        ("--config.peft.options=hadamard='no'", "True or False"),
        ("--config.peft.activation=swish", "no activation is called 'swish'; known: gelu, identity, relu, tanh"),
        ("--config.optim.warmup_fraction=2.0", "warmup_fraction=2.0, expected"),
        ("--config.optim.learning_rate=-1.0", "learning_rate=-1.0, expected at least 0"),
        ("--config.data.augment=mixup", "augment='mixup', expected none or crop_flip"),
        ("--config.data.train_examples=5000", "train_examples=5000 wants 500 of class 0, which has 107"),
        ("--config.model.name=vit_b17", "nearest: vit_b16"),
        ("--config.model.image_size=33", "patch_size=8 does not divide image_size=33"),
        ("--config.optim.batch_size=0", "batch_size=0, expected at least 1"),
        ("--config.optim.name=adam", "name='adam', expected adamw or sgd"),
        (
            "--config.init_adapter=/nowhere",
            "'/nowhere' is no folder; expected a finished run's folder, or an adapter's",
        ),
        ("--workdr=x", "no flag is called --workdr; did you mean --workdir?"),
        ("--config.peft.path=fast", "path='fast'; update circulant has branch, branch_dft, branch_dense, fused, "),
        ("--config.data.text_columns=title", "data.text_columns is set, but data.source='digits' holds images"),
        ("stray", "unexpected argument 'stray'; flags are written --name=value"),
    ],
)
def test_a_wrong_value_is_one_line(tmp_path, capsys, argument, expected):
    arguments = [CONFIG, f"--workdir={tmp_path / 'run'}", *UNTRAINED, argument]
    assert expected in refused(capsys, *arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("family", "option"), [("low_rank", "rank=2.5"), ("low_rank", "rank='8'"), ("kronecker", "terms=None")]
)
def test_an_option_of_the_wrong_type_is_one_line(tmp_path, capsys, family, option):
    error = refused(capsys, CONFIG, f"--workdir={tmp_path / 'r'}", *UNTRAINED, f"--config.peft.family={family}",
                    f"--config.peft.options={option}")  # fmt: skip
    assert "expected an integer" in error


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("nope.py", "no config file"),
        ("vit_cifar.py:dataset=cifar11", "error: the config's argument dataset='cifar11'; nearest: cifar10, cifar100"),
        ("bert_glue.py:tsk=mrpc", "error: the config takes no argument 'tsk'; nearest: task"),
        ("bert_glue.py:task=mprc", "error: the config's argument task='mprc'; nearest: mrpc"),
    ],
)
def test_a_wrong_config_file_or_argument_is_one_line(tmp_path, capsys, config, expected):
    assert expected in refused(capsys, f"--config={ROOT / 'configs' / config}", f"--workdir={tmp_path / 'r'}")


def test_a_run_that_trains_nothing_is_refused(tmp_path, capsys):
    error = refused(capsys, CONFIG, f"--workdir={tmp_path / 'r'}", *UNTRAINED, "--config.peft.method=head",
                    "--config.peft.train=")  # fmt: skip
    assert "trains nothing" in error


@pytest.mark.parametrize("name", ["config.json", "result.json"])
@pytest.mark.parametrize(
    ("text", "said"), [("{", "cannot be read as JSON ("), ("[1]", "holds a JSON list, expected an object; remove")]
)
def test_a_damaged_file_of_the_workdir_is_one_line(tmp_path, capsys, name, text, said):
    arguments = [CONFIG, f"--workdir={tmp_path}", *UNTRAINED]
    (tmp_path / "config.json").write_text(json.dumps(parsed(*arguments).to_dict()))
    (tmp_path / name).write_text(text)
    assert said in refused(capsys, *arguments)


@pytest.mark.parametrize("family", ["kronecker", "block_circulant"])
def test_a_size_that_does_not_divide_names_the_layer(tmp_path, capsys, family):
    option = {"kronecker": "rank", "block_circulant": "block_size"}[family]
    error = refused(capsys, CONFIG, f"--workdir={tmp_path}", *UNTRAINED, f"--config.peft.family={family}",
                    f"--config.peft.options={option}=5")  # fmt: skip
    assert "blocks.0.attention.key" in error and "192" in error and "5" in error


def test_steps_and_epochs_exclude_each_other_but_one_replaces_the_other(tmp_path, capsys):
    error = refused(capsys, CONFIG, f"--workdir={tmp_path}", "--config.optim.steps=3", "--config.optim.epochs=2")
    assert "exclude each other" in error


def test_missing_flags_and_files(tmp_path, capsys):
    assert "--config is missing" in refused(capsys, f"--workdir={tmp_path}")
    assert "--workdir is missing" in refused(capsys, CONFIG)
    assert "nowhere.py" in refused(capsys, "--config=nowhere.py", f"--workdir={tmp_path}")


def test_a_config_file_with_an_unknown_key_or_a_bug(tmp_path, capsys):
    file = tmp_path / "mine.py"
    head = "from surm.config import default\ndef get_config():\n  c = default()\n"
    file.write_text(head + "  c.optim.learning_rat = 1.0\n  return c\n")
    assert "learning_rate" in refused(capsys, f"--config={file}", f"--workdir={tmp_path / 'run'}")
    file.write_text(head + "  return c +\n")
    assert "mine.py" in refused(capsys, f"--config={file}", f"--workdir={tmp_path / 'run'}")
    file.write_text(head + "  c.unlock()\n  c.optim.learning_rat = 1.0\n  return c\n")
    assert "nearest: optim.learning_rate" in refused(capsys, f"--config={file}", f"--workdir={tmp_path / 'run'}")


def test_a_workdir_that_holds_another_run_or_is_a_file(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    arguments = [CONFIG, f"--workdir={run}", *UNTRAINED]
    (run / "config.json").write_text(json.dumps(parsed(*arguments).to_dict()))
    error = refused(capsys, *arguments, "--config.seed=1")
    assert "another config" in error and "seed: 0 against 1" in error
    (run / "config.json").write_text("{")
    assert "cannot be read as JSON" in refused(capsys, *arguments)
    file = tmp_path / "file"
    file.write_text("")
    assert "is a file" in refused(capsys, CONFIG, f"--workdir={file}")


def test_weights_that_cannot_be_used(tmp_path, capsys):
    for weights, expected in [
        ("asset:vit_macro", "vit_macro"),
        (str(tmp_path / "missing"), "missing"),
        ("hf:nobody", "nobody"),
    ]:
        assert expected in refused(capsys, CONFIG, f"--workdir={tmp_path / 'r'}", f"--config.model.weights={weights}")
    pickled = tmp_path / "pytorch_model.bin"
    pickled.write_bytes(b"x")
    error = refused(capsys, CONFIG, f"--workdir={tmp_path / 'r'}", f"--config.model.weights={pickled}")
    assert "pickle" in error


def test_an_npz_with_a_label_outside_the_head(tmp_path, capsys):
    images = np.zeros((4, 8, 8), np.uint8)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=np.arange(4), x_test=images, y_test=np.arange(1, 5))
    error = refused(capsys, CONFIG, f"--workdir={tmp_path / 'r'}", *UNTRAINED,
                    f"--config.data.source={tmp_path / 'd.npz'}")  # fmt: skip
    assert "label 4" in error


def test_the_refused_run_can_be_mended_in_place(tmp_path, capsys):
    run = tmp_path / "run"
    refused(capsys, CONFIG, f"--workdir={run}", *UNTRAINED, "--config.peft.targets=nothing")
    assert not run.exists()
    done = train.main(["surm.train", CONFIG, f"--workdir={run}", *UNTRAINED, "--config.optim.steps=1"])
    assert done == 0
    assert json.loads((run / "result.json").read_text())["steps"] == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("x = 1", "'FILE' has no function get_config(), which returns the configuration"),
        ("def get_config():\n    pass", "get_config() of 'FILE' returned nothing; expected `return config` at its end"),
        ("def get_config():\n    return {}", "get_config() of 'FILE' returned a dict; expected surm.config.default()"),
        ("def get_config():\n    raise ValueError('boom')", "FILE, line 2: ValueError: boom"),
        ("def get_config():\n    raise AttributeError('boom')", "FILE, line 2: AttributeError: boom"),
        ("def get_config():\n    assert 1 < 0", "FILE, line 2: AssertionError"),
        ("def get_config():\n    return {}['a']", "FILE, line 2: KeyError: a"),
        ("import nosuch\ndef get_config():\n    pass", "FILE, line 1: ModuleNotFoundError: No module named 'nosuch'"),
        (
            "def get_config():\n    return open('/no/vocab.txt')",
            "FILE, line 2: FileNotFoundError: [Errno 2] No such file",
        ),
        (
            "import json\ndef get_config():\n    return json.get_config()",
            "FILE, line 3: AttributeError: module 'json' has",
        ),
        ("def inner(): pass\ndef get_config():\n    return inner(1)", "FILE, line 3: TypeError: inner() takes 0 posit"),
        (
            "import surm.config\ndef get_config():\n    c = surm.config.default()\n    c.optim.setps = 3\n    return c",
            "FILE, line 4: config has no key 'setps'; nearest: steps",
        ),
        (
            "import surm.config\ndef get_config():\n    c = surm.config.default()\n    c.optim.zzz = 3\n    return c",
            "FILE, line 4: config has no key 'zzz'\n",
        ),
    ],
)
def test_a_config_file_that_cannot_be_used_is_named_in_one_line(body, said, tmp_path, capsys):
    file = tmp_path / "config.py"
    file.write_text(body)
    assert train.main(["surm.train", f"--config={file}", f"--workdir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and len(error) < 300
    assert said.replace("FILE", str(file)) in error


def test_a_config_file_that_returns_nothing_is_named_beside_an_override_too(tmp_path, capsys):
    file = tmp_path / "config.py"
    file.write_text("def get_config():\n    pass")
    error = refused(capsys, f"--config={file}", f"--workdir={tmp_path / 'run'}", "--config.optim.steps=3")
    assert f"get_config() of '{file}' returned nothing" in error


def test_a_config_file_gets_nothing_of_the_one_that_was_read_before_it(tmp_path, capsys):
    file = tmp_path / "config.py"
    file.write_text("x = 1")
    command_line.parse(["surm.train", CONFIG, f"--workdir={tmp_path / 'run'}"])
    error = refused(capsys, f"--config={file}", f"--workdir={tmp_path / 'run'}")
    assert f"'{file}' has no function get_config()" in error


def test_arguments_that_a_config_file_does_not_take(tmp_path, capsys):
    assert train.main(["surm.train", f"{CONFIG}:family=toeplitz", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "takes no arguments behind a colon; set its keys by --config.KEY=VALUE" in capsys.readouterr().err
