import hashlib
import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import surm
from surm import InputError, PeftSpec
from surm.models import vit
from surm.peft import store, surgery
from tests.conftest import SMALL
from tests.peft.randomize import randomize


@pytest.fixture
def adapted(small_vit):
    model = randomize(surm.attach(small_vit, PeftSpec(train=("head",), dropout=0.1), nnx.Rngs(3)))
    model.eval()
    return model


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("method", ["update", "adapter", "bitfit", "head", "full"])
def test_a_saved_adapter_gives_the_same_logits_on_a_fresh_base(tmp_path, small_vit, images, method):
    model = randomize(surm.attach(small_vit, PeftSpec(method=method, train=("head",)), nnx.Rngs(3)))
    surm.save_adapter(tmp_path / "adapter", model, base_name="small")
    loaded = surm.load_adapter(tmp_path / "adapter", small_vit)
    np.testing.assert_array_equal(loaded(images), model(images))
    assert surgery.spec_of(loaded) == surgery.spec_of(model)


def test_a_head_initialised_otherwise_does_not_matter(tmp_path, small_vit, adapted, images):
    surm.save_adapter(tmp_path, adapted)
    small_vit.head = nnx.Linear(12, 5, rngs=nnx.Rngs(99))
    np.testing.assert_array_equal(surm.load_adapter(tmp_path, small_vit)(images), adapted(images))


def test_the_file_holds_trained_arrays_alone(tmp_path, adapted):
    surm.save_adapter(tmp_path, adapted)
    held = safetensors.numpy.load_file(tmp_path / store.WEIGHTS)
    assert set(held) == set(surgery.split(adapted)[1])
    assert not any("base" in name for name in held)
    assert sorted(p.name for p in tmp_path.iterdir()) == [store.CONFIG, store.WEIGHTS]


def test_a_merged_model_saves_the_same_adapter(tmp_path, small_vit, adapted):
    surm.save_adapter(tmp_path / "one", adapted)
    surm.save_adapter(tmp_path / "two", surm.merge(adapted))
    for name in (store.CONFIG, store.WEIGHTS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_base_hash_does_not_depend_on_wrapping_but_on_every_bit(small_vit, adapted):
    again = surm.attach(surm.detach(adapted), PeftSpec(family="toeplitz", train=("head",)), nnx.Rngs(0))
    assert store.base_hash(adapted) == store.base_hash(again) == store.base_hash(surm.merge(adapted))
    kernel = adapted.blocks[1].mlp.up.kernel
    kernel[...] = kernel[...].at[0, 0].multiply(1 + 2**-22)
    assert store.base_hash(adapted) != store.base_hash(again)


def test_the_hash_of_plain_arrays_is_that_of_their_names_dtypes_shapes_and_bytes(small_vit):
    model = surm.attach(small_vit, PeftSpec(train=("head",)), nnx.Rngs(3))
    digest, arrays = hashlib.sha256(), nnx.to_flat_state(nnx.state(small_vit, nnx.Param))
    for name, array in sorted((".".join(map(str, path)), np.asarray(variable[...])) for path, variable in arrays):
        if not name.startswith("head."):
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    assert store.base_hash(model) == digest.hexdigest()


def test_the_wrong_base_is_refused_by_name(tmp_path, adapted):
    surm.save_adapter(tmp_path, adapted, base_name="asset:right")
    other = vit.ViT(SMALL, 5, rngs=nnx.Rngs(1))
    with pytest.raises(InputError, match="trained on base 'asset:right'") as error:
        surm.load_adapter(tmp_path, other)
    assert "is another" in one_line(error)


def test_a_head_of_another_size_lists_the_difference(tmp_path, adapted):
    surm.save_adapter(tmp_path, adapted)
    base = surm.detach(adapted)
    base.head = nnx.Linear(12, 7, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"head.kernel has shape \(12, 5\), expected \(12, 7\)") as error:
        surm.load_adapter(tmp_path, base)
    one_line(error)


def test_a_truncated_file_is_refused(tmp_path, small_vit, adapted):
    surm.save_adapter(tmp_path, adapted)
    file = tmp_path / store.WEIGHTS
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match="truncated") as error:
        surm.load_adapter(tmp_path, small_vit)
    one_line(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds a JSON list, expected an object"),
        (json.dumps({"peft_type": "LORA"}), "'LORA'"),
        (json.dumps({"format": store.FORMAT}), "holds no"),
        (json.dumps({"format": store.FORMAT, "spec": {"famly": "circulant"}}), "holds no"),
    ],
)
def test_a_foreign_or_damaged_config_is_refused(tmp_path, small_vit, adapted, text, message):
    surm.save_adapter(tmp_path, adapted)
    (tmp_path / store.CONFIG).write_text(text)
    with pytest.raises(InputError, match=message) as error:
        surm.load_adapter(tmp_path, small_vit)
    one_line(error)


