import pathlib
import runpy

import pytest

from surm import InputError, config

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


def test_differences_list_both_values():
    one, other = config.default(), config.default()
    other.seed = 3
    assert config.differences(one, one) == []
    assert config.differences(one, other) == ["seed: 0 against 3"]
