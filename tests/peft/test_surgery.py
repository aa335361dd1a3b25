import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import surm
from surm import InputError, PeftSpec, matrices
from surm.models import vit
from surm.peft import counts, layers, surgery, variables
from surm.peft.multiply import fused
from tests.peft.answer import answer
from tests.peft.randomize import randomize

UPDATES = [
    ("circulant", ""),
    ("circulant", "hadamard=False"),
    ("skew_circulant", ""),
    ("toeplitz", ""),
    ("toeplitz", "factors=1,symmetric=False"),
    ("kronecker", "rank=4"),
    ("low_displacement_rank", "rank=2"),
    ("low_rank", "rank=3"),
    ("block_circulant", "block_size=6"),
]
UPDATES += [("lora_xs", "rank=3"), ("vera", ""), ("adalora", ""), ("lorta", "heads=3")]
KINDS = [UPDATES[0], UPDATES[3], UPDATES[5], UPDATES[6], UPDATES[7], ("vera", "")]
"""One of each way to multiply; `make slow` has them all."""
every_update = pytest.mark.parametrize(
    ("family", "options"), [pytest.param(*row, marks=() if row in KINDS else pytest.mark.slow) for row in UPDATES]
)
EVERY_LINEAR = (r"blocks\..*\.(query|key|value|output|up|down)",)


def arrays(model: nnx.Module) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.Not(nnx.RngState)))]


def attach(model, **changes):
    return surm.attach(model, PeftSpec(train=("head",), **changes), nnx.Rngs(3))


@pytest.mark.parametrize("method", ["update", "adapter"])
@every_update
def test_attaching_changes_no_output(small_vit, images, method, family, options):
    if method == "adapter" and matrices.FAMILIES[family].fixed:
        with pytest.raises(InputError, match="made from the weight that it updates"):
            attach(small_vit, method=method, family=family)
        return
    targets = EVERY_LINEAR if method == "update" else ()
    adapted = attach(small_vit, method=method, family=family, options=options, targets=targets)
    np.testing.assert_array_equal(answer(adapted, images), answer(small_vit, images))


@every_update
def test_every_adapter_array_has_a_gradient_at_the_start_or_after_a_step(small_vit, images, family, options):
    adapted = attach(small_vit, family=family, options=options, targets=EVERY_LINEAR)
    graphdef, trainable, frozen = surgery.split(adapted)
    gradients = jax.jit(jax.grad(lambda t: jnp.sum(surgery.join(graphdef, t, frozen)(images) ** 2)))

    def alive(trainable):
        return {path for path, value in gradients(trainable).items() if np.any(np.asarray(value) != 0)}

    at_the_start = alive(trainable)
    assert {path for path in trainable if path.startswith("head")} <= at_the_start
    assert any("delta" in path for path in at_the_start)
    assert alive(surgery.split(randomize(adapted))[1]) == set(trainable)


@every_update
def test_merged_equals_unmerged_and_unmerge_restores_the_bits(small_vit, images, family, options):
    spec = {"family": family, "options": options, "targets": EVERY_LINEAR, "scale": 0.5, "path": "branch"}
    adapted = randomize(attach(small_vit, **spec))
    before = arrays(adapted)
    merged = surm.merge(adapted)
    logits = adapted(images)
    assert jnp.max(jnp.abs(logits - small_vit(images))) > 1e-2
    np.testing.assert_allclose(merged(images), logits, atol=1e-5 * float(jnp.max(jnp.abs(logits))))
    for was, now in zip(before, arrays(adapted), strict=True):
        np.testing.assert_array_equal(was, now)
    restored = surm.unmerge(merged)
    for was, now in zip(before, arrays(restored), strict=True):
        np.testing.assert_array_equal(was, now)
    np.testing.assert_array_equal(restored(images), logits)


def test_merging_twice_and_unmerging_the_unmerged_change_nothing(small_vit, images):
    adapted = randomize(attach(small_vit))
    np.testing.assert_array_equal(surm.merge(surm.merge(adapted))(images), surm.merge(adapted)(images))
    np.testing.assert_array_equal(surm.unmerge(adapted)(images), adapted(images))


def test_a_merged_model_detaches_to_plain_layers_that_keep_the_update(small_vit, images):
    merged = surm.merge(randomize(attach(small_vit)))
    plain = surm.detach(merged)
    assert isinstance(plain.blocks[0].attention.query, nnx.Linear)
    assert not any(issubclass(type(v), variables.Trainable) for _, v in nnx.to_flat_state(nnx.state(plain)))
    np.testing.assert_array_equal(plain(images), merged(images))
    assert surm.count_parameters(plain).total == surm.count_parameters(small_vit).total


