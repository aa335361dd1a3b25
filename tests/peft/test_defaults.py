"""Every method with nothing but its name, on the models of the house: two steps change what it trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import surm
from surm import PeftSpec
from surm.models import bert, vit
from surm.peft import surgery
from surm.peft.spec import METHODS

IMAGE = vit.ViTConfig(image_size=4, patch_size=2, width=6, depth=1, heads=2, mlp_width=8, epsilon=1e-6)
TEXT = bert.BertConfig(vocabulary=7, positions=5, segments=2, width=6, depth=1, heads=2, mlp_width=8, epsilon=1e-6)
OPTIONS = {"bottleneck": "size=2"}  # its default, 64, is beside such a model much


def model_of(kind: str) -> tuple[nnx.Module, tuple]:
    if kind == "image":
        return vit.ViT(IMAGE, 3, rngs=nnx.Rngs(0)), (jax.random.normal(jax.random.key(0), (2, 4, 4, 3)),)
    tokens = jnp.array([[1, 2, 3], [4, 5, 6]])
    return bert.Bert(TEXT, 3, rngs=nnx.Rngs(0)), (tokens, jnp.zeros_like(tokens), jnp.ones_like(tokens, bool))


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name == "hadamard_adapter" else pytest.mark.slow) for name in METHODS]
)
def test_a_method_trains_with_its_defaults(method, kind):
    model, inputs = model_of(kind)
    adapted = surm.attach(model, PeftSpec(method, options=OPTIONS.get(method, ""), train="head"), nnx.Rngs(1))
    np.testing.assert_array_equal(adapted(*inputs), model(*inputs))
    graphdef, first, frozen = surgery.split(adapted)
    slope = jax.jit(jax.grad(lambda t: jnp.sum((surgery.join(graphdef, t, frozen)(*inputs) - 1.0) ** 2)))
    trained = first
    for _ in range(2):
        trained = jax.tree.map(lambda value, change: value - 0.1 * change, trained, slope(trained))
    changed = {path for path in first if not np.array_equal(first[path], trained[path])}
    own = {path for path in changed if not path.startswith("head")}
    assert {"head.kernel", "head.bias"} <= changed and (own or method == "head")
    assert all(np.isfinite(array).all() for array in trained.values())
    assert surm.count_parameters(adapted).adapter > 0 or method == "head"
