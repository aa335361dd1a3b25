"""Adapters and models as other programs leave them, and files that are to be written."""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

import surm
from surm.peft import surgery, tensors
from tests.exchange.models import GOLDEN, adapted, base, change, put, reshaped
from tests.exchange.models import tensors as tensors_of
from tests.odd_inputs.row import Line, Odd

LORA, ADALORA = (GOLDEN / "transformers5" / name for name in ("vit_lora", "bert_adalora"))
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def _imported(folder: pathlib.Path, kind: str = "vit") -> str:
    return surgery.spec_of(surm.import_peft(folder, base(kind))).family


def _changed(source: pathlib.Path = LORA, **fields) -> Callable[[pathlib.Path], Any]:
    """Imports an adapter with some fields of its config changed."""

    def act(folder: pathlib.Path) -> str:
        shutil.copytree(source, folder / "in")
        change(folder / "in", **fields)
        return _imported(folder / "in", source.name.split("_")[0])

    return act


def _with(prepare: Callable[[pathlib.Path], Any]) -> Callable[[pathlib.Path], Any]:
    """Imports an adapter after something was done to its folder."""

    def act(folder: pathlib.Path) -> str:
        shutil.copytree(LORA, folder / "in")
        prepare(folder / "in")
        return _imported(folder / "in")

    return act


def _moved(*names: str) -> Callable[[pathlib.Path], None]:
    """Puts the adapter into folders below its own, one after the other copied."""

    def prepare(folder: pathlib.Path) -> None:
        for name in names:
            (folder / name).mkdir(parents=True)
            for file in (CONFIG, WEIGHTS):
                shutil.copy(folder / file, folder / name)
        for file in (CONFIG, WEIGHTS):
            (folder / file).unlink()

    return prepare


def _written(name: str, data: bytes) -> Callable[[pathlib.Path], Any]:
    return lambda folder: (folder / name).write_bytes(data)


