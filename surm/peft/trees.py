"""Updates for any model whose parameters are a tree of arrays: Flax Linen, Equinox, Haiku, or written by hand.

    adapter, apply = surm.adapt_params(params, spec, jax.random.key(0))
    gradients = jax.grad(lambda adapter: loss(apply(params, adapter), batch))(adapter)  # params stay frozen
    merged = apply(params, adapter)  # for inference

The adapted tree has the structure of the frozen one, so any code can read it. ΔW is formed as a dense matrix and added
to the kernel in every step; this costs little compared with the product with a batch of many tokens.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from surm import matrices
from surm.errors import InputError, quoted
from surm.matrices import Params
from surm.matrices.algebra.params import working_dtype
from surm.peft import select, store, tree_arrays
from surm.peft.kernels import KernelLayout, in_words
from surm.peft.spec import PeftSpec

Tree = TypeVar("Tree")
_VALUE = "value"
"""The name of the array, in an adapter, of a leaf that trains as a whole."""


@dataclasses.dataclass(frozen=True)
class _Update:
    """ΔW of a kernel, or of a segment of its outputs."""

    path: str
    segment: str  # empty for the whole kernel
    layout: KernelLayout
    shape: tuple[int, ...]  # the shape of the kernel
    spec: PeftSpec

    @property
    def name(self) -> str:
        return f"{self.path}:{self.segment}" if self.segment else self.path

    @property
    def rows(self) -> slice:
        n_out, _ = self.layout.sizes(self.shape)
        return slice(*self.layout.spans(n_out)[self.segment]) if self.segment else slice(0, n_out)

    @property
    def sizes(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.layout.sizes(self.shape)[1]

    @property
    def family(self) -> matrices.Family:
        return matrices.FAMILIES[self.spec.family]

    def initial(self, key: PRNGKeyArray) -> Params:
        """Initial parameters, for which ΔW = 0."""
        init = functools.partial(self.family.init, n_out=self.sizes[0], n_in=self.sizes[1], **self.spec.structure)
        return self._of_each(init, jax.random.split(key, self.layout.stack(self.shape)))

    def fixed(self, kernel: Float[Array, "..."]) -> Params:
        """The arrays that the family computes from the base; empty for most families."""
        if not self.family.fixed:
            return {}
        return self._of_each(functools.partial(self.family.fixed, **self.spec.structure), self._base(kernel))

    def added(self, kernel: Float[Array, "..."], params: Params) -> Float[Array, "..."]:
        """kernel + scale·ΔW; the other segments keep their bits."""
        to_dense = self.family.quick_dense or self.family.to_dense
        delta = self._of_each(functools.partial(to_dense, n_out=self.sizes[0], n_in=self.sizes[1]), params)
        updated = self._base(kernel) + (self.spec.scale * delta).astype(kernel.dtype)
        whole = jax.lax.dynamic_update_slice_in_dim(self.layout.matrices(kernel), updated, self.rows.start, axis=-2)
        return self.layout.kernel(whole, self.shape)

    def _base(self, kernel: Float[Array, "..."]) -> Float[Array, "*stack n_out n_in"]:
        return self.layout.matrices(kernel)[..., self.rows, :]

    def _of_each(self, function: Callable[..., Any], argument: Any) -> Any:
        """Applies a family's function to every matrix of a stack."""
        try:
            return self.layout.each(function)(argument)
        except ValueError as error:
            raise InputError(f"{self.name}: {self.spec.family}: {error}") from error


