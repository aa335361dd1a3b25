"""Several adapters in one model: their weighted sum, each alone, switched without compiling, merged and taken out."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

import surm
from surm import InputError, PeftSpec
from surm.models import vit
from surm.peft import surgery
from surm.peft.together import bases, several
from tests.conftest import SMALL
from tests.peft.randomize import randomize

SPECS = {
    "a": PeftSpec(family="circulant", targets=r".*\.(query|value)", scale=0.5, train="head"),
    "b": PeftSpec(family="low_rank", options="rank=2", targets=r".*\.(query|up)", scale=2.0, path="fused"),
    "c": PeftSpec(family="lora_xs", options="rank=3", targets=r".*\.query", path="branch"),
}


def attach(base: nnx.Module, spec: PeftSpec, seed: int = 1) -> nnx.Module:
    return randomize(surm.attach(base, spec, nnx.Rngs(seed)), seed)


@pytest.fixture(scope="module")
def base() -> vit.ViT:
    return vit.ViT(SMALL, 5, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def models(base) -> dict[str, nnx.Module]:
    return {name: attach(base, spec, seed) for seed, (name, spec) in enumerate(SPECS.items())}


@pytest.fixture(scope="module")
def combined(models) -> vit.ViT:
    return several.combine(models, {"a": 1.0, "b": -0.5, "c": 3.0}, head="a")


def close(first, other):
    np.testing.assert_allclose(first, other, rtol=1e-4, atol=1e-5 * float(jnp.max(jnp.abs(other))))


def state(model: nnx.Module) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


def test_a_layer_adds_every_update_to_the_base(models, combined):
    names = {"attention.query": "abc", "attention.value": "a", "mlp.up": "b"}
    x = jax.random.normal(jax.random.key(0), (4, 12))
    for name, expected in names.items():
        path = surgery.select.parts(f"blocks.1.{name}")
        layer, y = surgery.select.get(combined, path), None
        assert "".join(member.name for member in layer.delta.members) == expected
        y = layer.base(x)
        for adapter, weight in {"a": 1.0, "b": -0.5, "c": 3.0}.items():
            if adapter in expected:
                dense = surgery.select.get(models[adapter], path).delta.to_dense()
                y = y + weight * SPECS[adapter].scale * x @ dense.T
        close(layer(x), y)
    assert isinstance(combined.blocks[1].attention.key, nnx.Linear)


def test_the_order_does_not_matter(models, images):
    one, other = (several.combine({name: models[name] for name in names}, head="a") for names in ("abc", "cba"))
    close(one(images), other(images))


@pytest.mark.parametrize("name", SPECS)
def test_switched_to_one_it_answers_as_that_model(models, images, name):
    combined = several.combine(models, head=name)
    close(several.activate(combined, name)(images), models[name](images))
    assert several.adapters(combined) == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert several.adapters(several.activate(combined, name)) == {other: float(other == name) for other in SPECS}


def test_switched_off_it_answers_as_the_base_with_that_head(models, combined, images):
    with surm.disabled(models["a"]) as off:
        expected = off(images)
    np.testing.assert_array_equal(several.activate(combined, {})(images), expected)
    with surm.disabled(several.activate(combined, "b")) as off:
        np.testing.assert_array_equal(off(images), expected)


def test_merged_it_answers_the_same_and_unmerging_restores_the_bits(combined, images):
    before, logits = state(combined), combined(images)
    merged = surm.merge(combined)
    close(merged(images), logits)
    np.testing.assert_array_equal(surm.detach(merged)(images), merged(images))
    for was, now, restored in zip(before, state(combined), state(surm.unmerge(merged)), strict=True):
        np.testing.assert_array_equal(was, now)
        np.testing.assert_array_equal(was, restored)
    with pytest.raises(InputError, match="weights='b', but the model is merged; unmerge it first"):
        several.activate(merged, "b")


def test_detached_it_is_the_base_again(base, combined):
    plain = surm.detach(combined)
    trained = {path for path, _ in nnx.to_flat_state(nnx.state(plain.head))}
    assert trained and type(plain.blocks[0].mlp.up) is nnx.Linear
    for was, now in zip(state(base.blocks), state(plain.blocks), strict=True):
        np.testing.assert_array_equal(was, now)


def test_other_weights_compile_nothing_anew(combined, images):
    traced = []
    answer = nnx.jit(lambda model, x: traced.append(1) or model(x))
    first = answer(combined, images)
    close(first, combined(images))
    assert jnp.max(jnp.abs(answer(several.activate(combined, "c"), images) - first)) > 1e-2
    answer(several.activate(combined, {"a": 0.25, "b": 1}), images)
    assert len(traced) == 1


def test_weights_can_be_learned(combined):
    x = jnp.ones((2, 12))
    answer = lambda weight: several.activate(combined, {"a": weight, "c": 1.0}).blocks[0].attention.query(x)  # noqa: E731
    loss = jax.jit(lambda weight: jnp.sum(answer(weight) ** 2))
    slope = jax.jit(jax.grad(loss))(jnp.array(0.5))
    assert abs(slope) > 1e-2
    np.testing.assert_allclose(slope, (loss(0.6) - loss(0.4)) / 0.2, rtol=1e-3)


def test_weights_may_be_arrays_of_any_real_type(combined):
    given = {"a": jnp.array(2), "b": jnp.array(0.5, jnp.bfloat16), "c": np.float64(3)}
    assert several.adapters(several.activate(combined, given)) == {"a": 2.0, "b": 0.5, "c": 3.0}


def test_all_adapters_train_on(models, combined):
    adapter, trainable = (sum(getattr(surm.count_parameters(model), kind) for model in models.values())
                          for kind in ("adapter", "trainable"))  # fmt: skip
    count = surm.count_parameters(combined)
    assert (count.adapter, count.trainable) == (adapter, trainable)
    graphdef, trained, frozen = surgery.split(combined)
    x = jnp.ones((2, 12))
    answer = lambda trained: surgery.join(graphdef, trained, frozen).blocks[0].attention.query(x)  # noqa: E731
    gradients = jax.jit(jax.grad(lambda trained: jnp.sum(answer(trained) ** 2)))(trained)
    alive = {path for path, gradient in gradients.items() if np.any(np.asarray(gradient))}
    assert alive == {path for path in trained if path.startswith("blocks.0.attention.query")} and len(alive) == 5


def test_every_adapter_keeps_its_dropout_and_its_path(base):
    dropping = attach(base, PeftSpec(targets=r".*\.query", dropout=0.5), 4)
    layer = several.combine({"d": dropping, "b": attach(base, SPECS["b"])}).blocks[0].attention.query
    d, b = layer.delta.members
    assert (d.path, b.path, b.dropout) == ("auto", "auto", None)
    x = jnp.ones((2, 12))
    assert not np.array_equal(d(x, x.dtype, layer.base), d(x, x.dtype, layer.base))
    np.testing.assert_array_equal(b(x, x.dtype, layer.base), b(x, x.dtype, layer.base))
    layer.eval()
    np.testing.assert_array_equal(layer(x), layer(x))


class Twice(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(3, 3, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        self.second = self.first


def test_a_layer_with_two_names_is_wrapped_in_both_places():
    model = Twice()
    models = {name: attach(model, PeftSpec(targets=name)) for name in ("first", "second")}
    combined = several.combine(models)
    assert combined.first is combined.second and len(combined.first.delta.members) == 2
    assert combined.second(jnp.ones((1, 3), jnp.bfloat16)).dtype == jnp.bfloat16
    assert surm.merge(combined).second.kernel.dtype == jnp.bfloat16
    assert type(surm.detach(combined).first) is nnx.Linear


def test_heads_of_different_numbers_of_classes_go_together(models):
    wide = attach(vit.ViT(SMALL, 7, rngs=nnx.Rngs(0)), SPECS["a"], 3)
    for head, classes in (("wide", 7), ("a", 5)):
        combined = several.combine({"wide": wide, "a": models["a"]}, head=head)
        assert combined.head.kernel.shape == (12, classes)
        assert len(combined.blocks[0].attention.query.delta.members) == 2


def test_what_was_combined_stays_as_it_is(models):
    before = [(nnx.graphdef(model), state(model)) for model in models.values()]
    combined = several.combine({name: surm.merge(model) for name, model in models.items()}, head="c")
    several.activate(combined, "a")
    several.combine(models, head="c")
    for (graphdef, arrays), model in zip(before, models.values(), strict=True):
        assert nnx.graphdef(model) == graphdef
        for was, now in zip(arrays, state(model), strict=True):
            np.testing.assert_array_equal(was, now)


def test_the_table_names_all_families(combined):
    assert "circulant+low_rank+lora_xs" in surm.peft.table(combined)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b": PeftSpec(method="adapter")}, "adapter 'b' has method='adapter'; expected an update"),
        ({"b": PeftSpec(method="hadamard_adapter", options={"norm": ""})}, "adapter 'b' has method='hadamard_adapter'"),
        ({"b": PeftSpec(magnitude=True)}, r"adapter 'b': blocks\.0\.attention\.key has a magnitude, but only updates"),
        ({"b": SPECS["a"]}, r"'a', 'b' were trained with different head\.bias, head\.kernel; .* such as head='a'$"),
    ],
)
def test_what_does_not_add_up_is_refused(models, base, changes, message):
    others = {name: attach(base, spec, 9) for name, spec in changes.items()}
    with pytest.raises(InputError, match=message):
        several.combine({"a": models["a"], **others})


def test_other_bases_are_refused_by_name(models, base):
    foreign = attach(vit.ViT(SMALL, 5, rngs=nnx.Rngs(1)), SPECS["b"])
    with pytest.raises(InputError, match=r"adapter 'b' and adapter 'f' have different bases: blocks\.0\.\S+ differs"):
        several.combine({"b": models["b"], "f": foreign})
    other = nnx.clone(models["b"])
    other.blocks[1].norm1.epsilon = 1e-3
    with pytest.raises(InputError, match="adapter 'b' and adapter 'o' have bases of the same arrays, but compute"):
        several.combine({"b": models["b"], "o": other})


@pytest.mark.parametrize(
    "array",
    [
        jnp.float32(1.5), np.arange(12.0).reshape(3, 4).T, jnp.ones((2, 3), jnp.bfloat16), np.zeros((3, 0)),
        np.array([np.nan, 0.0]), np.array([True, False]),
    ],
)  # fmt: skip
def test_arrays_are_the_same_by_their_bits(array):
    again = np.array(array)
    assert bases.same(array, again)
    assert not bases.same(array, again[None]) and not bases.same(array, None)
    assert not again.size or not bases.same(array, again ^ True if again.dtype == bool else -again)


def test_no_pair_of_arrays_is_compared_twice(models, monkeypatch):
    pairs, same = [], bases.same
    monkeypatch.setattr(bases, "same", lambda one, other: pairs.append((id(one), id(other))) or same(one, other))
    given = {name: nnx.clone(model) for name, model in models.items()}
    variables = {name: bases.beside(model) for name, model in given.items()}
    assert bases.differing(given) == ["head.bias", "head.kernel"]
    assert len(pairs) == 2 * len(variables["a"])


def test_names_and_weights_that_are_none_are_refused(models, base, combined):
    for call, message in (
        (lambda: several.combine({}), "adapters named by nothing, expected names, such as 'german'"),
        (lambda: several.combine({"": models["a"]}), "adapters named '', expected names"),
        (lambda: several.combine(models, head="d"), "head='d', expected one of 'a', 'b', 'c'"),
        (lambda: several.combine(models, {"A": 1.0}), "no adapter is called 'A'; nearest: a"),
        (lambda: several.activate(combined, "d"), "no adapter is called 'd'; known: a, b, c"),
        (lambda: several.activate(combined, {"a": float("nan")}), "the weight of 'a' is nan, expected a finite number"),
        (lambda: several.activate(combined, {"a": True}), "the weight of 'a' is True, expected"),
        (lambda: several.activate(combined, {"a": jnp.ones(2)}), "the weight of 'a' is Array"),
        (
            lambda: several.activate(combined, {"a": jnp.array(jnp.nan)}),
            r"the weight of 'a' is Array\(nan, .*, expected",
        ),
        (lambda: several.combine(models, {"a": jnp.array(-jnp.inf)}), r"the weight of 'a' is Array\(-inf"),
        (lambda: several.activate(combined, {"a": jnp.array(True)}), r"the weight of 'a' is Array\(True"),
        (lambda: several.activate(combined, {"a": jnp.array(1j)}), r"the weight of 'a' is Array\(0\.\+1\.j"),
        (lambda: several.activate(combined, {"a": jax.random.key(0)}), "the weight of 'a' is Array.*key<fry>"),
        (lambda: several.activate(models["a"], "a"), "the model has one adapter, without a name"),
        (lambda: several.adapters(base), "the model has no adapter, without a name; expected a model from combine"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_what_takes_one_adapter_refuses_several(tmp_path, combined):
    several_ = "the model has several adapters, 'a', 'b', 'c'; expected one adapter"
    for call, message in (
        (lambda: several.combine({"all": combined}), several_),
        (lambda: surm.save_adapter(tmp_path / "x", combined), several_),
        (lambda: surm.stack_adapters([combined]), several_),
        (lambda: surm.with_path(combined, "branch"), several_),
        (lambda: surm.attach(combined, PeftSpec(), nnx.Rngs(0)), "has an adapter already"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_what_is_no_mapping_is_refused(monkeypatch, base):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # or the annotations refuse some of them first
    one = surm.attach(base, PeftSpec(train="head"), nnx.Rngs(0))
    with pytest.raises(InputError, match="models: given a list, expected a mapping from names to models"):
        surm.combine([one, one])
    with pytest.raises(InputError, match=r"weights=\['one'\], expected a name or a mapping from names to numbers"):
        surm.activate(surm.combine({"one": one}), ["one"])
