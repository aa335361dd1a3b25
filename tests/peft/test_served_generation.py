"""A batch that is generated with an adapter for each row is what each adapter generates alone."""

import jax
import numpy as np
import pytest
from flax import nnx

import surm
from surm import PeftSpec
from surm.models import decoder
from surm.models.generation import generate
from surm.models.sampling import Sampling
from surm.peft.together.serving import Served
from tests.peft.randomize import randomize

TINY = decoder.DecoderConfig(61, 16, 1, 4, 2, 4, 24, positions=40, tied=True)
PROMPTS = [[5, 9, 31], [7], [*range(18)], [60, 0], [5, 9, 31]]
LAYERS = (r"blocks\..*\.(query|key|value|output|gate|up|down)",)
IDS = np.array([2, 0, 1, 2, 0])
FAMILIES = ("circulant", "toeplitz", "kronecker", "low_displacement_rank", "low_rank")


@pytest.fixture(scope="module")
def base() -> decoder.Decoder:
    made = decoder.Decoder(TINY, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(made)
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf * (20 if leaf.ndim > 1 else 1), state))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_is_generated_as_by_its_adapter_alone(base, family):
    fresh = surm.attach(base, PeftSpec(family=family, targets=LAYERS, train=()), nnx.Rngs(3))
    models = [randomize(fresh, seed, 0.3) for seed in range(3)]
    settings = {"max_new_tokens": 8, "sampling": Sampling(temperature=0.7), "seed": 5}
    alone = [generate(model, PROMPTS, **settings) for model in models]
    expected = [alone[index][row] for row, index in enumerate(IDS)]
    assert alone[0] != alone[1] != alone[2]
    served = Served(models[1], surm.stack_adapters(models), IDS)
    assert generate(served, PROMPTS, **settings) == expected