def adapt_params(
    params: Tree, spec: PeftSpec, key: PRNGKeyArray, *, layouts: Mapping[str, KernelLayout] | None = None
) -> tuple[dict[str, Params], Callable[[Tree, Mapping[str, Any]], Tree]]:
    """Makes an adapter for a tree of parameters, and the function that applies it: kernel + scale·ΔW.

    Args:
      params: any tree of arrays, such as `variables["params"]` or an Equinox module; left untouched. Leaves that are
        not arrays are passed through.
      spec: a spec of the method `update`. Its patterns (targets, rules, exclude) match a whole dotted path: that of a
        kernel, `encoder.0.query.kernel`; of a module with one kernel, `encoder.0.query`; or of a segment,
        `encoder.0.qkv.kernel:query` or `encoder.0.qkv:query`. `train` names leaves that train as a whole, such as the
        head. `path` is not used, and penalties and rank budgets do not act, because the training is the caller's.
      key: the random key of the initial values.
      layouts: the layouts of kernels, by patterns like those of targets; the first pattern that matches counts. A
        kernel with two axes that no pattern matches is read as (n_in, n_out), **which is wrong for Equinox and
        PyTorch**: see `KernelLayout`.

    Returns:
      The adapter and a function that applies it.
      The adapter holds the family's parameters of every target, with stacked axes in front, such as
      `{"encoder.0.query.kernel": {"a": ..., "b": ...}}`, and `{"value": ...}` for a leaf that trains as a whole. It is
      a plain tree for optax, `jax.vmap` or a file.
      The function (frozen, adapter) -> adapted tree is pure and can be used inside `jax.jit`, `jax.grad` and
      `jax.vmap`. `frozen` is params, or a tree with such kernels at the same paths; the result has its structure and
      dtypes, and its other leaves unchanged. Sums are computed in float32 at least and rounded to the kernel's dtype.
      (In bfloat16 small updates are lost: keep `frozen` in float32 and compute in bfloat16.) The adapter may also be a
      flat dictionary by `path.name`. Arrays that a family computes from the base are computed once, by `adapt_params`,
      and are constants of the compiled program. The function raises InputError, which lists the differences, if names
      or shapes of the adapter or of the kernels are not the expected ones.

    Raises:
      InputError: if the method is not `update`, or the spec has dropout or a magnitude; if a pattern matches nothing
        (the message names the nearest paths) or an array that is not a kernel; if two rules claim a kernel; if a layout
        is missing or does not fit; or if an option does not fit a kernel's shape.

    Examples:
      >>> params = {"mlp": {"kernel": jnp.ones((4, 6)), "bias": jnp.zeros(6)}}
      >>> adapter, apply = adapt_params(params, PeftSpec(targets="mlp"), jax.random.key(0))
      >>> jax.tree.map(jnp.shape, adapter)
      {'mlp.kernel': {'a': (6,), 'b': (6,)}}
      >>> adapter["mlp.kernel"]["b"] += 1.0
      >>> merged = apply(params, adapter)
      >>> bool((merged["mlp"]["kernel"] != 1).all()), merged["mlp"]["bias"] is params["mlp"]["bias"]
      (True, True)
      >>> flat = {f"{path}.{name}": array for path, one in adapter.items() for name, array in one.items()}
      >>> bool((apply(params, flat)["mlp"]["kernel"] == merged["mlp"]["kernel"]).all())  # flat is for safetensors
      True
    """
    if not isinstance(spec, PeftSpec) or not isinstance(key, jax.Array):
        given = f"a {type(spec).__name__} and a {type(key).__name__}"
        raise InputError(f"adapt_params takes a PeftSpec and a key such as jax.random.key(0), got {given}")
    leaves = tree_arrays.arrays_of(params)
    if not leaves:
        raise InputError(f"params, a {type(params).__name__}, holds no array; expected a tree of them")
    updates = _updates(spec, leaves, tree_arrays.layouts_by_path(layouts or {}, leaves))
    trained = _trained(spec, leaves, {update.path for update in updates})
    keys = jax.random.split(key, len(updates))
    adapter = {update.name: update.initial(key) for update, key in zip(updates, keys, strict=True)}
    fixed = {update.name: update.fixed(_wide(leaves[update.path])) for update in updates}
    adapter |= {path: {_VALUE: jnp.array(leaves[path])} for path in trained}  # a copy: the adapter may be donated
    expected = jax.tree.map(tree_arrays.form, tree_arrays.arrays_of(adapter))
    places = {path: tree_arrays.form(leaves[path]) for path in (*(update.path for update in updates), *trained)}
    names = {name: list(values) for name, values in adapter.items()}

    def apply(frozen: Tree, adapter: Mapping[str, Any]) -> Tree:
        arrays, given = tree_arrays.arrays_of(frozen), tree_arrays.arrays_of(adapter)
        store.check_arrays("adapter", given, expected)
        store.check_arrays("frozen", {path: arrays[path] for path in places if path in arrays}, places)
        changed = {path: given[f"{path}.{_VALUE}"] for path in trained}
        for update in updates:
            values = {name: jnp.asarray(given[f"{update.name}.{name}"]) for name in names[update.name]}
            kernel = changed.get(update.path, _wide(arrays[update.path]))
            changed[update.path] = update.added(kernel, values | fixed[update.name])
        return _replaced(frozen, changed)

    return adapter, apply


