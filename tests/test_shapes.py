"""In tests every function of surm refuses arguments and results of a shape or type that its signature does not have."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from surm import sweeps
from surm.data import pictures, sources, tokens
from surm.data.splits import ArraySplit
from surm.machine import mesh
from surm.matrices import circulant
from surm.models.normalization import layer_norm
from surm.ops import matmul
from surm.peft import layers
from surm.report import lines
from surm.rundir import names
from surm.tasks import balance
from surm.training import loko, optim


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: pictures.prepared(np.zeros((4, 4), np.uint8), pictures.Square(2)),
        lambda: pictures.cropped(np.zeros((4, 4), np.uint8), 2, 2),
        lambda: ArraySplit(np.zeros((3, 4, 4, 3), np.uint8), np.zeros(2, np.int32)),
        lambda: tokens.by_length(np.zeros((2, 3), np.int32)),
        lambda: matmul.matmul(jnp.zeros((2, 3)), jnp.zeros((4, 5))),
        lambda: balance.told(np.ones((2, 2)), sources.digits()),
        lambda: circulant.matvec({"a": jnp.zeros(4), "b": jnp.zeros(4)}, jnp.zeros(4), "4"),
        lambda: layer_norm(jnp.zeros((2, 3)), jnp.zeros((3, 1)), jnp.zeros(3), 1e-6),
        lambda: layers.reseed_dropout(None, 0),
        lambda: sweeps.product(seed=3),
        lambda: loko.kalman({}).update({}, None, {}, residuals=jnp.zeros(3), jacobians={}, examples=1),
        lambda: optim.average({}, {}, "0.9", 1),
        lambda: mesh.over_data(None),
        lambda: names.name([1]),
        lambda: lines.summary([], "runs"),
    ],
    ids=[
        "picture",
        "crop",
        "split",
        "lengths",
        "product",
        "weights",
        "matvec",
        "norm",
        "dropout",
        "sweep",
        "filter",
        "optim",
        "machine",
        "rundir",
        "report",
    ],
)
def test_shapes_and_types_are_checked(wrong):
    with pytest.raises(TypeCheckError):
        wrong()
