import pathlib
import runpy

import pytest

from surm import InputError, config
from surm.cli import command_line

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


def test_the_workdirs_name(monkeypatch):
    file = f"--config={ROOT / 'configs' / 'vit_digits.py'}"
    monkeypatch.setenv("HOME", "/home/someone")
    assert command_line.parse(["x", file, "--workdir=~/runs/a"]).workdir == "/home/someone/runs/a"
    with pytest.raises(InputError, match="--workdir is missing"):
        command_line.parse(["x", file, "--workdir="])
    with pytest.raises(InputError, match="'configs' is a folder; expected a file such as configs/vit_digits.py"):
        monkeypatch.chdir(ROOT)
        command_line.parse(["x", "--config=configs", "--workdir=w"])
