import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.flax
from flax import nnx

import surm
from surm import InputError, PeftSpec, matrices
from surm.peft import select, surgery
from surm.peft.kernels import KernelLayout
from surm.peft.trees import adapt_params
from tests.peft.randomize import randomize

HEADS = {r".*\.(query|key|value)": KernelLayout(outputs=(1, 2)), r".*\.out": KernelLayout((0, 1), (2,))}


class Encoder(nn.Module):
    """A block as Linen's users write it: the kernels of attention have three axes, and the biases of three two."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(nn.LayerNorm(name="norm")(x))
        x = x + nn.Dense(8, name="down")(nn.gelu(nn.Dense(16, name="up")(x)))
        return nn.Dense(3, name="head")(x.mean(axis=1))


@pytest.fixture(scope="module")
def tokens():
    return jax.random.normal(jax.random.key(1), (4, 5, 8))


@pytest.fixture(scope="module")
def linen(tokens):
    return jax.jit(Encoder().init)(jax.random.key(0), tokens)


@pytest.fixture(scope="module")
def answer():
    return jax.jit(Encoder().apply)


def noisy(adapter, seed=2):
    """An adapter that does something."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: a + jnp.asarray(0.3 * rng.standard_normal(a.shape), a.dtype), adapter)


def adapt(params, targets, layouts=None, **spec):
    return adapt_params(params, PeftSpec(targets=targets, **spec), jax.random.key(3), layouts=layouts)


def arrays(*shape, seed=5):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def dense(family, params, n_out, n_in):
    return matrices.FAMILIES[family].to_dense(params, n_out, n_in)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_linen_model_starts_as_it_was_and_then_changes_in_its_targets_alone(linen, tokens, answer):
    adapter, apply = adapt(linen, (), HEADS)  # the targets that a spec has by itself
    assert list(adapter) == [f"params.attention.{name}.kernel" for name in ("key", "query", "value")]
    same_bits(apply(linen, adapter), linen)
    adapted = apply(linen, noisy(adapter))
    assert jax.tree.map(jnp.shape, adapted) == jax.tree.map(jnp.shape, linen)
    assert not np.allclose(answer(adapted, tokens), answer(linen, tokens))
    before, after = jax.tree.leaves_with_path(linen), jax.tree.leaves(adapted)
    changed = [jax.tree_util.keystr(path) for (path, a), b in zip(before, after, strict=True) if a is not b]
    assert changed == [f"['params']['attention']['{name}']['kernel']" for name in ("key", "query", "value")]


def test_kernels_with_heads_are_matrices_of_all_heads(linen):
    adapter, apply = adapt(linen, r".*\.(query|out)", HEADS, family="low_rank", options="rank=2", scale=0.5)
    adapter = noisy(adapter)
    adapted, x = apply(linen, adapter)["params"]["attention"], arrays(3, 8)
    matvec = matrices.FAMILIES["low_rank"].matvec
    query = jnp.einsum("bd,dhs->bhs", x, adapted["query"]["kernel"] - linen["params"]["attention"]["query"]["kernel"])
    close(query.reshape(3, 8), 0.5 * matvec(adapter["params.attention.query.kernel"], x, 8))
    out = adapted["out"]["kernel"] - linen["params"]["attention"]["out"]["kernel"]
    close(jnp.einsum("bhs,hsd->bd", x.reshape(3, 2, 4), out),
          0.5 * matvec(adapter["params.attention.out.kernel"], x, 8))  # fmt: skip


def test_of_an_nnx_model_it_is_what_attach_and_merge_make(small_vit):
    spec = PeftSpec(family="kronecker", targets=r"blocks\.1\..*\.(query|up)", scale=1.5, train="head")
    attached = randomize(surm.attach(small_vit, spec, nnx.Rngs(0)))
    adapter, apply = adapt_params(nnx.to_pure_dict(nnx.state(small_vit)), spec, jax.random.key(3))
    layers = {select.dotted(path): layer for path, layer in surgery.wrapped_layers(attached)}
    trained = {f"{path}.kernel": layer.delta.values() for path, layer in layers.items()}
    trained |= {f"head.{name}": {"value": getattr(attached.head, name)[...]} for name in ("kernel", "bias")}
    assert jax.tree.map(jnp.shape, trained) == jax.tree.map(jnp.shape, adapter)
    merged = nnx.to_pure_dict(nnx.state(surm.detach(surm.merge(attached))))
    jax.tree.map(close, apply(nnx.to_pure_dict(nnx.state(small_vit)), trained), merged)