def test_an_empty_folder_and_a_plain_model_are_refused(tmp_path, small_vit):
    with pytest.raises(InputError, match="adapter_config.json is missing"):
        surm.load_adapter(tmp_path, small_vit)
    with pytest.raises(InputError, match="no adapter to save"):
        surm.save_adapter(tmp_path, small_vit)


def test_loading_replaces_an_attached_adapter_and_leaves_the_model_alone(tmp_path, adapted, images):
    surm.save_adapter(tmp_path, adapted)
    other = randomize(surm.attach(surm.detach(adapted), PeftSpec(family="low_rank"), nnx.Rngs(0)))
    before = other(images)
    np.testing.assert_array_equal(surm.load_adapter(tmp_path, other)(images), adapted(images))
    np.testing.assert_array_equal(other(images), before)
    assert jnp.any(before != adapted(images))


def test_bfloat16_trained_arrays_come_back(tmp_path, small_vit, images):
    small_vit.head.kernel = nnx.Param(small_vit.head.kernel[...].astype(jnp.bfloat16))
    model = randomize(surm.attach(small_vit, PeftSpec(train=("head",)), nnx.Rngs(0)))
    surm.save_adapter(tmp_path, model)
    loaded = surm.load_adapter(tmp_path, small_vit)
    assert loaded.head.kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(loaded(images), model(images))


def test_a_layer_that_is_adapted_and_trained_survives_merging_and_saving(tmp_path, small_vit, images):
    spec = PeftSpec(targets="head", train=("head",))  # refused now; adapters of surm 0.1.0 have both
    old = surgery.reattach(small_vit, spec, nnx.Rngs(0), saved=("head.base.kernel", "head.delta.parameters.a"))
    model = randomize(old)
    surm.save_adapter(tmp_path, surm.merge(model))
    np.testing.assert_array_equal(surm.load_adapter(tmp_path, small_vit)(images), model(images))


def test_a_user_module_called_base_is_hashed_too(small_vit):
    class Outer(nnx.Module):
        def __init__(self):
            self.kernel, self.base = nnx.Param(jnp.ones(2)), nnx.Linear(2, 2, rngs=nnx.Rngs(0))

    outer = Outer()
    outer.base.base = nnx.data(nnx.Param(jnp.zeros(1)))
    adapted = surm.attach(outer, PeftSpec(targets="base"), nnx.Rngs(0))
    before = store.base_hash(adapted)
    adapted.kernel[...] = adapted.kernel[...] * 2
    assert store.base_hash(adapted) != before


@pytest.mark.parametrize("base", [None, [], {"name": "x"}])
def test_a_config_that_does_not_name_its_base_is_refused(tmp_path, small_vit, adapted, base):
    surm.save_adapter(tmp_path, adapted)
    file = tmp_path / store.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base": base}))
    with pytest.raises(InputError, match="does not name its base") as error:
        surm.load_adapter(tmp_path, small_vit)
    one_line(error)


def test_a_file_is_no_folder_to_save_to(tmp_path, adapted):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file' is a file, expected a folder") as error:
        surm.save_adapter(tmp_path / "file", adapted)
    one_line(error)


@pytest.mark.parametrize("family", ["svft", "lora_xs"])
def test_other_singular_vectors_than_those_it_was_trained_with_are_noticed(tmp_path, small_vit, images, family):
    kernel = small_vit.blocks[0].attention.query.kernel
    kernel[...] = jnp.linalg.qr(kernel[...])[0]  # orthogonal: all singular values are 1, and any vectors as good
    spec = PeftSpec(family=family, targets=r"blocks\.0\.attention\.query", train="head")
    model = randomize(surm.attach(small_vit, spec, nnx.Rngs(0)))
    surm.save_adapter(tmp_path, model)
    np.testing.assert_allclose(surm.load_adapter(tmp_path, small_vit)(images), model(images), atol=1e-6)
    file = tmp_path / store.CONFIG
    config = json.loads(file.read_text())
    config["made_of_base"] = {path: 2 * length for path, length in config["made_of_base"].items()}  # elsewhere
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match="family computes from the base differ here at blocks.0.atte") as error:
        surm.load_adapter(tmp_path, small_vit)
    one_line(error)