def test_the_update_is_scale_times_the_dense_matrix(small_vit, images):
    adapted = randomize(attach(small_vit, scale=0.25, path="branch"))
    layer = adapted.blocks[0].attention.query
    x = jax.random.normal(jax.random.key(0), (4, 12))
    dense = matrices.circulant.to_dense(layer.delta.values(), 12, 12)
    np.testing.assert_allclose(layer(x), layer.base(x) + 0.25 * x @ dense.T, rtol=1e-4, atol=1e-5)


def test_the_adapter_position_follows_its_formula(small_vit):
    adapted = randomize(attach(small_vit, method="adapter"))
    layer = adapted.blocks[1].mlp.down
    x = jax.random.normal(jax.random.key(0), (4, 24))
    h = layer.base(x)
    dense = matrices.circulant.to_dense(layer.delta.values(), 12, 12)
    expected = h + jax.nn.gelu(h @ dense.T, approximate=False) + layer.shift[...]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="not linear"):
        surm.merge(adapted)


def test_attach_leaves_its_argument_alone(small_vit):
    before, structure = arrays(small_vit), nnx.graphdef(small_vit)
    attach(small_vit)
    assert nnx.graphdef(small_vit) == structure
    for was, now in zip(before, arrays(small_vit), strict=True):
        np.testing.assert_array_equal(was, now)


def test_disabled_answers_as_the_base_and_comes_back(small_vit, images):
    adapted = randomize(surm.attach(small_vit, PeftSpec(), nnx.Rngs(0)))
    logits = adapted(images)
    with surm.disabled(adapted) as off:
        np.testing.assert_array_equal(off(images), small_vit(images))
    np.testing.assert_array_equal(adapted(images), logits)
    with pytest.raises(InputError, match="unmerge"), surm.disabled(surm.merge(adapted)):
        pass


def test_disabled_comes_back_after_an_error(small_vit, images):
    adapted = randomize(attach(small_vit))
    logits = adapted(images)
    with pytest.raises(RuntimeError), surm.disabled(adapted):
        raise RuntimeError
    np.testing.assert_array_equal(adapted(images), logits)


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        ("head", lambda path: path.startswith("head")),
        ("bitfit", lambda path: path.startswith("head") or path.endswith("bias")),
        ("full", lambda path: True),
    ],
)
def test_methods_without_a_family_train_what_they_say(small_vit, method, trained):
    adapted = attach(small_vit, method=method)
    paths = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(small_vit, nnx.Param))]
    assert set(surgery.split(adapted)[1]) == set(filter(trained, paths))


def test_the_bottleneck_follows_its_formula_and_starts_as_identity(small_vit, images):
    fresh = attach(small_vit, method="bottleneck", options="size=5", activation="tanh")
    np.testing.assert_array_equal(fresh(images), small_vit(images))
    adapted = randomize(fresh)
    layer, base = adapted.blocks[0].mlp.down, small_vit.blocks[0].mlp.down
    x = jax.random.normal(jax.random.key(1), (2, 24))
    h, down, up = base(x), layer.delta.down, layer.delta.up
    branch = jnp.tanh(h @ down.kernel[...] + down.bias[...]) @ up.kernel[...] + up.bias[...]
    np.testing.assert_allclose(layer(x), h + branch, rtol=1e-5)
    assert surm.count_parameters(adapted).adapter == 2 * 2 * (2 * 12 * 5 + 5 + 12)
    with surm.disabled(adapted):
        np.testing.assert_array_equal(layer(x), h)
    with pytest.raises(InputError, match="has an adapter, which is not linear"):
        surm.merge(adapted)


def test_a_bottleneck_knows_its_own_options_alone(small_vit):
    with pytest.raises(InputError, match="bottleneck has no option 'rank'; it has size"):
        PeftSpec(method="bottleneck", options="rank=8")
    with pytest.raises(InputError, match="bottleneck: size=0, expected at least 1"):
        attach(small_vit, method="bottleneck", options="size=0")


def test_a_bottleneck_is_saved_and_loaded(small_vit, images, tmp_path):
    adapted = randomize(attach(small_vit, method="bottleneck", options="size=3"))
    surm.save_adapter(tmp_path, adapted)
    np.testing.assert_array_equal(surm.load_adapter(tmp_path, small_vit)(images), adapted(images))


def test_the_head_is_not_counted_as_adapter(small_vit):
    count = surm.count_parameters(attach(small_vit, method="full"))
    assert count.trainable == count.total == surm.count_parameters(small_vit).total
    assert count.trainable - count.adapter == 12 * 5 + 5
    assert surm.count_parameters(small_vit) == surm.ParameterCount(0, 0, count.total)