@pytest.fixture(scope="module")
def mlp():
    return {"up": {"w": arrays(12, 8), "b": arrays(8)}, "down": {"w": arrays(8, 12), "b": np.zeros(12)}, "name": "mlp"}


def forward(params, x):
    return jnp.tanh(x @ params["up"]["w"] + params["up"]["b"]) @ params["down"]["w"] + params["down"]["b"]


@pytest.mark.parametrize("family", matrices.FAMILIES)
def test_every_family_adds_its_dense_matrix(mlp, family):
    if family in ("lorta", "aurora"):
        with pytest.raises(InputError, match=f"{family} shares arrays between layers"):
            adapt(mlp, "up", family=family)
        return
    adapter, apply = adapt(mlp, "up", family=family, scale=2.0)
    frozen, apply = {"up": mlp["up"]}, jax.jit(apply)
    same_bits(apply(frozen, adapter), frozen)
    adapter = noisy(adapter)
    fixed = (matrices.FAMILIES[family].fixed or (lambda base: {}))(mlp["up"]["w"].T)
    change = apply(frozen, adapter)["up"]["w"] - mlp["up"]["w"]
    assert np.abs(change).max() > 0.01
    close(change, 2 * dense(family, adapter["up.w"] | fixed, 8, 12).T)


def test_the_gradient_is_that_through_the_dense_matrix(mlp):
    adapter, apply = adapt(mlp, r"(up|down)\.w", family="kronecker", options="rank=2")
    adapter, x = noisy(adapter), arrays(6, 12)

    def loss(kernels):
        return jnp.sum(forward({name: mlp[name] | {"w": kernel} for name, kernel in kernels.items()}, x) ** 3)

    def through_dense(adapter):
        up, down = dense("kronecker", adapter["up.w"], 8, 12), dense("kronecker", adapter["down.w"], 12, 8)
        return loss({"up": mlp["up"]["w"] + up.T, "down": mlp["down"]["w"] + down.T})

    def through_apply(adapter):
        return loss({name: apply(mlp, adapter)[name]["w"] for name in ("up", "down")})

    jax.tree.map(close, jax.jit(jax.grad(through_apply))(adapter), jax.jit(jax.grad(through_dense))(adapter))


