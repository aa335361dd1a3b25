"""Many adapters of one base in one forward pass; each example of a batch names the adapter that answers it.

    models = [surm.load_adapter(folder, base) for folder in folders]
    adapters = surm.stack_adapters(models)
    serve = nnx.jit(surm.serve_batch)
    logits = serve(models[0], adapters, images, ids)  # example i by the adapter ids[i]

Each frozen kernel multiplies the whole batch in one product. Only the trained arrays, a few thousand numbers
per adapter, are gathered for every example and multiply it separately.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from surm.errors import InputError
from surm.matrices.algebra.platforms import platform_of
from surm.ops.packed import Packed
from surm.peft import select, store, surgery
from surm.peft.matrix import StructuredMatrix
from surm.peft.multiply import paths
from surm.peft.together import bases

_READ_OF_SPEC = {
    "update": ("family", "scale", "magnitude", "rules"),
    "adapter": ("family", "activation"),
    "bottleneck": ("activation",),
}
"""For each position, the fields of a spec that an answer depends on, besides the trained arrays."""


def stack_adapters(models: Sequence[nnx.Module]) -> dict[str, jax.Array]:
    """Stacks the trained arrays of several models that share one base, for `serve_batch`.

    Args:
      models: models from `attach` or `load_adapter` that differ only in the values of their trained arrays.

    Returns:
      The trained arrays, the head's among them, by dotted path, with one axis in front: entry i is that of models[i].

    Raises:
      InputError: if there is no model, one has no adapter, or two differ in family, scale, base, or in the names,
        shapes or types of trained arrays (for example because their heads have different numbers of classes).
    """
    if not models:
        raise InputError("no model to stack the adapter of, expected at least one")
    models = [_adapted(f"models[{index}]", model) for index, model in enumerate(models)]
    graphdefs, trained, frozen = zip(*map(surgery.split, models), strict=True)
    first, base = _form(models[0], trained[0]), _arrays(frozen[0])
    for index, model in enumerate(models[1:], start=1):
        if differing := _differences(first, _form(model, trained[index])):
            raise InputError(f"models 0 and {index} cannot be stacked: {differing}")
        _check_same(index, base, _arrays(frozen[index]))
        if graphdefs[index] != graphdefs[0] and bases.structure(model) != bases.structure(models[0]):
            raise InputError(f"models 0 and {index} have bases of the same arrays, but compute differently with them")
    return {path: jnp.stack([arrays[path] for arrays in trained]) for path in trained[0]}


def serve_batch(
    model: nnx.Module,
    adapters: Mapping[str, ArrayLike],
    x: ArrayLike | Mapping[str, Any],
    ids: ArrayLike | Sequence[int],
) -> Any:
    """Answers a batch in one forward pass, each example by its own adapter: model ids[i] answers x[i].

    The model is evaluated without dropout, as after `model.eval()`. Compile this with `nnx.jit`, or with `jax.jit`
    around the last three arguments; other values of these, even other ids, do not compile again.

    Args:
      model: one of the stacked models, merged or not; it is left untouched, and its trained arrays are not read.
      adapters: the result of `stack_adapters`.
      x: the model's input, or its arguments by name, such as tokens and mask, or tokens and the cache of a decoder; the
        first axis of every array is the batch, and arrays without axes belong to all examples.
      ids: one integer for each example, 0 <= id < number of adapters.

    Returns:
      The model's output for the batch.

    Raises:
      InputError: if the model has no adapter, the arrays of `adapters` are not its own, `ids` are not one integer for
        each example, or one is out of range. Inside `jax.jit` ids are unknown; the answer to an example with a bad id
        is then NaN.
    """
    model = _adapted("model", model)
    _multiply_each(model, platform_of(*jax.tree.leaves((dict(adapters), x))))
    model.eval()
    graphdef, trained, frozen = surgery.split(model)
    count = _count(adapters, trained)
    arguments, named = ((), dict(x)) if isinstance(x, Mapping) else ((x,), {})
    ids = _checked_ids(ids, named or {"x": x}, count)
    own = {path: _of_each(adapters[path], ids) for path in trained}
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, (arguments, named)))
    of_outputs = []

    def answer(trained: dict[str, jax.Array], leaves: list[jax.Array]) -> list[jax.Array]:
        each = [leaf[None] if leaf.ndim else leaf for leaf in leaves]
        arguments, named = jax.tree.unflatten(structure, each)
        outputs, form = jax.tree.flatten(surgery.join(graphdef, trained, frozen)(*arguments, **named))
        of_outputs.append((form, [not leaf.ndim for leaf in outputs]))
        return [leaf[0] if leaf.ndim else leaf for leaf in outputs]

    found = jax.vmap(answer, in_axes=(0, [0 if leaf.ndim else None for leaf in leaves]))(own, leaves)
    form, common = of_outputs[-1]
    return jax.tree.unflatten(form, [leaf[0] if one else leaf for leaf, one in zip(found, common, strict=True)])


class Served(nnx.Module):
    """A decoder in which every row of a batch has an adapter of its own; it is called like one.

    model = Served(models[0], surm.stack_adapters(models), ids)
    surm.models.generation.generate(model, prompts, max_new_tokens=64)  # row i by the adapter ids[i]
    """

    def __init__(self, model: nnx.Module, adapters: Mapping[str, ArrayLike], ids: ArrayLike | Sequence[int]):
        """Keeps the arguments of `serve_batch`.

        Args:
          model: one of the stacked models.
          adapters: the result of `stack_adapters`.
          ids: the adapter of each row. Batches may have more rows, which are padding.
        """
        self.model = model
        self.adapters = nnx.Variable({path: jnp.asarray(array) for path, array in adapters.items()})
        self.ids = nnx.Variable(_checked_ids(ids, {}, _count(adapters, surgery.split(_adapted("model", model))[1])))

    @property
    def config(self) -> Any:
        """The shape of the decoder."""
        return self.model.config

    @property
    def embed(self) -> nnx.Module:
        """The table of words."""
        return self.model.embed

    def empty_cache(self, *arguments: Any) -> Any:
        """A cache in which no slot is written yet."""
        return self.model.empty_cache(*arguments)

    def __call__(self, *, tokens: jax.Array, **named: Any) -> Any:
        """The decoder's logits and its cache, each row by its own adapter; arguments as for the decoder."""
        ids = self.ids[...]
        ids = jnp.pad(ids, (0, tokens.shape[0] - len(ids)))
        return serve_batch(self.model, self.adapters.get_value(), {"tokens": tokens, **named}, ids)


