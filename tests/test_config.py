import dataclasses
import importlib
import math
import pathlib
import re
import runpy
import subprocess
import sys

import pytest

from surm import InputError, config, sweep, train
from surm.cli import command_line, help_text
from surm.cli.flags import CALIBRATE, SWEEP, TRAIN
from surm.machine.keys import Key
from surm.peft.spec import PeftSpec
from surm.tasks import metrics

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_config_file_is_valid_and_says_its_command(file):
    module = runpy.run_path(str(file))
    config.check(module["get_config"]())
    assert f"--config=configs/{file.name}" in module["__doc__"]


def test_cifar_arguments_choose_data_family_and_backbone():
    module = runpy.run_path(str(ROOT / "configs" / "vit_cifar.py"))
    chosen = module["get_config"]("dataset=dtd,family=toeplitz,backbone=clip_b16")
    assert chosen.data.source == "tfds:dtd" and chosen.peft.family == "toeplitz"
    assert chosen.model.weights == "hf:openai/clip-vit-base-patch16"
    with pytest.raises(InputError, match="nearest: .*cifar100"):
        module["get_config"]("dataset=cifar10O")
    with pytest.raises(InputError, match="nearest: family"):
        module["get_config"]("famly=toeplitz")


def test_the_default_is_locked_and_lacks_a_duration():
    with pytest.raises(AttributeError):
        config.default().nothing = 1
    with pytest.raises(InputError, match="neither config.optim.epochs nor"):
        config.check(config.default())


def test_missing_and_unknown_keys_are_named():
    changed = config.default().unlock()
    changed.optim.steps = 1
    del changed.data.source
    with pytest.raises(InputError, match="lacks the key 'data.source'"):
        config.check(changed)
    changed.data.source = "digits"
    changed.data.sauce = "digits"
    with pytest.raises(InputError, match="no key 'data.sauce'; nearest: data.source"):
        config.check(changed)


def test_what_an_earlier_run_lacks_is_at_its_default():
    written = config.default().to_dict()
    written["optim"]["steps"] = 7
    del written["model"]["remat"], written["peft"]
    whole = config.of_an_earlier_run(written)
    config.check(whole)
    expected = config.default()
    expected.optim.steps = 7
    assert not config.differences(whole, expected)
    written["model"]["rematt"] = True
    with pytest.raises(InputError, match="no key 'model.rematt'; nearest: model.remat"):
        config.check(config.of_an_earlier_run(written))


def test_differences_list_both_values():
    one, other = config.default(), config.default()
    other.seed = 3
    assert config.differences(one, one) == []
    assert config.differences(one, other) == ["seed: 0 against 3"]


def test_a_rate_is_given_back_to_the_default(tmp_path):
    file = f"--config={ROOT / 'configs' / 'vit_digits.py'}"
    given = command_line.parse(["x", file, "--workdir=w"]).config
    unset = command_line.parse(["x", file, "--workdir=w", "--config.optim.learning_rate=None"]).config
    assert given.optim.learning_rate == 8e-3 and unset.optim.learning_rate is None
    assert config.differences(given, unset) == ["optim.learning_rate: 0.008 against None"]


def test_none_is_a_text_where_a_key_holds_a_text():
    file = f"--config={ROOT / 'configs' / 'vit_digits.py'}"
    chosen = command_line.parse(["x", file, "--workdir=w", "--config.peft.family=None"]).config
    assert chosen.peft.family == "None"


def test_the_workdirs_name(monkeypatch):
    file = f"--config={ROOT / 'configs' / 'vit_digits.py'}"
    monkeypatch.setenv("HOME", "/home/someone")
    assert command_line.parse(["x", file, "--workdir=~/runs/a"]).workdir == "/home/someone/runs/a"
    with pytest.raises(InputError, match="--workdir is missing"):
        command_line.parse(["x", file, "--workdir="])
    with pytest.raises(InputError, match="'configs' is a folder; expected a file such as configs/vit_digits.py"):
        monkeypatch.chdir(ROOT)
        command_line.parse(["x", "--config=configs", "--workdir=w"])