def test_training_learns_without_a_trace_more_and_leaves_the_frozen_tree(linen, tokens, answer):
    adapter, apply = adapt(linen, r".*\.(query|value|up|down)", HEADS, train=r"params\.head")
    before, labels, traces = jax.tree.map(np.array, linen), jnp.array([0, 1, 2, 1]), []
    optimiser = optax.adam(1e-2)

    def loss(adapter, frozen):
        logits = Encoder().apply(apply(frozen, adapter), tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(adapter, state, frozen):
        traces.append(1)
        value, gradient = jax.value_and_grad(loss)(adapter, frozen)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(adapter, updates), state, value

    step, state, losses = jax.jit(step, donate_argnums=0), optimiser.init(adapter), []
    for _ in range(12):
        adapter, state, value = step(adapter, state, linen)
        losses.append(float(value))
    assert losses[-1] < 0.8 * losses[0] and len(traces) == 1
    same_bits(jax.tree.map(np.array, linen), before)  # the head too, which was donated as a part of the adapter
    adapted = apply(linen, adapter)
    assert not np.array_equal(adapted["params"]["head"]["kernel"], linen["params"]["head"]["kernel"])
    assert answer(adapted, tokens).argmax(axis=-1).tolist() == labels.tolist()


def test_many_adapters_are_mapped_over(mlp):
    adapter, apply = adapt(mlp, ".*w", family="low_rank", options="rank=2")
    several, x = [noisy(adapter, seed) for seed in range(3)], arrays(6, 12)
    stacked = jax.tree.map(lambda *values: jnp.stack(values), *several)
    together = jax.jit(jax.vmap(lambda adapter: forward(apply(mlp, adapter), x)))(stacked)
    for one, of_one in zip(several, together, strict=True):
        close(of_one, forward(apply(mlp, one), x))


def test_a_bfloat16_kernel_takes_a_float32_sum_and_keeps_its_type(mlp):
    half = {"up": {"w": mlp["up"]["w"].astype(jnp.bfloat16)}}
    adapter, apply = adapt(half, "up", scale=0.5)
    adapter = noisy(adapter)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapter)} == {jnp.dtype("float32")}
    expected = half["up"]["w"].astype(jnp.float32) + 0.5 * dense("circulant", adapter["up.w"], 8, 12).T
    same_bits(apply(half, adapter)["up"]["w"], expected.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("shape", "layout", "as_matrix"),
    [
        ((4, 18), KernelLayout(segments=("query", "key", "value")), lambda w: w.T),
        ((18, 4), KernelLayout((1,), (0,), segments=("query", "key", "value")), lambda w: w),
        ((4, 3, 2, 3), KernelLayout((0,), (1, 2, 3), segments=("query", "key", "value")), lambda w: w.reshape(4, 18).T),
        ((4, 2, 3, 3), KernelLayout((0,), (2, 1, 3), segments=("query", "key", "value")),
         lambda w: w.swapaxes(1, 2).reshape(4, 18).T),
        ((4, 18), KernelLayout(segments={"value": (12, 18), "query": (0, 6)}), lambda w: w.T),
    ],
    ids=["plain", "transposed", "heads", "interleaved", "spans"],
)  # fmt: skip
def test_segments_of_a_fused_kernel(shape, layout, as_matrix):
    params = {"qkv": {"kernel": arrays(*shape).at[(0,) * len(shape)].set(-0.0), "bias": arrays(18)}}
    adapter, apply = adapt(params, "qkv:(query|value)", {".*": layout})
    assert sorted(adapter) == ["qkv.kernel:query", "qkv.kernel:value"]
    adapter = noisy(adapter)
    before, after = as_matrix(params["qkv"]["kernel"]), as_matrix(apply(params, adapter)["qkv"]["kernel"])
    close(after[:6] - before[:6], dense("circulant", adapter["qkv.kernel:query"], 6, 4))
    close(after[12:] - before[12:], dense("circulant", adapter["qkv.kernel:value"], 6, 4))
    same_bits(after[6:12], before[6:12])
    alone, apply = adapt(params, r"qkv\.kernel:value", {"qkv": layout})
    same_bits(as_matrix(apply(params, noisy(alone))["qkv"]["kernel"])[:12], before[:12])


def test_stacked_layers_have_a_matrix_each():
    params = {"layers": {"kernel": arrays(2, 6, 3, 4)}}
    layouts = {"layers": KernelLayout((1,), (3,), stacked=(0, 2))}
    adapter, apply = adapt(params, "layers", layouts, family="skew_circulant")
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(adapter)} == {(2, 3)}
    assert any((leaf[0, 0] != leaf[1, 2]).any() for leaf in jax.tree.leaves(adapter))  # each drawn by itself
    adapter = noisy(adapter)
    change = apply(params, adapter)["layers"]["kernel"] - params["layers"]["kernel"]
    for layer, expert in ((0, 0), (1, 2)):
        own = jax.tree.map(lambda a: a[layer, expert], adapter["layers.kernel"])  # noqa: B023
        close(change[layer, :, expert], dense("skew_circulant", own, 4, 6).T)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Linear:
    """As Equinox has it: a weight (n_out, n_in), and functions among the leaves."""

    weight: jax.Array
    bias: jax.Array | None
    activation: Callable = jnp.tanh

    def __call__(self, x):
        return self.activation(self.weight @ x)


def test_modules_that_are_trees_are_adapted_as_such():
    model = [Linear(arrays(6, 4), None), Linear(np.asarray(arrays(3, 6)), arrays(3))]
    adapter, apply = adapt({"layers": model}, r"layers\.\d", {".*": KernelLayout((1,), (0,))})
    assert list(adapter) == ["layers.0.weight", "layers.1.weight"]
    adapter, x = noisy(adapter), arrays(4)
    first = apply({"layers": model}, adapter)["layers"][0]
    close(first(x), jnp.tanh((model[0].weight + dense("circulant", adapter["layers.0.weight"], 6, 4)) @ x))