def _multiply_each(model: nnx.Module, platform: str) -> None:
    """Sets every layer, in place, to the path for examples with a matrix of their own."""
    for _, layer in surgery.wrapped_layers(model):
        if isinstance(layer.delta, StructuredMatrix):
            layer.path = paths.beside_each(layer.delta.family, layer.delta.n_out, layer.delta.n_in, platform)


def _adapted(name: str, model: nnx.Module) -> nnx.Module:
    """A copy that is not merged; InputError if the model has no adapter."""
    if surgery.spec_of(model) is None:
        raise InputError(f"{name} has no adapter; expected a model from attach or load_adapter")
    return surgery.unmerge(model)


def _form(model: nnx.Module, trained: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Everything that a model's answer depends on, except its base and the values of its trained arrays."""
    spec = surgery.spec_of(model)
    read = {name: getattr(spec, name) for name in ("position", *_READ_OF_SPEC.get(spec.position, ()))}
    return read | {path: f"{array.dtype}{list(array.shape)}" for path, array in trained.items()}


def _differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The differences between two forms, for a message; empty if there are none."""
    names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
    each = [f"{name} is {first.get(name, 'absent')} and {other.get(name, 'absent')}" for name in names[:4]]
    return "; ".join(each) + (f" (+{len(names) - 4} more)" if len(names) > 4 else "")


def _arrays(frozen: nnx.State) -> dict[str, ArrayLike | Packed]:
    """The arrays that all adapters share, by dotted path, without the random state of dropout."""
    return {
        select.dotted(path): variable.get_value()
        for path, variable in nnx.to_flat_state(frozen)
        if not isinstance(variable, nnx.RngState)
    }


def _check_same(index: int, base: Mapping[str, ArrayLike | Packed], other: Mapping[str, ArrayLike | Packed]) -> None:
    """Raises InputError if the bases of two models of one form hold different arrays."""
    differing = [path for path in {**base, **other} if not bases.same(base.get(path), other.get(path))]
    if differing:
        more = f" (+{len(differing) - 3} more)" if len(differing) > 3 else ""
        raise InputError(f"models 0 and {index} have different bases: {', '.join(differing[:3])}{more}")


def _count(adapters: Mapping[str, ArrayLike], trained: Mapping[str, jax.Array]) -> int:
    """The number of adapters; InputError if the arrays are not those of the model, each with one axis in front."""
    shapes = {path: np.shape(array) for path, array in adapters.items()}
    each = {path: jax.ShapeDtypeStruct(shape[1:], jnp.float32) for path, shape in shapes.items()}
    store.check_arrays("adapters", each, trained)
    counts = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(counts) != 1:
        raise InputError(f"arrays of {' and '.join(map(str, sorted(counts)))} adapters, expected as many in each")
    return counts.pop()


def _checked_ids(ids: ArrayLike | Sequence[int], inputs: Mapping[str, Any], count: int) -> jax.Array:
    """The ids as an array; InputError if they are not one integer for each example, or known to be out of range."""
    ids = ids if isinstance(ids, jax.Array) else np.asarray(ids)
    if ids.ndim != 1 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise InputError(f"ids are {ids.dtype}{list(ids.shape)}, expected one integer for each example")
    for path, leaf in jax.tree.leaves_with_path(dict(inputs)):
        if np.shape(leaf) and np.shape(leaf)[:1] != ids.shape:
            name, shape = jax.tree_util.keystr(path, simple=True, separator="."), list(np.shape(leaf))
            raise InputError(f"{len(ids)} ids, but {name} has shape {shape}; expected one id for each example")
    if not isinstance(ids, jax.core.Tracer):
        known = np.asarray(ids)
        for index in np.flatnonzero((known < 0) | (known >= count))[:1]:
            raise InputError(f"ids[{index}]={known[index]}, expected 0 <= id < {count}, the number of adapters")
    return jnp.asarray(ids)


def _of_each(stacked: ArrayLike, ids: jax.Array) -> jax.Array:
    """The array of each example's adapter; NaN where an id is out of range, never another's."""
    return jnp.asarray(stacked).at[ids].get(mode="fill", wrap_negative_indices=False)
