"""Layers that are linear maps: LinearGeneral, Einsum, attention, stacks; against kernels with ΔW put in by hand."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import surm
from surm import InputError, PeftSpec
from surm.peft import surgery
from tests.peft.randomize import randomize


class Case(NamedTuple):
    """A layer.

    Attributes:
      layer: makes it.
      shape: of what it reads.
      kernel: how ΔW, by output and input, lies in its kernel.
      outputs: the axes of what it writes that tell outputs apart.
      stacked: the axes over which there is a matrix each.
    """

    layer: Callable[[nnx.Rngs], nnx.Module]
    shape: tuple[int, ...]
    kernel: Callable[[np.ndarray], np.ndarray]
    outputs: tuple[int, ...] = (-1,)
    stacked: tuple[int, ...] = ()


def general(*args, **options):
    return lambda rngs: nnx.LinearGeneral(*args, **options, rngs=rngs)


def einsum(*args, **options):
    return lambda rngs: nnx.Einsum(*args, **options, rngs=rngs)


CASES = {
    "linear": Case(lambda rngs: nnx.Linear(6, 4, rngs=rngs), (5, 6), lambda d: d.T),
    "query": Case(general(6, (2, 3)), (5, 3, 6), lambda d: d.T.reshape(6, 2, 3), (-2, -1)),
    "out": Case(general((2, 3), 4, axis=(-2, -1)), (5, 2, 3), lambda d: d.T.reshape(2, 3, 4)),
    "apart": Case(general((2, 3), 4, axis=(1, -1)), (5, 2, 7, 3), lambda d: d.T.reshape(2, 3, 4)),
    "sorted by flax": Case(general((2, 3), 4, axis=(-1, -2)), (5, 2, 3), lambda d: d.T.reshape(2, 3, 4)),
    "first": Case(general(6, (2, 2), axis=0, use_bias=False), (6, 5), lambda d: d.T.reshape(6, 2, 2), (-2, -1)),
    "batch": Case(general(6, (2, 3), batch_axis={0: 4}), (4, 5, 6), lambda d: d.mT.reshape(4, 6, 2, 3), (-2, -1), (0,)),
    "ellipsis": Case(einsum("...d,dhk->...hk", (6, 2, 3), (2, 3)), (5, 1, 6), lambda d: d.T.reshape(6, 2, 3), (-2, -1)),
    "heads": Case(einsum("bthk,hkd->btd", (2, 3, 4), (4,)), (5, 1, 2, 3), lambda d: d.T.reshape(2, 3, 4)),
    "experts": Case(einsum("ebd,edf->ebf", (4, 6, 3), (4, 3)), (4, 5, 6), lambda d: d.mT, (-1,), (0,)),
    "middle": Case(einsum("bed,edf->bef", (4, 6, 3), (4, 3)), (5, 4, 6), lambda d: d.mT, (-1,), (1,)),
    "turned": Case(einsum("btd,fd->tfb", (4, 6)), (5, 3, 6), lambda d: d, (1,)),
    "kernel's order": Case(einsum("bhk,dkh->bd", (4, 3, 2), (4,)), (5, 2, 3), lambda d: d.reshape(4, 2, 3).mT),
}
SPECS = {
    "low rank": {"family": "low_rank", "options": "rank=2"},
    "circulant": {"family": "circulant"},
    "lora_xs": {"family": "lora_xs", "options": "rank=2"},
    "magnitude": {"family": "kronecker", "magnitude": True},
    "dense": {"family": "toeplitz", "path": "branch_dense"},
    "hadamard": {"method": "hadamard_adapter", "options": {"norm": ""}},
    "adapter": {"method": "adapter", "family": "circulant", "activation": "tanh"},
    "bottleneck": {"method": "bottleneck", "options": "size=2", "activation": "tanh"},
}


FAST = ("query", "out", "middle", "turned")


def pairs(everywhere: str, *others: str) -> pytest.MarkDecorator:
    """Every layer with one spec, some with others too; those that repeat a kind are slow."""
    chosen = [(name, everywhere) for name in CASES] + [(name, spec) for spec in others for name in ("query", "middle")]
    return pytest.mark.parametrize(
        ("name", "spec"), [pytest.param(*one, marks=[] if one[0] in FAST else pytest.mark.slow) for one in chosen]
    )


def attached(case: Case, **given) -> tuple[nnx.Module, jax.Array]:
    model = nnx.Dict(layer=case.layer(nnx.Rngs(0)))
    if getattr(model.layer, "bias", None) is not None:
        model.layer.bias[...] = jax.random.normal(jax.random.key(5), model.layer.bias.shape)
    spec = PeftSpec(targets="layer", **given if "method" in given else {"scale": 0.5} | given)
    return surm.attach(model, spec, nnx.Rngs(1)), jax.random.normal(jax.random.key(2), case.shape)


def with_kernel(layer: nnx.Module, kernel) -> nnx.Module:
    other = nnx.clone(layer.base)
    other.kernel[...] = kernel
    return other


def flat_rows(case: Case, layer: nnx.Module, kernel) -> jax.Array:
    """The kernel by output and input, by trying which ΔW puts a one where."""
    stack, (n_out, n_in) = layer.delta.stack, (layer.delta.n_out, layer.delta.n_in)
    size = int(np.prod((*stack, n_out, n_in)))
    where = case.kernel(np.arange(size).reshape(*stack, n_out, n_in))
    return jnp.zeros(size).at[np.ravel(where)].set(jnp.ravel(kernel)).reshape(*stack, n_out, n_in)


def by_definition(case: Case, layer: nnx.Module, x: jax.Array) -> jax.Array:
    """(m/‖W + ΔW‖ ⊙ (W + ΔW)) x + bias, with the layer itself as the product."""
    rows = flat_rows(case, layer, layer.base.kernel[...]) + layer.scale * layer.delta.to_dense()
    if layer.magnitude is not None:
        norms = jax.lax.stop_gradient(jnp.sqrt(jnp.sum(rows**2, axis=-1, keepdims=True)))
        rows = rows * layer.magnitude[...][..., None] / norms
    return with_kernel(layer, case.kernel(rows))(x)


@pairs("magnitude", "low rank", "circulant", "lora_xs", "dense")
def test_an_update_is_that_of_the_kernel(name, spec):
    case = CASES[name]
    fresh, x = attached(case, **SPECS[spec])
    np.testing.assert_array_equal(fresh.layer(x), fresh.layer.base(x))
    graphdef, trainable, frozen = surgery.split(randomize(fresh))

    def loss(trainable, way):
        return jnp.sum(jnp.sin(way(surgery.join(graphdef, trainable, frozen).layer)))

    values, slopes = zip(*(
        jax.jit(jax.value_and_grad(loss), static_argnums=1)(trainable, way)
        for way in (lambda layer: layer(x), lambda layer: by_definition(case, layer, x))
    ), strict=True)  # fmt: skip
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4, atol=1e-4)
    for path, slope in slopes[1].items():
        np.testing.assert_allclose(slopes[0][path], slope, rtol=2e-3, atol=2e-4, err_msg=path)


@pairs("magnitude", "hadamard")
def test_what_is_trained_folds_into_the_kernel_and_comes_out_of_it_again(name, spec):
    fresh, x = attached(CASES[name], **SPECS[spec])
    adapted = randomize(fresh)
    if spec == "hadamard" and adapted.layer.bias is None:
        with pytest.raises(InputError, match="layer: the layer has no bias"):
            surm.merge(adapted)
        return
    merged = surm.merge(adapted)
    np.testing.assert_allclose(merged.layer(x), adapted.layer(x), rtol=1e-4, atol=1e-4)
    assert np.abs(adapted.layer(x) - fresh.layer(x)).max() > 0.1
    np.testing.assert_array_equal(surm.unmerge(merged).layer.kernel[...], fresh.layer.kernel[...])
    plain = surm.detach(merged).layer
    assert type(plain) is type(fresh.layer.base)
    np.testing.assert_array_equal(plain(x), merged.layer(x))
    with surm.disabled(adapted):
        np.testing.assert_array_equal(adapted.layer(x), fresh.layer.base(x))


def vectors(case: Case, y: jax.Array) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """An output with what tells outputs apart last, and the way back."""
    last = [axis % y.ndim for axis in case.outputs]
    order = [*case.stacked, *(axis for axis in range(y.ndim) if axis not in (*case.stacked, *last)), *last]
    turned = y.transpose(order)
    flat = turned.reshape(*turned.shape[: y.ndim - len(last)], -1)
    return flat, lambda flat: flat.reshape(turned.shape).transpose(np.argsort(order))


@pairs("adapter", "bottleneck", "hadamard")
def test_what_stands_behind_a_layer_reads_all_its_outputs_as_one_vector(name, spec):
    case = CASES[name]
    fresh, x = attached(case, **SPECS[spec])
    np.testing.assert_array_equal(fresh.layer(x), fresh.layer.base(x))
    layer = randomize(fresh).layer
    h, back = vectors(case, layer.base(x))

    def beside(values):
        return values[:, None] if case.stacked else values

    delta = layer.delta
    if spec == "adapter":
        expected = h + jnp.tanh(h @ delta.to_dense().mT) + beside(layer.shift[...])
    elif spec == "hadamard":
        expected = h * beside(delta.scale[...]) + beside(delta.shift[...])
    else:
        inner = jnp.tanh(h @ delta.down.kernel[...] + beside(delta.down.bias[...]))
        expected = h + inner @ delta.up.kernel[...] + beside(delta.up.bias[...])
    np.testing.assert_allclose(layer(x), back(expected), rtol=1e-4, atol=1e-5)


ODD = [
    ("td,td->t", (3, 6), "sums over no axis of the kernel|writes no axis of the kernel alone"),
    ("btd,d->btd", (6,), "sums over no axis of the kernel: it scales what it reads"),
    ("btd,hdk->btk", (2, 6, 3), "sums over h in only one operand"),
    ("btd,dk->dk", (6, 3), "sums over b, t in only one operand"),
    ("btt,tk->btk", (3, 3), "reads a diagonal"),
    ("btd,...dk->btk", (6, 3), "has an ellipsis that is not one of both"),
    ("bhd,dhf->bfh", (6, 2, 3), "in front of one that it shares"),
]


@pytest.mark.parametrize(("equation", "shape", "message"), ODD, ids=[odd[0] for odd in ODD])
def test_an_einsum_that_is_no_matrix_times_a_vector_is_refused(equation, shape, message):
    model = nnx.Dict(odd=nnx.Einsum(equation, shape, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match=f"odd: is an nnx.Einsum of '{equation}', which .*({message})"):
        surm.attach(model, PeftSpec(targets="odd"), nnx.Rngs(0))


def test_an_einsum_of_another_string_than_its_own_is_refused():
    model = nnx.Dict(one=nnx.Einsum("bd,df->bf", (4, 3), rngs=nnx.Rngs(0)))
    adapted = surm.attach(model, PeftSpec(targets="one"), nnx.Rngs(0))
    assert adapted.one(jnp.ones((2, 4)), einsum_str="bd, df -> bf").shape == (2, 3)
    with pytest.raises(InputError, match="einsum_str='db,df->bf', but the adapted layer is of 'bd,df->bf'"):
        adapted.one(jnp.ones((4, 2)), einsum_str="db,df->bf")


class Net(nnx.Module):
    """Flax's own attention and a head."""

    def __init__(self, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(4, 8, num_kv_heads=2, decode=False, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.attention(x).mean(1))


EVERYWHERE = PeftSpec(family="low_rank", options="rank=2", targets=".*", train="head", dropout=0.5)


def adapted_net() -> tuple[Net, nnx.Module, jax.Array]:
    base = Net(nnx.Rngs(0))
    adapted = surm.attach(base, EVERYWHERE, nnx.Rngs(1))
    adapted.eval()
    return base, adapted, jax.random.normal(jax.random.key(0), (3, 5, 8))


def test_flax_attention_is_adapted_counted_and_saved(tmp_path):
    base, fresh, x = adapted_net()
    np.testing.assert_array_equal(fresh(x), base(x))
    assert sorted(surgery.layers_by_path(fresh)) == [f"attention.{name}" for name in ("key", "out", "query", "value")]
    assert surm.count_parameters(fresh).adapter == 2 * (2 * (8 + 8) + 2 * (8 + 4))
    assert [row.split()[:2] for row in surm.peft.table(fresh).splitlines()[:2]] == [
        ["attention.key", "4×8"], ["attention.out", "8×8"],
    ]  # fmt: skip
    one = randomize(fresh)
    surm.save_adapter(tmp_path, one)
    np.testing.assert_array_equal(surm.load_adapter(tmp_path, base)(x), one(x))


@pytest.mark.slow
def test_flax_attention_is_stacked_combined_served_and_started_warm():
    base, fresh, x = adapted_net()
    one, other = randomize(fresh, seed=1), randomize(fresh, seed=2)
    answers = surm.serve_batch(one, surm.stack_adapters([one, other]), x, [1, 0, 1])
    np.testing.assert_allclose(answers, jnp.stack([other(x)[0], one(x)[1], other(x)[2]]), atol=1e-5)
    both = surm.combine({"one": one, "other": other}, head="one")
    both.eval()
    np.testing.assert_allclose(surm.activate(both, "one")(x), one(x), atol=1e-5)
    np.testing.assert_allclose(surm.merge(both)(x), both(x), atol=1e-4)
    again, errors = surm.to_low_rank(one, rank=2)
    assert max(errors.values()) < 1e-5
    np.testing.assert_allclose(again(x), one(x), atol=1e-4)
    started, errors = surm.warm_start(fresh, surm.difference(surm.merge(one), base, r"attention\..*"))
    assert max(errors.values()) < 1e-4
    mean, _ = surm.average([one, one])
    np.testing.assert_allclose(mean(x), one(x), atol=1e-4)
    twice = surgery.with_scale(one, 2.0).attention.out
    np.testing.assert_allclose(twice(x.reshape(3, 5, 4, 2)) - one.attention.out(x.reshape(3, 5, 4, 2)),
                               one.attention.out(x.reshape(3, 5, 4, 2)) - base.attention.out(x.reshape(3, 5, 4, 2)),
                               atol=1e-5)  # fmt: skip


def test_attention_spread_by_out_sharding_answers_the_same():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    base, x = Net(nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (3, 5, 8))
    adapted = randomize(surm.attach(base, PeftSpec(family="low_rank", targets=r".*\.query"), nnx.Rngs(1)))
    expected = adapted.attention.query(x)
    with jax.set_mesh(mesh):
        spread = jax.sharding.PartitionSpec("data", None, None, None)
        y = adapted.attention.query(jax.device_put(x, jax.sharding.PartitionSpec("data")), out_sharding=spread)
    assert y.sharding.spec == spread
    np.testing.assert_allclose(y, expected, atol=1e-6)
