"""Every entry of the catalogue is whole, and nothing outside surm/models knows a model by its class."""

import dataclasses
import pathlib
import re

import pytest
from flax import nnx

from surm.errors import InputError
from surm.exchange.names import namings_of
from surm.models import catalogue
from surm.models.architecture import LABELS, LANGUAGE, SHAPES
from surm.models.hf_config import config_from_hf
from surm.models.naming import FILES, NEW, OLD
from surm.peft import select

SURM = pathlib.Path(__file__).parent.parent.parent / "surm"
ENTRIES = pytest.mark.parametrize("one", catalogue.ARCHITECTURES, ids=lambda one: one.name)


def abstract(one, shape) -> nnx.Module:
    """A model of the shape with one block, without numbers."""
    smaller = dataclasses.replace(shape, depth=1)
    outputs = () if one.reads == LANGUAGE else (3,)
    return nnx.eval_shape(lambda: one.model(smaller, *outputs, rngs=nnx.Rngs(0)))


def joint(one, shape, version) -> tuple[str, ...]:
    """The maps that a version of transformers has as one with others, which no adapter there fits."""
    return ("gate", "up") if version == OLD and one.reads == "image" and getattr(shape, "gated", False) else ()


def written(one, shape) -> dict:
    """The config.json of a shape."""
    return one.to_hf(shape) | {"model_type": one.kind_of(shape)}


@ENTRIES
def test_a_shape_has_what_its_readers_ask_for(one):
    for name, shape in one.presets.items():
        assert isinstance(shape, SHAPES[one.reads]), name
        assert catalogue.of_shape(shape) is one
        assert one.kind_of(shape) in one.kinds
        assert {*one.in_training} <= {field.name for field in dataclasses.fields(shape)}


def test_no_name_is_given_twice():
    names = [name for one in catalogue.ARCHITECTURES for name in one.presets]
    kinds = [kind for one in catalogue.ARCHITECTURES for kind in one.kinds]
    assert len({*names}) == len(names) and len({*kinds}) == len(kinds)


@ENTRIES
def test_what_is_written_to_config_json_is_read_back(one):
    for name, shape in one.presets.items():
        if one.kind_of(shape) not in one.read_only:
            again = config_from_hf(written(one, shape))
            again = again if one.reads == LANGUAGE else dataclasses.replace(again, pooling=shape.pooling)
            assert one.kind_of(again) == one.kind_of(shape), name
            assert written(one, again) == written(one, shape), name


@ENTRIES
def test_what_is_written_is_named_in_every_version_and_has_a_class(one):
    forms = {(one.kind_of(shape), one.absent(shape)): shape for shape in one.presets.values()}
    for shape in forms.values():
        kind = one.kind_of(shape)
        assert (kind in one.read_only) != (kind in one.namings)
        if kind in one.read_only:
            continue
        assert one.classes[kind].keys() == {LANGUAGE if one.reads == LANGUAGE else LABELS}
        model = abstract(one, shape)
        assert catalogue.of(model) is one
        assert re.search(model.norm_behind_attention, " ".join(select.variables(model)))
        for version in (NEW, OLD, FILES):
            naming = namings_of(model)[version]
            for path in select.variables(model):
                if any(f".{part}." in path for part in joint(one, shape, version)):
                    with pytest.raises(InputError, match="has no counterpart"):
                        naming.theirs(path)
                    continue
                whole = naming.joined(path)
                assert naming.ours(naming.theirs(path))[0] == whole and path in naming.apart(whole)


@ENTRIES
def test_obstacles_tell_apart_what_the_classifier_reads(one):
    for name, shape in one.presets.items() if one.reads != LANGUAGE else ():
        if one.kind_of(shape) not in one.read_only:
            theirs = one.classes[one.kind_of(shape)]["labels"]
            reasons = [
                one.obstacle(dataclasses.replace(shape, pooling=pooling), theirs) for pooling in ("mean", "class")
            ]
            assert theirs in reasons[0], name


def test_what_no_architecture_has_is_refused():
    with pytest.raises(InputError, match="given a Linear, expected a ViT or a Bert"):
        catalogue.of(nnx.eval_shape(lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0))))
    with pytest.raises(InputError, match="given a str, expected a ViTConfig or a BertConfig"):
        catalogue.of_shape("vit_micro")
    with pytest.raises(InputError, match="no model is called 'bert_bse'; nearest: bert_base"):
        catalogue.preset("bert_bse", "text")
    with pytest.raises(InputError, match="no model is called 'bert_base'"):
        catalogue.preset("bert_base", "image")
    with pytest.raises(InputError, match=" or ".join(catalogue.BY_KIND)) as caught:
        config_from_hf({"model_type": "bloom"})
    assert "\n" not in str(caught.value)


def test_models_are_known_by_their_class_in_their_room_alone():
    classes = "|".join(name for one in catalogue.ARCHITECTURES for name in (one.model.__name__, one.shape.__name__))
    modules = "|".join({one.model.__module__.rpartition(".")[2] for one in catalogue.ARCHITECTURES})
    imported = re.compile(rf"^\s*(from surm\.models\.({modules})\b|from surm\.models import .*\b({modules})\b)", re.M)
    tested = re.compile(rf"isinstance\(.*\b({classes})\b")
    for file in SURM.rglob("*.py"):
        if SURM / "models" not in file.parents:
            code = re.sub(r">>> .*", "", file.read_text())
            assert not imported.search(code) and not tested.search(code), file
