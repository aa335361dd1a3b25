"""Texts that the language model of a finished run writes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from surm.errors import InputError
from surm.ops.packed import Packed
from surm.peft import surgery
from surm.peft.layers import MergeableLinear
from surm.peft.together.serving import Served
from surm.peft.variables import Trainable
from surm.tasks import generated
from surm.tasks.dialect import Dialect, Prompt
from surm.tasks.generated import Request
from surm.tasks.language import EXACT
from surm.tasks.task import Batch
from surm.training.prepared import Run


def quick(model: nnx.Module) -> nnx.Module:
    """The same function in the form that writes fastest: updates are merged if all adapted kernels are float32.

    A model with an adapted kernel of fewer bits is left as it is, because the merged sum would be rounded to fewer bits
    or would take more memory than a packed kernel.

    Args:
      model: a model, perhaps with an adapter; left untouched.

    Returns:
      A model with the same outputs up to rounding in float32.
    """
    layers = [layer for _, layer in surgery.wrapped_layers(model)]
    if not layers or not all(_mergeable(layer) for layer in layers):
        return model
    return surgery.detach(surgery.merge(model))


def untrained(model: nnx.Module) -> nnx.Module:
    """The model as it was before training, for one in which nothing but adapters of layers has trained.

    Args:
      model: a model with an adapter; left untouched.

    Returns:
      A model that shares the frozen arrays.

    Raises:
      InputError: if variables have trained that no layer of the adapter holds.
    """
    layers = [*surgery.layers_by_path(model)]
    trained = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, Trainable))]
    apart = [name for name in trained if not any(name.startswith(f"{path}.") for path in layers)]
    if apart or not layers:
        raise InputError(
            f"the model without the adapter is asked for, but the run has trained {(apart or ['nothing'])[0]}, which "
            "no adapter holds; expected a run of peft.method=update or adapter with nothing else to train"
        )
    return surgery.detach(model)


def _mergeable(layer: nnx.Module) -> bool:
    if not isinstance(layer, MergeableLinear):
        return False
    kernel = layer.base.kernel.get_value()  # `[...]` would unpack it, and then its dtype is float32
    return not isinstance(kernel, Packed) and kernel.dtype == jnp.float32


def exact_match(
    prepared: Run, batches: Sequence[Batch], trainable: dict[str, jax.Array], scale: float | None = None
) -> dict[str, float]:
    """The metric `exact_match` of a run's model; see `surm.tasks.generated.exact_match`.

    Args:
      prepared: the run.
      batches: the batches of one pass.
      trainable: the trained arrays.
      scale: the scale of the updates; None for the model's own.

    Returns:
      The metric by its name.
    """
    graphdef, _, frozen = surgery.split(prepared.model)
    model = surgery.join(graphdef, trainable, frozen, scale=scale)
    model.runs = ()  # the arrays of its blocks are not stacked
    graphdef, arrays = nnx.split(quick(model))
    # While a run trains, most are in the host's memory, from which every program would copy them again.
    model = nnx.merge(graphdef, jax.device_put(arrays))
    config = prepared.config
    request = Request(max_new_tokens=config.data.generate_tokens, batch_size=config.optim.batch_size)
    return {EXACT.name: generated.exact_match(model, Dialect.of(prepared.task), batches, request)}


def write(
    model: nnx.Module,
    dialect: Dialect,
    prompts: Sequence[Prompt] | Prompt,
    request: Request,
    *,
    raw: bool = False,
    stream: bool = False,
    adapters: Mapping[str, jax.Array] | None = None,
    ids: Sequence[int] | None = None,
) -> list[str] | Iterator[str]:
    """Continues prompts; arguments and result as for `surm.training.runs.LoadedRun.generate`.

    Args:
      model: the model; with `adapters`, one of the stacked models.
      dialect: how it reads and writes.
      prompts: the prompts.
      request: the number of tokens, and how they are chosen.
      raw: whether texts are read as they are.
      stream: whether pieces are yielded.
      adapters: stacked adapters; None for the model's own.
      ids: the adapter of each prompt.

    Returns:
      The texts, or the pieces of one.

    Raises:
      InputError: if something given cannot be used.
    """
    tokens = [_numbered(dialect, number, prompt, raw) for number, prompt in enumerate(_several(prompts))]
    if (adapters is None) != (ids is None):
        raise InputError("adapters and ids belong together: give both, or neither")
    if ids is not None and len(ids) != len(tokens):
        raise InputError(f"{len(ids)} ids for {len(tokens)} prompts, expected one id for each prompt")

    def model_of(rows: Sequence[int]) -> nnx.Module:
        return model if adapters is None else Served(model, adapters, np.asarray(ids)[list(rows)])

    if not stream:
        return generated.texts(model_of, dialect, tokens, request)
    if len(tokens) != 1:
        raise InputError(f"stream=True writes one text, got {len(tokens)} prompts")
    return generated.pieces(model_of([0]), dialect, tokens[0], request)


def _several(prompts: Any) -> Sequence[Prompt]:
    """The prompts as a list, also if there is one alone."""
    alone = isinstance(prompts, str) or (
        isinstance(prompts, list | tuple) and len(prompts) > 0 and all(isinstance(one, Mapping) for one in prompts)
    )
    if not alone and not isinstance(prompts, Sequence | np.ndarray):
        raise InputError(f"given a {type(prompts).__name__}, expected a list of prompts, each a string or messages")
    return [prompts] if alone else prompts


def _numbered(dialect: Dialect, number: int, prompt: Prompt, raw: bool) -> list[int]:
    try:
        return dialect.tokens(prompt, raw=raw)
    except InputError as error:
        raise InputError(str(error).replace("a prompt is", f"prompt {number} is", 1)) from error