@functools.cache
def abstract_vit_b16() -> vit.ViT:
    return nnx.eval_shape(lambda: vit.ViT(vit.preset("vit_b16"), 10, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("changes", "adapter"),
    [
        ({}, 55_296),
        ({"targets": r".*\.(query|value)"}, 36_864),
        ({"family": "toeplitz"}, 55_296),
        ({"family": "kronecker", "options": "rank=16"}, 55_296),
        ({"family": "low_rank", "options": "rank=1", "targets": r".*\.(query|value)"}, 36_864),
        ({"family": "lorta", "options": "rank=4", "targets": r".*\.(query|key|value|attention\.output)"}, 4 * 860),
        ({"family": "aurora", "targets": r".*\.(query|value)"}, 2 * 768 * 64 + 64**3 + 24 * 64),
        ({"family": "lora_xs", "options": "rank=25", "targets": r".*\.(query|value)"}, 15_000),
        ({"family": "vera", "targets": r".*\.(query|value)"}, 24 * (768 + 256)),
        ({"family": "adalora", "targets": r".*\.(query|value)"}, 24 * 12 * (768 + 768 + 1)),
        ({"family": "low_rank", "options": "rank=1", "targets": r".*\.(query|value)", "magnitude": True}, 24 * 3 * 768),
        ({"method": "hadamard_adapter", "options": {"norm": ""}}, 12 * 2 * 768),
        ({"method": "hadamard_adapter", "options": {"norm": r".*\.norm2"}}, 12 * 4 * 768),
        ({"family": "low_rank", "options": "rank=2", "targets": r".*\.(query|value)"}, 73_728),
        ({"family": "low_rank", "options": "rank=4", "targets": r".*\.(query|value)"}, 147_456),
        ({"family": "low_rank", "options": "rank=8", "targets": r".*\.(query|value)"}, 294_912),
        ({"method": "adapter"}, 55_296),
    ],
)
def test_published_counts_on_vit_b16(changes, adapter):
    attached = nnx.eval_shape(lambda base: surm.attach(base, PeftSpec(**changes), nnx.Rngs(0)), abstract_vit_b16())
    state = nnx.state(attached, variables.AdapterParam)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == adapter


def test_the_table_lists_every_adapted_layer(small_vit):
    text = surm.peft.table(attach(small_vit))
    assert text.count("circulant") == 6
    assert "adapter 144 parameters" in text


def test_many_layers_share_a_line_if_only_their_numbers_differ(monkeypatch, small_vit):
    adapted = surm.attach(small_vit, surm.PeftSpec(targets=r".*(query|mlp\.up)"), nnx.Rngs(0))
    alone = counts.table(adapted).split("\n")
    monkeypatch.setattr(counts, "_MANY", 3)
    together = counts.table(adapted).split("\n")
    assert len(alone) == 5 and len(together) == 3 and together[-1] == alone[-1]
    assert together[0].split() == ["blocks.*.attention.query", "2", "of", "12×12", "circulant", "48"]


def test_a_family_that_does_not_fit_names_the_layer(small_vit):
    with pytest.raises(InputError, match=r"blocks\.0\.attention\.key: .*kronecker.*5"):
        attach(small_vit, family="kronecker", options="rank=5")


def test_a_second_adapter_is_refused(small_vit):
    with pytest.raises(InputError, match="detach"):
        attach(attach(small_vit))


def test_split_and_join_are_inverse_and_jit(small_vit, images):
    adapted = randomize(attach(small_vit))
    graphdef, trainable, frozen = surgery.split(adapted)
    joined = surgery.join(graphdef, trainable, frozen)
    assert nnx.graphdef(joined) == graphdef
    np.testing.assert_array_equal(joined(images), adapted(images))
    jitted = jax.jit(lambda t, f, x: surgery.join(graphdef, t, f)(x))(trainable, frozen, images)
    np.testing.assert_allclose(jitted, adapted(images), rtol=1e-4, atol=1e-5)


def test_dropout_differs_by_layer_and_key_and_is_off_in_evaluation(small_vit, images):
    adapted = randomize(attach(small_vit, dropout=0.5))
    adapted.train()

    def masked(seed):
        layers.reseed_dropout(adapted, jax.random.key(seed))
        x = jnp.ones((1, 12))
        attention = adapted.blocks[0].attention
        return [np.asarray(layer.dropout(x)) for layer in (attention.query, attention.key)]

    first, again, other = masked(0), masked(0), masked(1)
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0]) and not np.array_equal(first[0], first[1])
    adapted.eval()
    np.testing.assert_array_equal(adapted(images), adapted(images))