def _check(spec: PeftSpec) -> None:
    """Raises InputError if the spec, or the spec of one kernel, has fields that do not work in a tree of parameters."""
    if spec.method != "update":
        raise InputError(f"method={spec.method!r}, but in a tree of parameters only kernels change; expected 'update'")
    if spec.dropout:
        raise InputError(f"dropout={spec.dropout}, but an update inside the kernel has no input to drop; expected 0")
    if spec.magnitude:
        raise InputError("magnitude=True, which a tree of parameters has no place for; expected False")
    if matrices.FAMILIES[spec.family].trained_shared:
        raise InputError(f"{spec.family} shares arrays between layers, which a tree of parameters has no place for")


def _updates(spec: PeftSpec, leaves: Mapping[str, Any], layouts: Mapping[str, KernelLayout]) -> list[_Update]:
    known = tree_arrays.named(leaves, layouts)
    matched = select.matching((*spec.targets, *spec.rules, *spec.exclude), known, "array or module")
    _check(spec)
    names: dict[tuple[str, str], list[str]] = {}  # a kernel may also be named by its module
    for name, place in known.items():
        names.setdefault(place, []).append(name)
    found = {place: own for place in dict.fromkeys(known[name] for name in matched)
             if (own := spec.at(*names[place])) is not None}  # fmt: skip
    if not found:
        targets, exclude = quoted(spec.targets), quoted(spec.exclude)
        raise InputError(f"targets={targets} without exclude={exclude} and rules' off leaves no kernel")
    for path, segment in found:
        if segment and (path, "") in found:
            raise InputError(f"targets match {path} and its segment {path}:{segment}; expected one of them")
    for own in found.values():
        _check(own)
    return [_update(own, path, segment, leaves[path], layouts) for (path, segment), own in found.items()]


def _update(spec: PeftSpec, path: str, segment: str, leaf: Any, layouts: Mapping[str, KernelLayout]) -> _Update:
    shape = tuple(leaf.shape)
    if not tree_arrays.is_kernel(path, leaf):
        raise InputError(f"targets match {path}, {in_words(leaf)}, which is not a kernel; expected only kernels")
    tree_arrays.check_floating("targets", path, leaf)
    if len(shape) != 2 and path not in layouts:
        raise InputError(f"{path} is {in_words(leaf)}; expected two axes, or which of them are inputs and outputs: "
                         "layouts={PATTERN: KernelLayout(inputs=..., outputs=...)}")  # fmt: skip
    update = _Update(path, segment, layouts.get(path, KernelLayout()), shape, spec)
    try:
        update.layout.check(shape)
        update.layout.spans(update.layout.sizes(shape)[0])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return update


def _trained(spec: PeftSpec, leaves: Mapping[str, Any], updated: set[str]) -> list[str]:
    """The paths of the leaves that train as a whole."""
    trained = select.under(spec.train, leaves)
    for path in trained:
        tree_arrays.check_floating("train", path, leaves[path])
        if path in updated:
            raise InputError(f"{path} is matched by targets and by train; expected one of them")
    return trained


def _wide(kernel: Any) -> Float[Array, "..."]:
    """The kernel in float32 at least."""
    kernel = jnp.asarray(kernel)
    return kernel.astype(working_dtype(kernel))


def _replaced(tree: Tree, changed: Mapping[str, Any]) -> Tree:
    """The tree with other arrays at some paths, converted to the dtypes of the previous ones."""

    def of(path: tuple, leaf: Any) -> Any:
        dotted = tree_arrays.dotted(path)
        return jnp.asarray(changed[dotted], leaf.dtype) if dotted in changed else leaf

    return jax.tree.map_with_path(of, tree)
