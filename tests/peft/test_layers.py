"""What stands in the layers: fixed and shared arrays, magnitudes, the Hadamard adapter, rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import surm
from surm import InputError, PeftSpec, matrices
from surm.models import bert
from surm.peft import surgery, variables
from tests.peft.randomize import randomize


def attach(model, **changes):
    return surm.attach(model, PeftSpec(train=("head",), **changes), nnx.Rngs(3))


def test_what_is_fixed_is_made_from_the_weight_and_stored_nowhere(small_vit, images, tmp_path):
    adapted = randomize(attach(small_vit, family="lora_xs", options="rank=2"))
    layer = adapted.blocks[0].attention.query
    expected = matrices.FAMILIES["lora_xs"].fixed(layer.kernel[...].T, rank=2)
    for name, value in expected.items():
        np.testing.assert_allclose(layer.delta.values()[name], value, atol=1e-6)
    surm.save_adapter(tmp_path, adapted)
    stored = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    assert {name.rpartition(".")[2] for name in stored if "delta" in name} == {"r"}
    np.testing.assert_array_equal(surm.load_adapter(tmp_path, small_vit)(images), adapted(images))
    assert not any("fixed" in path for path in surgery.split(adapted)[1])


def test_layers_of_a_shape_share_veras_matrices(small_vit):
    adapted = attach(small_vit, family="vera", options="rank=3", targets=r"blocks\..*\.(query|value|up)")
    layers = [layer for _, layer in surgery.wrapped_layers(adapted)]
    matrices_of_up = {id(layer.delta.fixed["B"]) for layer in layers if layer.kernel.shape == (12, 24)}
    assert len(layers) == 6 and len(matrices_of_up) == 1
    fixed = nnx.to_flat_state(nnx.state(adapted, variables.FixedParam))
    assert sorted(value[...].shape for _, value in fixed) == [(3, 12), (12, 3), (24, 3)]  # one A, two Bs


def test_what_a_tensor_shares_is_one_array(small_vit, images, tmp_path):
    adapted = randomize(
        attach(small_vit, family="lorta", options="rank=2,heads=3", targets=r".*\.(query|value|output)")
    )
    one, other = adapted.blocks[0].attention, adapted.blocks[1].attention

    def held(layer, name):
        return layer.delta.parameters[name]

    for name in ("a", "b", "c_head"):
        assert held(one.query, name) is held(other.value, name)
    assert held(one.query, "c_layer") is held(one.value, "c_layer") is not held(other.query, "c_layer")
    assert held(one.query, "c_kind") is held(other.query, "c_kind") is not held(one.value, "c_kind")
    count = surm.count_parameters(adapted).adapter
    assert count == 2 * (12 + 4 + 2 + 3 + 3)  # r (n_in + n_out/heads + layers + heads + kinds)
    rows = surm.peft.table(adapted).splitlines()[:-1]
    assert sum(int(row.split()[-1].replace(",", "")) for row in rows) == count
    surm.save_adapter(tmp_path, adapted)
    again = surm.load_adapter(tmp_path, small_vit)
    np.testing.assert_array_equal(again(images), adapted(images))
    assert held(again.blocks[0].attention.query, "a") is held(again.blocks[1].attention.query, "a")
    graphdef, trainable, frozen = surgery.split(adapted)
    slopes = jax.grad(lambda t: jnp.sum(surgery.join(graphdef, t, frozen)(images) ** 2))(trainable)
    assert len(slopes) == 2 + 3 + 2 + 3  # the head, one of each for the model, two layers, three kinds


def magnitude_oracle(layer, x):
    """The weight-decomposed DoRA, arXiv 2402.09353, equation 5."""
    weight = layer.kernel[...].T + layer.scale * layer.delta.to_dense()
    norms = jax.lax.stop_gradient(jnp.linalg.norm(weight, axis=1))
    return x @ (weight * (layer.magnitude[...] / norms)[:, None]).T + layer.bias[...]


@pytest.mark.parametrize("path", ["branch", "fused"])
@pytest.mark.parametrize("family", ["low_rank", "circulant"])
def test_a_magnitude_follows_its_formula(small_vit, images, family, path):
    adapted = attach(small_vit, family=family, magnitude=True, scale=0.5, path=path)
    np.testing.assert_array_equal(adapted(images), small_vit(images))
    layer = randomize(adapted).blocks[0].attention.query
    layer.bias[...] = jnp.arange(12.0)
    x = jax.random.normal(jax.random.key(0), (4, 12))
    graphdef, trainable, frozen = surgery.split(nnx.Dict(query=layer))
    both = [
        jax.value_and_grad(lambda t, way=way: jnp.sum(way(surgery.join(graphdef, t, frozen).query, x) ** 2))(trainable)
        for way in (lambda layer, x: layer(x), magnitude_oracle)
    ]
    np.testing.assert_allclose(both[0][0], both[1][0], rtol=1e-5)
    for name, slope in both[1][1].items():
        np.testing.assert_allclose(both[0][1][name], slope, rtol=2e-3, atol=1e-4 * float(jnp.abs(slope).max()))
    before = np.asarray(layer.kernel[...])
    expected = layer(x)
    layer.merge()
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(jnp.linalg.norm(layer.kernel[...], axis=0), jnp.abs(layer.magnitude[...]), rtol=1e-5)
    layer.unmerge()
    np.testing.assert_array_equal(layer.kernel[...], before)


def test_a_hadamard_adapter_follows_its_formula_and_merges(small_vit, images):
    adapted = attach(small_vit, method="hadamard_adapter", options={"norm": ""})
    assert surm.count_parameters(adapted).adapter == 2 * 2 * 12
    np.testing.assert_array_equal(adapted(images), small_vit(images))
    adapted = randomize(adapted)
    layer = adapted.blocks[1].attention.output
    x = jax.random.normal(jax.random.key(0), (4, 12))
    expected = (x @ layer.kernel[...] + layer.bias[...]) * layer.delta.scale[...] + layer.delta.shift[...]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)
    merged = surm.merge(adapted)
    np.testing.assert_allclose(merged(images), adapted(images), rtol=1e-4, atol=1e-5)
    again = surm.unmerge(merged).blocks[1].attention.output
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(getattr(again, name)[...], getattr(layer.base, name)[...])
    with surm.disabled(adapted):
        np.testing.assert_array_equal(adapted.blocks[1].attention.output(x), layer.base(x))


def test_a_layer_without_a_bias_takes_no_shift():
    model = nnx.Dict(output=nnx.Linear(4, 4, use_bias=False, rngs=nnx.Rngs(0)))
    spec = PeftSpec(method="hadamard_adapter", targets="output", options={"norm": ""})
    with pytest.raises(InputError, match="output: the layer has no bias"):
        surm.merge(surm.attach(model, spec, nnx.Rngs(0)))


RULES = {
    r".*\.query": {"scale": 2.0},
    r".*\.value": {"family": "kronecker", "options": {"rank": 4}},
    r".*\.up": {"family": "low_rank", "options": {"rank": 2}, "scale": 0.5},
    r"blocks\.1\.mlp\..*": None,
}


def test_rules_give_layers_families_options_and_scales_of_their_own(small_vit, images, tmp_path):
    adapted = randomize(attach(small_vit, rules=RULES, exclude=r"blocks\.0\.attention\.value"))
    found = {path: (layer.delta.family, layer.scale) for path, layer in
             ((".".join(map(str, path)), layer) for path, layer in surgery.wrapped_layers(adapted))}  # fmt: skip
    assert found == {
        "blocks.0.attention.query": ("circulant", 2.0),
        "blocks.0.mlp.up": ("low_rank", 0.5),
        "blocks.1.attention.query": ("circulant", 2.0),
        "blocks.1.attention.value": ("kronecker", 1.0),
    }
    assert adapted.blocks[0].mlp.up.delta.parameters["a"].shape == (2, 12)
    expected = adapted(images)
    for other in (surm.with_path(adapted, "branch"), surm.merge(adapted)):
        np.testing.assert_allclose(other(images), expected, rtol=1e-4, atol=1e-5)
    beside = surm.with_path(adapted, "branch")
    assert beside.blocks[0].attention.query.scale == 2.0
    assert {layer.path for _, layer in surgery.wrapped_layers(beside)} == {"branch"}
    surm.save_adapter(tmp_path, adapted)
    np.testing.assert_array_equal(surm.load_adapter(tmp_path, small_vit)(images), expected)


def test_rules_as_text_are_the_same_and_more_targets_than_the_specs(small_vit):
    text = (
        r".*\.query => scale=2; .*\.value => family=kronecker, rank=4; "
        r".*\.up => family=low_rank, rank=2, scale=0.5; blocks\.1\.mlp\..* => off"
    )
    assert PeftSpec(rules=text) == PeftSpec(rules=RULES)
    spec = PeftSpec(targets=r".*\.key", rules=r".*\.query => family=toeplitz")
    assert {path[-1] for path, _ in surgery.wrapped_layers(surm.attach(small_vit, spec, nnx.Rngs(0)))} == {
        "key",
        "query",
    }


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({".*query": {"family": "circulent"}}, "rules: '.*query': no family is called 'circulent'; nearest: circulant"),
        ({".*query": {"method": "head"}}, "a rule cannot change 'method'; it can family, options"),
        ({".*query": {"options": {"rank": 2}}}, "circulant has no option 'rank'"),
        ({"(query": {"scale": 2.0}}, r"pattern '\(query' is not a regular expression"),
        (".*query => off; .*query => off", "gives '.*query' twice"),
        (".*query => rank=two", "peft.rules='rank=two': 'rank=two' is not NAME=VALUE"),
        (".*query => family=vera, family=low_rank", "gives 'family' twice"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rules, message):
    with pytest.raises(InputError, match=message):
        PeftSpec(rules=rules)


def test_an_option_in_a_rule_leaves_the_others():
    spec = PeftSpec(family="adalora", options="rank=2,initial_rank=4,end=0.5", rules=".*value => rank=3")
    assert spec.at("a.value").options == {"rank": 3, "initial_rank": 4, "end": 0.5}
    assert PeftSpec(options="hadamard=False", rules=".*value => family=low_rank").at("a.value").options == {}


def test_a_layer_of_two_names_is_adapted_in_one_way():
    layer = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    model = nnx.Dict(a=nnx.Dict(query=layer), z=nnx.Dict(value=layer))
    same = surm.attach(model, PeftSpec(targets=".*", rules=r".* => scale=3"), nnx.Rngs(0))
    assert same.a.query is same.z.value and same.a.query.scale == 3
    assert surm.with_path(same, "branch").z.value.scale == 3
    with pytest.raises(InputError, match=r"a.query = z.value is claimed by two rules, 'a\\.query' and 'z\\.value'"):
        surm.attach(model, PeftSpec(rules=r"a\.query => scale=3; z\.value => scale=5"), nnx.Rngs(0))
    for left_out in ({"rules": r"a\.query => off"}, {"rules": r"z\.value => off"}, {"exclude": r"z\.value"}):
        with pytest.raises(InputError, match="leaves no layer"):  # off under one name is off
            surm.attach(model, PeftSpec(targets=".*", **left_out), nnx.Rngs(0))


def test_a_tensor_is_shared_by_matrices_of_one_shape_alone(small_vit):
    adapted = attach(small_vit, family="lorta", options="rank=2,heads=3", targets=r"blocks\..*\.(query|up|down)")
    block = adapted.blocks[0]
    held = [id(layer.delta.parameters["c_head"]) for layer in (block.attention.query, block.mlp.up, block.mlp.down)]
    assert len({*held}) == 3


def test_a_hadamard_adapter_knows_the_norm_from_the_model_or_its_option(small_vit):
    own = attach(small_vit, method="hadamard_adapter")
    trained = {path for path in surgery.split(own)[1] if "norm" in path}
    assert trained == {f"blocks.{i}.norm2.{name}" for i in (0, 1) for name in ("scale", "bias")}
    assert bert.Bert.norm_behind_attention == r".*\.norm1"  # BERT normalises behind the sum, a ViT in front of the MLP
    with pytest.raises(InputError, match="hadamard_adapter: norm: pattern '.*nrom'"):
        attach(small_vit, method="hadamard_adapter", options={"norm": ".*nrom"})
    named = attach(small_vit, method="hadamard_adapter", options={"norm": r".*\.norm1"})
    assert surm.count_parameters(named).adapter == surm.count_parameters(own).adapter == 2 * 4 * 12
    other = nnx.Dict(attention=nnx.Dict(output=nnx.Linear(4, 4, rngs=nnx.Rngs(0))))
    with pytest.raises(InputError, match="which an nnx.Dict does not name; expected the option norm"):
        surm.attach(other, PeftSpec(method="hadamard_adapter"), nnx.Rngs(0))


def test_what_a_rule_names_must_be_there_and_be_claimed_once(small_vit):
    with pytest.raises(
        InputError, match=r"blocks.0.attention.query is claimed by two rules, '.*\\.query' and '.*\(query"
    ):
        attach(small_vit, rules=r".*\.query => scale=2; .*(query|key) => scale=3")
    with pytest.raises(InputError, match="pattern '.*kwery', a regular expression, matches no linear layer"):
        attach(small_vit, exclude=".*kwery")
