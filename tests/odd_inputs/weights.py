"""Files of weights and config.json as people have them: of other programs, other sizes, other precisions."""

import functools
import json
import pathlib

import ml_dtypes
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from surm.models.bert import Bert
from surm.models.convert import restore
from surm.models.hf_config import config_from_hf
from surm.models.weights import open_weights
from tests.odd_inputs.row import Line, Odd

GOLDEN = pathlib.Path(__file__).parents[1] / "models" / "golden" / "bert"


@functools.cache
def _base() -> dict[str, np.ndarray]:
    return load_file(GOLDEN / "model.safetensors")


@functools.cache
def _bert() -> Bert:
    shape = config_from_hf(json.loads((GOLDEN / "config.json").read_text()))
    return nnx.eval_shape(lambda: Bert(shape, 3, rngs=nnx.Rngs(0)))  # no array of it is kept


def _file(change):
    """Restores a BERT from a changed copy of its own file; returns the sum of the word table."""

    def act(folder: pathlib.Path) -> float:
        save_file(change(dict(_base())), folder / "model.safetensors")
        restored = restore(_bert(), open_weights(str(folder)))
        return round(float(np.abs(np.asarray(restored.embed.word.embedding[...])).sum()), 2)

    return act


def _renamed(old: str, new: str):
    return lambda arrays: {key.replace(old, new): array for key, array in arrays.items()}


def _config(**fields):
    """The shape that config.json gives: width, depth, activation, first position."""

    def act(folder: pathlib.Path) -> tuple:
        shape = config_from_hf({"model_type": "bert", **fields})
        return shape.width, shape.depth, shape.activation, shape.first_position

    return act


def _whole(arrays: dict[str, np.ndarray]) -> float:
    return round(float(np.abs(arrays["bert.embeddings.word_embeddings.weight"].astype(np.float32)).sum()), 2)


WORD = "bert.embeddings.word_embeddings.weight"
HALF = {key: array.astype(ml_dtypes.bfloat16) for key, array in _base().items()}

ROWS = [
    Odd("saved by DataParallel, compiled", _file(_renamed("bert.", "module._orig_mod.bert.")), _whole(_base())),
    Odd("a loss's class weights", _file(lambda arrays: arrays | {"criterion.weight": np.ones(3)}), _whole(_base())),
    Odd("in bfloat16", _file(lambda arrays: HALF), _whole(HALF)),
    Odd("in double precision", _file(lambda arrays: {k: v.astype(float) for k, v in arrays.items()}), _whole(_base())),
    Odd("with a wrapper of one's own", _file(_renamed("bert.", "net.bert.")), Line("the prefix 'net.bert.': save the")),
    Odd(
        "two encoders",
        _file(lambda a: {f"{n}.{k}": v for k, v in a.items() for n in ("model", "module.backbone")}),
        Line("weights of several models, under backbone., model."),
    ),
    Odd(
        "an adapter's file",
        _file(lambda arrays: {"base_model.model.bert.lora_A.weight": np.ones(2)}),
        Line("weights of an unknown model, with keys base_model.model.bert.lora_A.weight; known:"),
    ),
    Odd("an empty file", _file(lambda arrays: {}), Line("weights of an unknown model, with keys none")),
    Odd(
        "adapters inside",
        _file(lambda a: a | {"bert.encoder.layer.0.output.lora_A.weight": np.ones((2, 2))}),
        Line("not in the model: encoder.layer.0.output.lora_A.weight"),
    ),
    Odd(
        "weights of eight-bit integers", _file(lambda a: a | {WORD: a[WORD].astype(np.int8)}), Line("of int8, model (")
    ),
    Odd(
        "a word table of other size", _file(lambda a: a | {WORD: a[WORD][:9]}), Line("embed.word.embedding: file (9, ")
    ),
    Odd(
        "without LayerNorms",
        _file(lambda a: {k: v for k, v in a.items() if "LayerNorm" not in k}),
        Line("missing in the file: blocks.0.norm1.bias"),
    ),
    Odd(
        "a misspelt key",
        _file(_renamed("intermediate.dense.weight", "intermediate.dense.wieght")),
        Line("dense.wieght' where 'encoder.layer.0.intermediate.dense.weight' is expected"),
    ),
    Odd(
        "an activation in capitals",
        _config(hidden_act="GELU"),
        Line("hidden_act='GELU'; expected another, nearest: gelu"),
    ),
    Odd("an activation with weights", _config(hidden_act="prelu"), Line("hidden_act='prelu'; expected another")),
    Odd("an activation by its other name", _config(hidden_act="swish"), (768, 12, "silu", 0)),
    Odd("a RoBERTa of another language", _config(model_type="camembert", num_hidden_layers=3), (768, 3, "gelu", 2)),
    Odd("a field that is null", _config(hidden_size=None, layer_norm_eps=None), (768, 12, "gelu", 0)),
    Odd(
        "ALiBi by code of its own",
        _config(position_embedding_type="alibi", auto_map={"AutoModel": "jina--x.Y"}),
        Line("position_embedding_type='alibi'; expected 'absolute'"),
    ),
    Odd(
        "quantised weights", _config(quantization_config={"load_in_4bit": True}), Line("; expected unquantised weights")
    ),
    Odd(
        "ELECTRA small",
        _config(model_type="electra"),
        Line("embedding_size=128, hidden_size=256; expected both to be equal"),
    ),
    Odd(
        "a size that is a fraction",
        _config(hidden_size=768.5),
        Line("hidden_size=768.5; expected a whole number from 1"),
    ),
    Odd("a decoder", _config(is_decoder=True), Line("is_decoder=True; expected an encoder")),
]
