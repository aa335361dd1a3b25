#!/usr/bin/env bash
# flax 0.12.8 (jax 0.10.2): nnx.LinearGeneral ignores the order in which `axis` names axes.
#
# The kernel of LinearGeneral((3, 2), 4, axis=(-1, -2)) has the axes (3, 2, 4), as in_features say. By numpy.tensordot
# and by the pairing of in_features with axis one expects that axis -1 of the input meets the 3 and axis -2 the 2. The
# layer sorts `axis` and leaves in_features as they are, so axis -2 meets the 3: an input (5, 2, 3), which fits the
# arguments, is refused, and (5, 3, 2), which does not, is taken. Where both sizes are equal nothing fails: the layer
# with axis=(-1, -2) answers as that with axis=(-2, -1), and kernels of other programs have to be transposed.
#
# Output seen:
#   input (5, 2, 3), as axis and in_features say: TypeError
#   input (5, 3, 2): (5, 4)
#   square: equal to the einsum in the order of axis: False, in ascending order: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
from flax import nnx

layer = nnx.LinearGeneral((3, 2), 4, axis=(-1, -2), rngs=nnx.Rngs(0))
assert layer.kernel.shape == (3, 2, 4)
try:
    layer(jnp.ones((5, 2, 3)))
    refused = "nothing"
except TypeError:
    refused = "TypeError"
print("input (5, 2, 3), as axis and in_features say:", refused)
taken = layer(jnp.ones((5, 3, 2))).shape
print("input (5, 3, 2):", taken)

x = jax.random.normal(jax.random.key(0), (5, 3, 3))
square = nnx.LinearGeneral((3, 3), 4, axis=(-1, -2), use_bias=False, rngs=nnx.Rngs(0))
in_order, ascending = (
    bool(jnp.allclose(square(x), jnp.einsum(f"b{axes},jio->bo", x, square.kernel[...]), atol=1e-5))
    for axes in ("ij", "ji")
)
print(f"square: equal to the einsum in the order of axis: {in_order}, in ascending order: {ascending}")
assert refused == "TypeError" and taken == (5, 4) and not in_order and ascending, "the behaviour has changed"
PYTHON