def test_bf16_base_keeps_float32_adapter_and_bf16_output(images):
    model = vit.ViT(vit.ViTConfig(16, 8, 12, 1, 3, 24), 5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    adapted = randomize(surm.attach(model, PeftSpec(train=("head",)), nnx.Rngs(0)))
    assert adapted(images).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in surgery.split(adapted)[1].values()} == {jnp.dtype("float32")}


class Twice(nnx.Module):
    """A layer used under two names, and a kernel tied to another."""

    def __init__(self, rngs):
        self.one = nnx.Linear(4, 4, rngs=rngs)
        self.two = self.one
        self.tied = nnx.Linear(4, 4, rngs=rngs)
        self.tied.kernel = self.one.kernel
        self.layers = nnx.List([self.one])

    def __call__(self, x):
        return self.tied(self.layers[0](self.two(self.one(x))))


def test_a_layer_used_twice_is_adapted_at_both_places_and_stays_one():
    model = Twice(nnx.Rngs(0))
    adapted = surm.attach(model, PeftSpec(targets="one"), nnx.Rngs(1))
    assert adapted.one is adapted.two is adapted.layers[0]
    assert surm.count_parameters(adapted).adapter == 8
    x = jax.random.normal(jax.random.key(0), (2, 4))
    np.testing.assert_array_equal(adapted(x), model(x))
    plain = surm.detach(randomize(adapted))
    assert plain.one is plain.two is plain.layers[0] and isinstance(plain.one, nnx.Linear)


def test_tied_kernels_stay_tied():
    model = Twice(nnx.Rngs(0))
    adapted = surm.attach(model, PeftSpec(method="full"), nnx.Rngs(1))
    assert adapted.tied.kernel is adapted.one.kernel
    assert surm.count_parameters(adapted).trainable == surm.count_parameters(model).total


@pytest.mark.parametrize("operation", [surm.merge, surm.unmerge, surm.detach])
def test_no_variable_is_shared_between_input_and_output(small_vit, operation):
    def variables(model):
        return {id(v) for _, v in nnx.iter_graph(model) if isinstance(v, nnx.Variable)}

    adapted = attach(small_vit)
    assert not variables(small_vit) & variables(adapted)
    assert not variables(adapted) & variables(operation(adapted))
    graphdef, trainable, frozen = surgery.split(adapted)
    assert not variables(adapted) & variables(surgery.join(graphdef, trainable, frozen))


@pytest.mark.parametrize("activation", ["gelu", "relu", "tanh", "identity"])
@pytest.mark.parametrize(("family", "options"), [("circulant", ""), ("toeplitz", ""), ("kronecker", ""),
                                                 ("low_displacement_rank", "")])  # fmt: skip
def test_adapters_of_every_activation_start_as_identity_and_learn(small_vit, family, options, activation):
    adapted = attach(small_vit, method="adapter", family=family, options=options, activation=activation)
    layer = adapted.blocks[0].attention.output
    x = jax.random.normal(jax.random.key(0), (4, 12))
    np.testing.assert_array_equal(layer(x), layer.base(x))
    graphdef, trainable, frozen = surgery.split(layer)
    gradients = jax.jit(jax.grad(lambda t: jnp.sum(surgery.join(graphdef, t, frozen)(x) ** 3)))(trainable)
    assert any(np.any(np.asarray(value) != 0) for path, value in gradients.items() if "delta" in path)


def test_disabling_what_has_no_adapter_layer_is_refused(small_vit):
    with pytest.raises(InputError, match="no layer with an adapter"), surm.disabled(attach(small_vit, method="bitfit")):
        pass


def test_training_nothing_is_refused(small_vit):
    with pytest.raises(InputError, match="trains nothing"):
        surm.attach(small_vit, PeftSpec(method="head"), nnx.Rngs(0))


@pytest.mark.parametrize(
    ("precision", "fuses"),
    [(None, False), ("default", False), ("highest", True), (jax.lax.Precision.HIGHEST, True)],
)
def test_where_float32_is_multiplied_in_less_only_the_highest_precision_fuses(monkeypatch, precision, fuses):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    layer = nnx.Linear(12, 12, precision=precision, rngs=nnx.Rngs(0))
    assert bool(fused.obstacle(layer)) != fuses
    with jax.default_matmul_precision("highest"):
        assert bool(fused.obstacle(layer)) == (precision == "default")


@pytest.mark.parametrize("model", [{"a": 1}, nn.Dense(3)], ids=["a dict", "of Linen"])
def test_what_is_no_nnx_module_is_refused_with_the_remedy(monkeypatch, model):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # or the annotations refuse some of them first
    with pytest.raises(InputError, match="attach takes an nnx.Module.*surm.adapt_params takes the parameters of any"):
        surm.attach(model, PeftSpec(), nnx.Rngs(0))
