import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surm import InputError, PeftSpec, matrices
from surm.peft.kernels import KernelLayout
from surm.peft.trees import adapt_params


def refused(params, targets, message, layouts=None, **spec):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        adapt_params(params, PeftSpec(targets=targets, **spec), jax.random.key(0), layouts=layouts)
    assert "\n" not in str(caught.value)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


BLOCK = {
    "query": {"kernel": zeros(4, 6), "bias": zeros(2, 3)},
    "norm": {"scale": zeros(4)},
    "heads": {"kernel": zeros(4, 2, 3)},
    "head": {"kernel": zeros(6, 2)},
    "table": zeros(3, 3, dtype=np.int32),
    "tiny": zeros(2, 2, dtype=jnp.float8_e4m3fn),
}
QKV = KernelLayout(segments=("q", "k", "v"))


@pytest.mark.parametrize(
    ("targets", "message", "more"),
    [
        ("qeury", "pattern 'qeury', a regular expression, matches no array or module; nearest: query", {}),
        (r"quer.\.kern", r"'quer.\.kern' matches no array or module as a whole, only a part of query.kernel", {}),
        ("(", "pattern '(' is not a regular expression", {}),
        ("query.*", "targets match query.bias, float32[2, 3], which is not a kernel; expected only kernels", {}),
        (r"norm\.scale", "targets match norm.scale, float32[4], which is not a kernel; expected only kernels", {}),
        ("table", "targets matches table, int32[3, 3]; expected floating point of 16 bits or more", {}),
        ("tiny", "targets matches tiny, float8_e4m3fn[2, 2]; expected floating point of 16 bits or more", {}),
        ("heads", "heads.kernel is float32[4, 2, 3]; expected two axes, or which of them are inputs and ou", {}),
        ("heads", "heads.kernel: shape (4, 2, 3), but a layout of the axes inputs=(0,), outputs=(1,), stacked=(); "
                  "expected 0 to 2, each once", {"layouts": {"heads": KernelLayout()}}),
        ("query", "query.kernel: shape (4, 6), but a layout of the axes inputs=(0,), outputs=(1, 2)",
         {"layouts": {"query": KernelLayout((0,), (1, 2))}}),
        ("head:q", "head.kernel: 2 outputs do not divide evenly into q, k, v; say where each starts and stops",
         {"layouts": {"head": QKV}}),
        ("head:q", "head.kernel: segment 'q' is 1 to 3, but there are 2 outputs",
         {"layouts": {"head": KernelLayout(segments={"q": (1, 3)})}}),
        ("query:w", "pattern 'query:w', a regular expression, matches no array or module; nearest: query:",
         {"layouts": {"query": QKV}}),
        (("query", "query:q"), "targets match query.kernel and its segment query.kernel:q; expected one of them",
         {"layouts": {"query": QKV}}),
        ("query", "pattern 'quary', a regular expression, matches no array or module; nearest: query",
         {"layouts": {"quary": QKV}}),
        ("query", "query.kernel: kronecker: rank must divide n_out and n_in, as 1, 2 do; given rank=3, n_out=6, n_in=4",
         {"family": "kronecker", "options": "rank=3"}),
        ("query", "method='adapter', but in a tree of parameters only kernels change; expected 'update'",
         {"method": "adapter"}),
        ("query", "dropout=0.1, but an update inside the kernel has no input to drop; expected 0", {"dropout": 0.1}),
        ("query", "magnitude=True, which a tree of parameters has no place for; expected False", {"magnitude": True}),
        ("query", "magnitude=True, which a tree", {"rules": "head => magnitude=True"}),
        ("query", "dropout=0.1, but an update inside", {"rules": "head => dropout=0.1"}),
        ("query", "lorta shares arrays between layers", {"rules": "head => family=lorta"}),
        ("query", "without exclude='query' and rules' off leaves no kernel", {"exclude": "query"}),
        ("query", "pattern 'haed', a regular expression, matches no array", {"rules": "haed => off"}),
        ("query", "query.kernel = query is claimed by two rules",
         {"rules": r"query => scale=2; query\.kernel => scale=3"}),
        ("head", "head.kernel is matched by targets and by train; expected one of them", {"train": "head"}),
        ("query", "train matches table, int32[3, 3]; expected floating point", {"train": "table"}),
        ("query", "pattern 'haed', a regular expression, matches no module or variable; nearest: head",
         {"train": "haed"}),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_in_one_line(targets, message, more):
    refused(BLOCK, targets, message, **more)


def test_two_arrays_of_one_path_are_refused():
    refused({"a": {"b": zeros(2, 2)}, "a.b": zeros(2, 2)}, "a.b", "two arrays have the path 'a.b'; expected each to ")


def test_a_model_without_its_arrays_is_refused():
    refused({"apply": len}, "query", "params, a dict, holds no array; expected a tree of them")


def test_a_family_that_shares_arrays_is_refused(monkeypatch):
    monkeypatch.setitem(
        matrices.FAMILIES, "circulant", dataclasses.replace(matrices.FAMILIES["circulant"], shared={"a": "model"})
    )
    refused(BLOCK, "query", "circulant shares arrays between layers, which a tree of parameters has no place for")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, adapter: (f, {"up.w": adapter["up.w"]}), "'adapter' does not fit the model: missing down.w.a"),
        (lambda f, adapter: (f, adapter | {"x": adapter["up.w"]}), "unknown x.a; unknown x.b"),
        (lambda f, adapter: (f, {name: {} for name in adapter}), "missing down.w.a; missing down.w.b; missing up"),
        (lambda f, adapter: (f, jax.tree.map(lambda a: a[1:], adapter)), "down.w.a has shape (4,), expected (5,)"),
        (lambda f, adapter: (adapter, f), "'adapter' does not fit the model: missing down.w.a"),
        (lambda f, adapter: ({"up": f["up"]}, adapter), "'frozen' does not fit the model: missing down.w"),
        (lambda f, adapter: ({"params": f}, adapter), "'frozen' does not fit the model: missing down.w; missing up.w"),
        (lambda f, adapter: (f | {"up": f["down"]}, adapter), "up.w has shape (3, 5), expected (5, 3)"),
    ],
)  # fmt: skip
def test_other_trees_are_refused_when_put_in(change, message):
    frozen = {"up": {"w": zeros(5, 3)}, "down": {"w": zeros(3, 5)}}
    adapter, apply = adapt_params(frozen, PeftSpec(targets=".*w"), jax.random.key(0))
    for function in (apply, lambda *trees: jax.eval_shape(apply, *trees)):
        with pytest.raises(InputError, match=re.escape(message)) as caught:
            function(*change(frozen, adapter))
        assert "\n" not in str(caught.value)
