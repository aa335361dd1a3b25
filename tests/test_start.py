"""A run that starts at another's adapter, whatever its classes, or at Hugging Face PEFT's."""

import json
import pathlib
import re
import shlex
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

import surm
from surm import InputError, config, train
from surm.models import vit
from surm.peft import surgery
from surm.training import start
from tests import small_runs
from tests.conftest import SMALL
from tests.exchange import models as exchanged
from tests.peft.randomize import randomize

PEFT = exchanged.GOLDEN / "transformers5" / "vit_lora"


def base_with(outputs: int) -> vit.ViT:
    model = vit.ViT(SMALL, 5, rngs=nnx.Rngs(0))
    head = vit.ViT(SMALL, outputs, rngs=nnx.Rngs(0)).head
    model.head = head
    return model


def configured(folder: pathlib.Path, **peft):
    given = config.default()
    given.init_adapter = str(folder)
    given.optim.steps = 1
    given.peft.update(peft)
    return config.checked(given)


def started(folder: pathlib.Path, outputs: int = 5, names=(), **peft):
    """The trained arrays that a run starts with, and those that it would start with by itself."""
    given, base = configured(folder, **peft), base_with(outputs)
    fresh = surgery.attach(base, given.spec, nnx.Rngs(3))
    found = start.from_adapter(given, fresh, base, base_with, names=names)
    return surgery.split(found)[1], surgery.split(fresh)[1]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("run")
    spec = surm.PeftSpec(family="circulant", train="head", dropout=0.1)
    model = randomize(surm.attach(base_with(5), spec, nnx.Rngs(1)))
    surm.save_adapter(folder / "adapter", model)
    (folder / "result.json").write_text(json.dumps({"classes": ["a", "b", "c", "d", "e"]}))
    return folder


def trained(folder: pathlib.Path) -> dict:
    return surgery.split(surm.load_adapter(folder / "adapter", base_with(5)))[1]


@pytest.mark.parametrize("inner", ["", "adapter"])
def test_everything_is_taken_over_from_a_run_or_its_adapter(saved, inner, capsys):
    found, _ = started(saved / inner, dropout=0.1, names=tuple("abcde"))
    jax.tree.map(np.testing.assert_array_equal, found, trained(saved))
    assert capsys.readouterr().out == ""


def test_with_other_classes_the_head_is_new_and_that_is_said(saved, capsys):
    found, fresh = started(saved, outputs=2)
    for path, array in found.items():
        expected = fresh[path] if path.startswith("head.") else trained(saved)[path]
        np.testing.assert_array_equal(array, expected)
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("dropout 0.1 → 0")
    assert said[1].endswith("the update is taken over, the head starts afresh: it had 5 outputs, now it has 2")


def test_as_many_classes_of_other_names_have_a_new_head(saved, capsys):
    found, fresh = started(saved, dropout=0.1, names=("b", "a", "c", "d", "e"))
    np.testing.assert_array_equal(found["head.kernel"], fresh["head.kernel"])
    assert capsys.readouterr().out.endswith("the head starts afresh: its classes were a, b, c, d, e\n")


def test_patterns_that_come_to_the_same_layers_are_the_same(saved):
    found, _ = started(saved, targets=r"blocks\..*\.(key|query|value)")
    np.testing.assert_array_equal(found["head.kernel"], trained(saved)["head.kernel"])


def test_what_trains_besides_now_starts_as_the_model_has_it(saved, capsys):
    found, fresh = started(saved, dropout=0.1, train="head|norm")
    assert {"norm.scale", "norm.bias"} <= found.keys()
    np.testing.assert_array_equal(found["norm.scale"], fresh["norm.scale"])
    assert "it holds no norm.bias, norm.scale: they start with the values of the model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("peft", "message"),
    [
        ({"family": "toeplitz"}, "family 'circulant', now 'toeplitz'"),
        ({"options": "hadamard=False"}, "options {}, now {'hadamard': False}"),
        ({"scale": 2.0}, "scale 1.0, now 2.0"),
        ({"magnitude": True}, "magnitude False, now True"),
        ({"targets": ".*query"}, "targets .*, now"),
        ({"rules": ".*query => scale=0.5"}, "rules {}, now"),
        ({"method": "adapter"}, "method 'update', now 'adapter'"),
        (
            {"train": ""},
            "holds trained values of head.bias, head.kernel, which config.peft.train='' does not train; set "
            "config.peft.train='head'$",
        ),
    ],
)
def test_an_update_that_would_mean_something_else_is_refused(saved, peft, message):
    with pytest.raises(InputError, match=message):
        started(saved, **peft)


