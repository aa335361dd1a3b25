"""An adapter on disk: a folder with the trained arrays in safetensors and a JSON file that describes them.

    DIR/adapter_model.safetensors     the trained arrays by dotted path, the head's among them; no frozen weight
    DIR/adapter_config.json           the spec, the base's name and hash, the hash of the file above

The base is identified by a SHA-256 over its frozen arrays, so an adapter cannot be put on another base unnoticed.
"""

import hashlib
import json
import math
import os
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  lets NumPy hold bfloat16
import numpy as np
import safetensors
from etils import epath
from flax import nnx

import surm.version
from surm import files
from surm.errors import InputError
from surm.ops.packed import Packed
from surm.peft import surgery, tensors
from surm.peft.spec import PeftSpec
from surm.peft.variables import Trainable

Model = TypeVar("Model", bound=nnx.Module)
FORMAT = "surm-adapter-1"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def save_adapter(path: str | os.PathLike, model: nnx.Module, *, base_name: str = "") -> None:
    """Writes the trained part of a model to a folder.

    Args:
      path: the folder, which is created if needed. Files in it are replaced, each in one step.
      model: a model with an adapter.
      base_name: a name of the base for people, such as `asset:vit_micro`; the hash decides.

    Raises:
      InputError: if the model has no adapter, or one with numbers that are not finite, or the path is a file; nothing
        is written in these cases.
    """
    spec = surgery.spec_of(model)
    if spec is None:
        raise InputError("the model has no adapter to save; attach one first")
    model = surgery.unmerge(model)
    weights = tensors.encoded(surgery.split(model)[1])
    config = {
        "format": FORMAT,
        "surm_version": surm.version.__version__,
        "spec": spec.to_json(),
        "base": {"name": base_name, "sha256": base_hash(model)},
        "made_of_base": _made_of_base(model),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    folder = files.made_folder(path)
    files.replace(folder / WEIGHTS, weights)
    files.replace(folder / CONFIG, text)


def load_adapter(path: str | os.PathLike, model: Model) -> Model:
    """Returns the model with the adapter of a folder attached.

    Args:
      path: a folder that `save_adapter` wrote.
      model: the base, as it was when the adapter was attached for training; it is left untouched. An adapter that it
        has already is replaced in the returned model.

    Returns:
      A new model with the outputs of the saved one, in evaluation mode (without dropout; `model.train()` turns it on).

    Raises:
      InputError: if files are missing, truncated, foreign or from different runs, the base is another one (the message
        names both), or shapes do not fit (the message lists the differences).
    """
    saved = read_adapter(path)
    adapted = attached(saved, model)
    graphdef, expected, frozen = surgery.split(adapted)
    check_arrays(str(saved.folder), saved.arrays, expected)
    loaded = surgery.join(graphdef, {name: jnp.asarray(saved.arrays[name]) for name in expected}, frozen)
    check_made(saved, loaded)
    return loaded


class Saved(NamedTuple):
    """The contents of an adapter's folder: its JSON, the spec in it, and the trained arrays by path."""

    folder: epath.Path
    config: dict[str, Any]
    spec: PeftSpec
    arrays: dict[str, np.ndarray]


def read_adapter(path: str | os.PathLike) -> Saved:
    """Reads an adapter without a model; raises the errors of `load_adapter` that the files alone can show."""
    folder = files.path(path)
    config = read_config(folder)
    return Saved(folder, config, _spec(folder, config), _read_weights(folder, config))


def attached(saved: Saved, model: Model) -> Model:
    """A model with a new adapter of the saved form, in evaluation mode; InputError for another base."""
    adapted = surgery.reattach(surgery.detach(surgery.unmerge(model)), saved.spec, nnx.Rngs(0), saved=saved.arrays)
    adapted.eval()
    check_base(saved, adapted)
    return adapted


def read_config(folder: epath.Path) -> dict[str, Any]:
    """Reads and checks an adapter's JSON; InputError if it is missing, damaged or from another program."""
    file = folder / CONFIG
    if not file.is_file():
        raise InputError(f"no adapter in {str(folder)!r}: {CONFIG} is missing")
    config = files.read_object(file)
    if config.get("format") != FORMAT:
        given = config.get("format") or config.get("peft_type")
        remedy = "; surm.import_peft reads those of Hugging Face PEFT" if "peft_type" in config else ""
        raise InputError(f"{str(file)!r} is not an adapter of surm: format {given!r}, expected {FORMAT!r}{remedy}")
    return config


def base_hash(model: nnx.Module) -> str:
    """The SHA-256 over names, dtypes, shapes and bytes of the frozen arrays of a model with an adapter, sorted by name.

    The hash is that of the plain base: it depends neither on the layers being wrapped nor on merging. Of a packed
    matrix it covers the form, the shape and the stored arrays. One array at a time is read from the devices.
    """
    model = surgery.unmerge(model)
    frozen = {path: variable for path, variable in surgery.plain_variables(model, nnx.Param)
              if not isinstance(variable, Trainable)}  # fmt: skip
    digest = hashlib.sha256()
    for name in sorted(frozen):
        value = frozen[name].get_value()
        if isinstance(value, Packed):
            digest.update(f"{name} {value.form} of {value.of} {value.shape} along {value.axis}\n".encode())
        for leaf in jax.tree.leaves(value):
            array = np.ascontiguousarray(leaf)
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def _made_of_base(model: nnx.Module) -> dict[str, float]:
    """The norm of ΔW v for a fixed probe v, for each layer whose frozen arrays are recomputed from the base weights."""
    made = {path: delta for path, delta in surgery.structured_matrices(model).items() if delta.fixed}
    return {
        path: float(jnp.linalg.norm(delta.to_dense() @ jnp.cos(jnp.arange(delta.n_in)))) for path, delta in made.items()
    }


def check_made(saved: Saved, model: nnx.Module) -> None:
    """Raises InputError if the arrays that a family computes from the base are not those of the training machine."""
    folder, here = saved.folder, _made_of_base(model)
    for path, length in (saved.config.get("made_of_base") or {}).items():
        if not math.isclose(length, here.get(path, length), rel_tol=1e-2, abs_tol=1e-6):
            raise InputError(
                f"adapter {str(folder)!r}: the arrays that its family computes from the base differ here at {path}, "
                "because singular values of the base are equal or nearly equal. On the machine that saved the adapter, "
                "surm.to_low_rank or surm.merge makes a model that other machines can read"
            )


def check_arrays(where: str, given: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compares arrays by name and shape; the InputError lists missing and foreign ones, and other shapes."""
    problems = [f"missing {name}" for name in expected if name not in given]
    problems += [f"unknown {name}" for name in given if name not in expected]
    problems += [
        f"{name} has shape {given[name].shape}, expected {expected[name].shape}"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    if problems:
        more = f" (+{len(problems) - 8} more)" if len(problems) > 8 else ""
        more += _outputs(given, expected)
        raise InputError(f"{where!r} does not fit the model: {'; '.join(problems[:8])}{more}")


def _outputs(given: dict[str, Any], expected: dict[str, Any]) -> str:
    """A remedy if only the number of outputs of one module differs; otherwise empty."""
    other = [name for name in expected if name not in given or given[name].shape != expected[name].shape]
    modules = {name.rpartition(".")[0] for name in other}
    same = given.keys() == expected.keys() and all(given[n].shape[:-1] == expected[n].shape[:-1] for n in other)
    if not other or not same or len(modules) > 1:
        return ""
    outputs = given[other[0]].shape[-1]
    return (
        f"; make the model with {outputs} outputs of its {modules.pop()} (classes, say), or train a run with "
        "config.init_adapter, which takes over the update and starts with a new head"
    )


def _spec(folder: epath.Path, config: dict[str, Any]) -> PeftSpec:
    try:
        return PeftSpec(**config["spec"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{str(folder / CONFIG)!r} holds no usable spec: {error}") from error


def _read_weights(folder: epath.Path, config: dict[str, Any]) -> dict[str, np.ndarray]:
    file = folder / WEIGHTS
    if not file.is_file():
        raise InputError(f"no adapter in {str(folder)!r}: {WEIGHTS} is missing")
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != config.get("weights_sha256"):
        raise InputError(f"{str(file)!r} is truncated, or does not belong to the {CONFIG} beside it")
    with safetensors.safe_open(files.local(file), framework="numpy") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is not a dict


def check_base(saved: Saved, adapted: nnx.Module) -> None:
    """Raises InputError if an adapter was trained on a base other than the model's."""
    folder, trained_on, given = saved.folder, saved.config.get("base"), base_hash(adapted)
    if not isinstance(trained_on, dict) or not isinstance(trained_on.get("sha256"), str):
        raise InputError(f"{str(folder / CONFIG)!r} does not name its base")
    if trained_on["sha256"] != given:
        raise InputError(
            f"adapter {str(folder)!r} was trained on base {trained_on.get('name') or 'unnamed'!r} "
            f"(sha256 {trained_on['sha256'][:12]}…); this model's base is another (sha256 {given[:12]}…)"
        )