def _without_weights(folder: pathlib.Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def _halved(folder: pathlib.Path) -> None:
    put(folder, {key: array.astype(np.float16) for key, array in tensors_of(folder).items()})


def _prefixed(folder: pathlib.Path) -> None:
    put(folder, {key.replace("base_model.model.", ""): array for key, array in tensors_of(folder).items()})


def _of_embedding(folder: pathlib.Path) -> None:
    name = "base_model.model.vit.embeddings.position_embeddings.lora_"
    put(folder, {f"{name}{part}.weight": np.ones((2, 2), np.float32) for part in "AB"})


def _with_nan(folder: pathlib.Path) -> None:
    put(folder, {key: np.full_like(array, np.nan) for key, array in tensors_of(folder).items()})


def _exported(write: Callable[..., None], **spec) -> Callable[[pathlib.Path], Any]:
    return lambda folder: write(folder / "out", adapted("vit", **{"family": "low_rank"} | spec))


def _diverged(folder: pathlib.Path) -> None:
    model = adapted("vit", family="low_rank")
    head = model.head.kernel
    head[...] = head[...].at[0, 0].set(jnp.inf)
    surm.save_adapter(folder / "out", model)


def _fortran(folder: pathlib.Path) -> list[list[float]]:
    data = tensors.encoded({"a": np.asfortranarray([[1.0, 2.0], [3.0, 4.0]])})
    return np.frombuffer(data[-32:]).reshape(2, 2).tolist()


def _on_a_file(folder: pathlib.Path) -> None:
    (folder / "file").write_text("")
    surm.export_peft(folder / "file", adapted("vit", family="low_rank"))


def _of_classes(number: int):
    model = nnx.clone(base("vit"))
    model.head = nnx.Linear(model.config.width, number, rngs=nnx.Rngs(0))
    return model


def _of_mean():
    model = adapted("vit", family="low_rank")
    model.config = dataclasses.replace(model.config, pooling="mean")
    return model


def _of_our_own(folder: pathlib.Path) -> None:
    surm.save_adapter(folder / "in", adapted("vit", family="circulant"))
    surm.import_peft(folder / "in", base("vit"))


def _foreign(folder: pathlib.Path) -> None:
    surm.load_adapter(LORA, base("vit"))


ROWS = [
    Odd("a field that PEFT does not follow on linear layers", _changed(fan_in_fan_out=True), "low_rank"),
    Odd(
        "the config of a quantised initial value that was not used",
        _changed(loftq_config={"loftq_bits": 4}),
        "low_rank",
    ),
    Odd(
        "an initial value that changed the base", _changed(init_lora_weights="pissa"), Line("change the frozen weights")
    ),
    Odd("a type in small letters", _changed(peft_type="lora"), Line("says peft_type='lora'; supported: LORA, C3A")),
    Odd("a rank that is another adapter's", _changed(r=16), Line("LoRA tensors of rank 2, but its config says 16")),
    Odd(
        "an alpha that is no number", _changed(lora_alpha=float("nan")), Line("lora_alpha=nan in the adapter's config")
    ),
    Odd("a bias that PEFT has not", _changed(bias="most"), Line("bias='most'; supported: 'none', 'all', 'lora_only'")),
    Odd(
        "token rows that trained", _changed(trainable_token_indices=[7]), Line("merge it in PEFT, which puts the rows")
    ),
    Odd(
        "AdaLoRA without a first rank", _changed(ADALORA, init_r=0), Line("init_r=0 in the adapter's config, expected")
    ),
    Odd("AdaLoRA whose ranks are lost", _changed(ADALORA, rank_pattern=None), Line("but its config says rank 4")),
    Odd("a config in Python's words", _with(_written(CONFIG, b'{"peft_type": None}')), Line("cannot be read as JSON")),
    Odd(
        "an adapter of AdapterHub's",
        _with(_written(CONFIG, b'{"model_class": "B"}')),
        Line("AdapterHub's library writes"),
    ),
    Odd("a pointer of git LFS", _with(_written(WEIGHTS, b"version https://git-lfs")), Line("or a git LFS pointer?")),
    Odd("a pickle alone", _with(_without_weights), Line("adapter_model.bin is a pickle, which surm never loads")),
    Odd("an adapter with a name", _with(_moved("class")), "low_rank"),
    Odd("a trainer's only checkpoint", _with(_moved("checkpoint-500")), "low_rank"),
    Odd(
        "a trainer's checkpoints",
        _with(_moved("checkpoint-1000", "checkpoint-500")),
        Line("/checkpoint-500, "),
    ),
    Odd(
        "two adapters with names", _with(_moved("one", "other")), Line("holds 2 adapters; expected the folder of one: ")
    ),
    Odd("an adapter in half precision", _with(_halved), "low_rank"),
    Odd("keys without PEFT's prefix", _with(_prefixed), "low_rank"),
    Odd("an adapted embedding", _with(_of_embedding), Line("position_embeddings")),
    Odd("an adapter that diverged in PEFT", _with(_with_nan), Line("with numbers that are not finite")),
    Odd("an adapter that diverged here", _diverged, Line("head.kernel holds 1 of 112 numbers that are not finite")),
    Odd("the file in the folder", lambda _: _imported(LORA / WEIGHTS), Line("is a file; expected the folder of an")),
    Odd("a folder that is not there", lambda folder: _imported(folder / "none"), Line("there is no such folder")),
    Odd(
        "a name that is none of the hub's",
        lambda _: surm.import_peft("hf:a b", base("vit")),
        Line("no valid name on the hub"),
    ),
    Odd("an adapter of our own for PEFT's", _of_our_own, Line("in surm's own format; surm.load_adapter reads it")),
    Odd("an adapter of PEFT's for ours", _foreign, Line("surm.import_peft reads those of Hugging Face PEFT")),
    Odd(
        "an adapter of a model with other classes",
        lambda _: surm.import_peft(LORA, _of_classes(3)),
        Line("make the model with 7 outputs of its head (classes, say), or train a run with config.init_adapter"),
    ),
    Odd(
        "a mean of tokens for transformers",
        lambda folder: surm.export_merged(folder / "out", reshaped("bert", pooling="mean")),
        Line("which RUN/adapter holds as well; surm export --encoder_only writes it in PEFT's files, without the head"),
    ),
    Odd(
        "a mean of patches for PEFT",
        lambda folder: surm.export_peft(folder / "out", _of_mean()),
        Line("surm.save_model, or surm merge RUN --out NAME.safetensors, writes the whole model if it has a preset"),
    ),
    Odd("a file where a folder is to be", _on_a_file, Line("is a file, expected a folder")),
    Odd(
        "the bias of one adapted layer of two",
        _exported(surm.export_peft, targets=".*(query|value)", train=".*query.bias"),
        Line("PEFT saves the biases of all adapted layers or of none"),
    ),
    Odd(
        "a bottleneck for PEFT",
        _exported(surm.export_peft, method="bottleneck", options=""),
        Line("cannot be written in PEFT's files"),
    ),
    Odd(
        "two outputs of one name",
        lambda folder: surm.export_merged(folder / "out", base("vit"), labels=list("aabcdef")),
        Line("labels names 'a' more than once"),
    ),
    Odd(
        "a tokenizer that is not there",
        lambda folder: surm.export_merged(folder / "out", base("bert"), tokenizer=folder),
        Line("no tokenizer in "),
    ),
    Odd("an array in Fortran's order", _fortran, [[1.0, 2.0], [3.0, 4.0]]),
    Odd(
        "an array of Python's objects",
        lambda _: tensors.encoded({"a": [None]}),
        Line("cannot be written as safetensors"),
    ),
]