def test_what_else_an_adapter_of_pefts_trains_is_named_in_one_pattern_that_works(tmp_path):
    file = PEFT.parent / "vit_biases"

    def start_with(train: str) -> set[str]:
        keys = {"family": "low_rank", "options": "rank=2", "targets": r".*\.(query|value)", "scale": 4.0}
        given, model = configured(file, **keys, train=train), exchanged.base("vit")
        fresh = surgery.attach(model, given.spec, nnx.Rngs(3))
        return {*surgery.split(start.from_adapter(given, fresh, model, new_head))[1]}

    with pytest.raises(InputError, match="does not train; set config.peft.train=") as refused:
        start_with("head")
    (said,) = shlex.split(str(refused.value).partition("config.peft.train='head' does not train; set ")[2])
    assert said == r"config.peft.train=head|.*\.bias"
    assert "blocks.1.attention.query.base.bias" in start_with(said.partition("=")[2])


def test_another_base_is_refused(saved):
    other = vit.ViT(SMALL, 5, rngs=nnx.Rngs(9))
    given = configured(saved)
    fresh = surgery.attach(other, given.spec, nnx.Rngs(3))
    with pytest.raises(InputError, match="this model's base is another"):
        start.from_adapter(given, fresh, other, base_with)


def test_a_folder_that_is_no_adapter_says_what_it_is(saved, tmp_path):
    with pytest.raises(InputError, match="nowhere' is no folder; expected a finished run's folder, or an adapter's"):
        started(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no adapter_config.json; expected"):
        started(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="is a run that has not finished: its adapter comes at the end"):
        started(tmp_path)
    shutil.copytree(saved, tmp_path / "members" / "seed=1")
    with pytest.raises(InputError, match="is a population; expected one of its members, such as '.*seed=1'"):
        started(tmp_path)


def of_peft(outputs: int, **peft):
    given = configured(PEFT, **peft)
    base = exchanged.base("vit") if outputs == 7 else new_head(outputs)
    fresh = surgery.attach(base, given.spec, nnx.Rngs(3))
    return surgery.split(start.from_adapter(given, fresh, base, new_head))[1], surgery.split(fresh)[1]


def new_head(outputs: int) -> vit.ViT:
    model = nnx.clone(exchanged.base("vit"))
    model.head = nnx.Linear(model.head.kernel[...].shape[0], outputs, rngs=nnx.Rngs(0))
    return model


def wanted() -> dict:
    """The keys of config.peft that the file asks for, as the refusal says them."""
    with pytest.raises(InputError, match="holds another adapter than config.peft describes; set ") as refused:
        of_peft(7)
    said = str(refused.value).partition("; set ")[2]
    given = [word.removesuffix(",").partition("=")[::2] for word in shlex.split(said)]  # as a shell reads them
    assert all(key.startswith("config.peft.") for key, _ in given)
    return {key.removeprefix("config.peft."): _read(value) for key, value in given}


def _read(value: str):
    """As a flag is read, without asking for its type."""
    return json.loads(value.lower()) if re.fullmatch(r"True|False|[-\d.e]+", value) else value


@pytest.mark.parametrize("outputs", [7, 3])
def test_an_adapter_of_pefts_starts_a_run_of_the_config_that_the_refusal_names(outputs, capsys):
    found, fresh = of_peft(outputs, **wanted())
    imported = surgery.split(surm.import_peft(PEFT, exchanged.base("vit")))[1]
    for path, array in found.items():
        head = path.startswith("head.")
        np.testing.assert_array_equal(array, fresh[path] if head and outputs == 3 else imported[path])
    assert ("the head starts afresh: it had 7 outputs, now it has 3" in capsys.readouterr().out) == (outputs == 3)


@pytest.mark.slow
def test_a_run_of_three_classes_starts_one_of_two(tmp_path, capsys):
    three = small_runs.images(tmp_path / "three", counts=(8, 8, 8))
    two = small_runs.images(tmp_path / "two", counts=(12, 12))
    train.run(small_runs.config(three, **{"optim.steps": 2}), str(tmp_path / "first"))
    more = {"init_adapter": str(tmp_path / "first"), "optim.steps": 1, "optim.learning_rate": 0.0}
    train.run(small_runs.config(two, **more), str(tmp_path / "second"))
    assert "the head starts afresh: its classes were 0, 1, 2" in capsys.readouterr().out
    one, other = (surm.load_run(tmp_path / name).model.blocks[0].attention.query for name in ("first", "second"))
    jax.tree.map(np.testing.assert_array_equal, one.delta.values(), other.delta.values())