def test_a_convolution_is_a_matrix_of_its_patches():
    params = {"conv": {"kernel": arrays(2, 2, 3, 5)}}
    adapter, apply = adapt(params, "conv", {"conv": KernelLayout((0, 1, 2), (3,))})
    change = apply(params, noisy(adapter))["conv"]["kernel"] - params["conv"]["kernel"]
    close(change.reshape(12, 5), dense("circulant", noisy(adapter)["conv.kernel"], 5, 12).T)


def test_an_adapter_goes_through_a_file(linen, tmp_path):
    adapter, apply = adapt(linen, r".*\.(query|up)", HEADS, train=".*head")
    adapter = noisy(adapter)
    flat = {f"{path}.{name}": array for path, one in adapter.items() for name, array in one.items()}
    safetensors.flax.save_file(flat, tmp_path / "adapter.safetensors")
    loaded = safetensors.flax.load_file(tmp_path / "adapter.safetensors")
    same_bits(apply(linen, loaded), apply(linen, adapter))


def test_layouts_are_tried_in_order():
    params = {"one": {"w": arrays(3, 4)}, "two": {"w": arrays(3, 4)}}
    transposed = KernelLayout((1,), (0,))
    adapter, _ = adapt(params, ".*w", {"one": KernelLayout(), ".*": transposed}, family="low_rank")
    assert (adapter["one.w"]["a"].shape, adapter["two.w"]["a"].shape) == ((8, 3), (8, 4))
    with pytest.raises(InputError, match="'one' matches are matched by patterns before it; put it in front of them"):
        adapt(params, ".*w", {".*": transposed, "one": KernelLayout()})


def test_what_a_family_fixes_is_made_once_of_the_base(monkeypatch):
    made = []
    rescaled = dataclasses.replace(  # to a family ΔW = diag(d)·base
        matrices.FAMILIES["circulant"],
        init=lambda key, n_out, n_in: {"d": jnp.zeros(n_out)},
        num_params=lambda n_out, n_in: n_out,
        fixed=lambda base: made.append(base.shape) or {"base": base},
        to_dense=lambda params, n_out, n_in: params["d"][:, None] * params["base"],
    )
    monkeypatch.setitem(matrices.FAMILIES, "circulant", rescaled)
    params = {"qkv": {"kernel": arrays(4, 6).astype(jnp.bfloat16)}}
    adapter, apply = adapt(params, "qkv:value", {"qkv": KernelLayout(segments=("query", "value"))})
    assert jax.tree.map(jnp.shape, adapter) == {"qkv.kernel:value": {"d": (3,)}}
    adapter = {"qkv.kernel:value": {"d": jnp.array([1.0, 2.0, 0.0])}}
    factors = jnp.array([1.0, 1.0, 1.0, 2.0, 3.0, 1.0])
    for function in (apply, jax.jit(apply)):
        expected = params["qkv"]["kernel"].astype(jnp.float32) * factors
        same_bits(function(params, adapter)["qkv"]["kernel"], expected.astype(jnp.bfloat16))
    assert made == [(3, 4)]


def test_rules_give_kernels_other_families_and_leave_some_out():
    params = {name: {"kernel": arrays(4, 4, seed=n)} for n, name in enumerate(("query", "value", "up", "down"))}
    spec = {"rules": r"value => family=low_rank, rank=2, scale=3; up => off", "exclude": r"down\.kernel"}
    adapter, apply = adapt(params, ".*kernel", **spec)
    assert {path: sorted(values) for path, values in adapter.items()} == {
        "query.kernel": ["a", "b"],
        "value.kernel": ["a", "b"],
    }
    assert adapter["value.kernel"]["a"].shape == (2, 4)
    adapter = noisy(adapter)
    adapted, (a, b) = apply(params, adapter), (adapter["value.kernel"][name] for name in "ab")
    np.testing.assert_allclose(adapted["value"]["kernel"], params["value"]["kernel"] + 3 * (b @ a).T, rtol=1e-5)
    for name in ("up", "down"):
        np.testing.assert_array_equal(adapted[name]["kernel"], params[name]["kernel"])


def test_options_of_the_training_are_let_through():
    adapter, _ = adapt({"w": arrays(5, 4)}, "w", family="adalora", options="rank=2,penalty=0.2")
    assert adapter["w"]["e"].shape == (3,)