def test_every_key_says_what_it_does_and_its_default_is_one_that_it_may_have():
    for name, key in config.KEYS.items():
        assert re.fullmatch(r"[A-Z].*\.", key.meaning), name
        key.check(name, key.default)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (Key(1, "", least=1, beside=(-1, "all")), 0, "config.k=0, expected at least 1, or -1 for all"),
        (Key(0.5, "", least=0, most=1), 1.5, "config.k=1.5, expected at most 1"),
        (Key(0.5, "", least=0), math.inf, "config.k=inf, expected at least 0, and a finite number"),
        (Key("a", "", choices=("a", "b")), "c", "config.k='c', expected a or b"),
    ],
)
def test_a_value_that_a_key_may_not_have(key, value, said):
    with pytest.raises(InputError, match=f"^{re.escape(said)}$"):
        key.check("k", value)
    for taken in (key.default, *(key.beside or ())[:1]):
        key.check("k", taken)


def test_the_keys_of_peft_are_the_fields_of_a_spec_and_their_names_are_those_registered():
    assert config.SECTIONS["peft"].keys.keys() == {field.name for field in dataclasses.fields(PeftSpec)}
    for key in config.KEYS.values():
        if key.registry:
            module, _, name = key.registry.rpartition(".")
            registry = getattr(importlib.import_module(module), name)
            assert help_text.registered(key.registry) == (*registry,) and key.default in registry


def test_the_metrics_that_the_help_names_are_those_that_there_are():
    said = re.findall(r"[a-z]\w*", config.KEYS["eval.metrics"].meaning)
    assert {*metrics.METRICS, *metrics.SCORED} <= {*said}


def test_a_plan_is_what_a_config_comes_to():
    given = config.default()
    given.optim.epochs, given.peft.method, given.data.lengths = 3, "hadamard_adapter", "64, 32"
    plan = config.checked(given)
    assert plan.spec == config.spec(given) and plan.lengths == (32, 64) and plan.metrics == ()
    assert plan.optimizer == "adamw" and plan.head_first_fraction == 0.5
    assert plan.total_steps(65) == 6  # two steps of 64 an epoch
    given.optim.epochs, given.optim.steps, given.optim.head_first_fraction = 0, 7, 0.25
    given.eval.metrics, given.peft.method, given.optim.name = "f1,auc", "loko", "adamw"
    plan = config.checked(given)
    assert plan.total_steps(65) == 7 and plan.metrics == ("f1", "auc")
    assert plan.optimizer == "loko" and plan.head_first_fraction == 0.25


@pytest.mark.parametrize("command", [TRAIN, SWEEP, CALIBRATE])
def test_the_help_lists_every_flag_and_every_key_and_waits_for_no_jax(command):
    # in a process of its own, as here jax is there already
    program = (
        "import sys; from surm.__main__ import main; status = main(sys.argv[1:]); "
        "print(sorted({name.partition('.')[0] for name in sys.modules})); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", program, command.name, "--help"], capture_output=True, text=True)
    text, modules = done.stdout.rsplit("\n", 2)[:2]
    assert done.returncode == 0 and done.stderr == "" and text == help_text.of_command(command)
    assert not {"'jax'", "'flax'", "'grain'", "'optax'"} & {*modules.strip("[]").split(", ")}
    for name, key in config.KEYS.items():
        assert re.search(rf"^  {re.escape(name)}=", text, re.MULTILINE), name
        assert " ".join(key.meaning.replace("`", "").split()) in " ".join(text.split())
    takes = ("workdir=",) if command.workdir else ()
    for flag in ("config=", *takes, "help", *command.options, *command.switches):
        assert f"--{flag}" in text
    assert max(map(len, text.splitlines())) <= 100


def test_both_modules_show_the_help_of_their_command(capsys):
    for module, command in ((train, TRAIN), (sweep, SWEEP)):
        for asked in ("--help", "-h"):
            with pytest.raises(SystemExit) as ended:
                module.main([f"surm.{command.name}", asked])
            assert not ended.value.code and capsys.readouterr().out == help_text.of_command(command) + "\n"
