"""Every family on all maps of a decoder with grouped heads, whose matrices have five different shapes."""

import jax
import numpy as np
import pytest
from flax import nnx

import surm
from surm import PeftSpec, matrices
from surm.models import scanned
from surm.models.decoder import Decoder, DecoderConfig
from surm.peft import surgery
from tests.peft.answer import answer
from tests.peft.randomize import randomize

TINY = DecoderConfig(31, 12, 2, 4, 2, 4, 20, tied=True)
QUICK = ("lorta",)  # which shares arrays between layers of some of these shapes


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in matrices.FAMILIES]
)
def test_a_family_on_all_maps(tmp_path, family):
    tokens, base = jax.random.randint(jax.random.key(0), (2, 7), 1, 31), Decoder(TINY, rngs=nnx.Rngs(0))
    fresh = surm.attach(base, PeftSpec(family=family, scale=0.5), nnx.Rngs(1))
    assert len(surgery.structured_matrices(fresh)) == 7 * TINY.depth
    before = answer(base, tokens)
    np.testing.assert_array_equal(answer(fresh, tokens), before)
    model = randomize(fresh, deviation=0.5)
    logits, close = answer(model, tokens), {"rtol": 1e-4, "atol": 1e-4 * float(np.abs(before).max())}
    assert np.abs(logits - before).max() > 1e-4
    merged = surm.merge(model)
    np.testing.assert_allclose(answer(merged, tokens), logits, **close)
    surm.save_adapter(tmp_path / "adapter", model)
    for again in (surm.unmerge(merged), surm.load_adapter(tmp_path / "adapter", base)):
        pairs = zip(jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(again)), strict=True)
        assert all(np.array_equal(one, other) for one, other in pairs)
    _, trained, frozen = surgery.split(model)
    model.scan()
    graphdef, stacks = surgery.split(model)[0], scanned.stacked(model.runs, frozen)
    in_scan = jax.jit(lambda trained, stacks: surgery.join(graphdef, trained, stacks)(tokens))
    np.testing.assert_allclose(in_scan(trained, stacks), logits, **close)
