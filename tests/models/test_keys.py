"""Keys of a file of weights beside those that a model needs: passed over, unwrapped, or refused."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from surm.models import bert
from surm.models.convert import restore
from surm.models.hf_config import config_from_hf
from tests.models.test_convert import _changed, _model, _parameters, _refused, _same, _weights


def _any(name: str) -> nnx.Module:
    if name in ("vit", "clip"):
        return _model(name)
    return bert.Bert(config_from_hf(_weights(name).config), 5, rngs=nnx.Rngs(0))


UNUSED = {
    "a decoder of masked images": (
        "vit",
        {"decoder.0.weight": (192, 16, 1, 1), "decoder.0.bias": (192,)},
        "decoder.* (2)",
    ),
    "class weights of a loss": ("bert", {"loss_fct.weight": (3,)}, "loss_fct.weight"),
    "a second head": ("bert", {"domain.weight": (2, 16), "domain.bias": (2,)}, "domain.* (2)"),
    "a head of pretraining": (
        "bert",
        {"cls.predictions.bias": (9,), "bert.embeddings.position_ids": (1, 9)},
        "bert.emb",
    ),
    "a teacher": (
        "bert",
        {"teacher.encoder.layer.0.output.dense.weight": (2, 2)},
        "teacher.encoder.layer.0.output.dense.",
    ),
}


@pytest.mark.parametrize("case", UNUSED)
def test_keys_that_the_model_has_no_use_for_are_said_and_passed_over(case, capsys):
    name, extra, said = UNUSED[case]
    model, arrays = _any(name), {key: np.ones(size, np.float32) for key, size in extra.items()}
    restored = restore(model, dataclasses.replace(_weights(name), arrays=_weights(name).arrays | arrays))
    assert f"which are ignored: {said}" in capsys.readouterr().out
    _same(_parameters(restored), _parameters(restore(model, _weights(name))))


@pytest.mark.parametrize("name", ["vit", "clip", "bert", "roberta"])
@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "0.auto_model."])
def test_a_wrappers_name_is_taken_off_and_said(name, wrapper, capsys):
    arrays = {wrapper + key: array for key, array in _weights(name).arrays.items()}
    found = restore(_any(name), dataclasses.replace(_weights(name), arrays=arrays))
    assert "is removed from its keys" in capsys.readouterr().out
    _same(_parameters(found), _parameters(restore(_any(name), _weights(name))))


def test_a_compiled_part_is_found_again(capsys):
    arrays = {key.replace("encoder.", "encoder._orig_mod."): array for key, array in _weights("bert").arrays.items()}
    found = restore(_any("bert"), dataclasses.replace(_weights("bert"), arrays=arrays))
    assert capsys.readouterr().out.startswith(f"{_weights('bert').name!r}: '_orig_mod.' is removed from its keys\n")
    _same(_parameters(found), _parameters(restore(_any("bert"), _weights("bert"))))


def test_an_unknown_wrapper_is_named():
    arrays = {f"net.student.{key}": array for key, array in _weights("bert").arrays.items()}
    message = _refused(_any("bert"), dataclasses.replace(_weights("bert"), arrays=arrays))
    assert "with the prefix 'net.student.bert.': save the file without that prefix" in message


def test_two_wrapped_models_are_refused():
    arrays = {
        f"{name}.{key}": array for key, array in _weights("bert").arrays.items() for name in ("model", "backbone")
    }
    message = _refused(_any("bert"), dataclasses.replace(_weights("bert"), arrays=arrays))
    assert "weights of several models, under backbone., model.; expected those of one" in message


def test_a_key_inside_of_the_encoder_is_never_passed_over():
    for key in ("bert.encoder.layer.0.crossattention.self.query.weight", "bert.embeddings.task_type_embeddings.weight"):
        weights = _changed("bert", **{key.replace(".", "__"): np.ones((16, 16), np.float32)})
        assert f"not in the model: {key.removeprefix('bert.')}" in _refused(_any("bert"), weights)
    shallow = dataclasses.replace(config_from_hf(_weights("bert").config), depth=1)
    message = _refused(bert.Bert(shallow, 5, rngs=nnx.Rngs(0)), _weights("bert"))
    assert "not in the model: blocks.1.attention.key.bias" in message and message.endswith("and 8 more")


def test_a_misspelt_key_is_named_beside_the_one_expected():
    arrays = {key.replace("layernorm_after", "layer_norm_after"): array for key, array in _weights().arrays.items()}
    message = _refused(_model(), dataclasses.replace(_weights(), arrays=arrays))
    named = "'vit.encoder.layer.0.layer_norm_after.bias' where 'encoder.layer.0.layernorm_after.bias' is expected"
    assert "missing in the file: blocks.0.norm2.bias, " in message and named in message


def test_a_head_for_several_labels_at_once_is_refused():
    multi = dataclasses.replace(_weights(), config=_weights().config | {"problem_type": "multi_label_classification"})
    assert "problem_type='multi_label_classification'" in _refused(_model(), multi, head=True)
    restore(_model(), multi)  # as a base its head is not asked for
