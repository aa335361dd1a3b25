"""The dtype in which the frozen matrices of a model are stored."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from surm.errors import InputError
from surm.ops.packed import FORMS, Packed, PackedEmbed, PackedLinear, pack
from surm.peft import select, surgery
from surm.peft.kernels import is_floating
from surm.peft.spec import PeftSpec

Model = TypeVar("Model", bound=nnx.Module)
_SMALL_TABLE = 256  # rows; smaller tables, such as that of two segments, take little memory


def with_base_dtype(model: Model, dtype: str, spec: PeftSpec | None = None) -> Model:
    """Returns a model whose linear layers and tables of words are stored in fewer bits.

    Biases, norms and small tables stay as they are, and so does everything that a spec trains. Products are computed in
    the dtype of the model. The matrices cannot train, but every update and adapter acts beside them, and they may be
    merged: `surm.merge` unpacks a kernel and adds the update to it.

    Args:
      model: a model without an adapter, which is left untouched.
      dtype: `float32`, which changes nothing, `bfloat16`, `int8` or `int4`; see `surm.ops.packed`.
      spec: the adapter that the model will get.

    Returns:
      A new model.

    Raises:
      InputError: if the model has an adapter, there is no such dtype, qwix is not installed, or no matrix remains that
        does not train.
    """
    if dtype == "float32":
        return model
    if dtype not in FORMS:
        raise InputError(f"base_dtype={dtype!r}, expected float32, {', '.join(FORMS)}")
    if surgery.spec_of(model) is not None:
        raise InputError(f"base_dtype={dtype!r} needs a model without an adapter; detach it first")
    if dtype.startswith("int"):
        _check_qwix(dtype)
    model = nnx.clone(model)
    if not pack_rest(model, dtype, spec):
        raise InputError(f"base_dtype={dtype!r}, but no matrix of the model is frozen; expected float32")
    return model


def pack_rest(model: nnx.Module, dtype: str, spec: PeftSpec | None = None) -> bool:
    """Packs, in place, every matrix of a model that is not packed yet; arguments as for `with_base_dtype`.

    A model from `with_base_dtype` has one if `surm.models.convert.restore` found an output of its own in the file.

    Returns:
      Whether there was one.
    """
    if dtype not in FORMS:
        return False
    trained, found = _trained(model, spec), False
    for path, node in select.walk(model):
        name = select.dotted(path)
        if type(node) is nnx.Linear and is_floating(node.kernel) and node.kernel.ndim == 2:
            new = None if f"{name}.kernel" in trained else PackedLinear(node, dtype)
        elif type(node) is nnx.Embed and node.num_embeddings >= _SMALL_TABLE:
            new = None if f"{name}.embedding" in trained else PackedEmbed(node, dtype)
        else:
            continue
        if new is not None:
            select.put(model, path, new)
            found = True
    return found


def put(model: nnx.Module) -> Callable[[str, np.ndarray, np.dtype], Any]:
    """The `put` with which `surm.models.convert.restore` fills a model from `with_base_dtype`, matrix by matrix.

    Args:
      model: the model; it may have shapes in place of arrays.

    Returns:
      A function from a path, the array of a file and a dtype to the value of the variable.
    """
    values = {
        select.dotted(path): variable.get_value() for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }

    def packed(path: str, array: np.ndarray, dtype: np.dtype) -> Any:
        value = values.get(path)  # None for an output of its own, which comes with the file; see `pack_rest`
        if not isinstance(value, Packed):
            return jnp.asarray(array, dtype)
        if value.form == "bfloat16":  # rounded by NumPy, so that no copy in float32 is made
            bits = array.astype(dtype, copy=False).astype(jnp.bfloat16).view(np.uint16)
            return dataclasses.replace(value, values=jnp.asarray(bits))
        return pack(jnp.asarray(array, dtype), value.form, value.axis)

    return packed


def _trained(model: nnx.Module, spec: PeftSpec | None) -> Collection[str]:
    """The paths of the variables of a model that will train."""
    if spec is None:
        return ()
    variables = select.variables(model)
    by_itself = select.matching(spec.targets, variables) if spec.position == "variables" else ()
    return {*(select.under(spec.train, variables) if spec.train else ()), *by_itself}


def _check_qwix(dtype: str) -> None:
    try:
        import qwix  # noqa: F401
    except ImportError as error:
        raise InputError(f"base_dtype={dtype!r} needs qwix: pip install 'surm[quantised]' ({error})") from error
