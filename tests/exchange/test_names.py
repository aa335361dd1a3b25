"""Names by the tables of surm.models the other way round."""

import re

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from surm import InputError
from surm.exchange import names
from surm.models.convert import convert
from surm.models.tables import HF_BERT, HF_VIT
from tests.exchange.models import BASES, base, reshaped
from tests.models.naming import renamed

KINDS = ("vit", "bert", "roberta")


@pytest.mark.parametrize("table", [HF_VIT, HF_BERT], ids=lambda table: table.name)
def test_every_rule_can_be_read_backwards(table):
    for rule in table.rules:
        path = rule.path.replace(r"\1", "17")
        key = rule.key(path)
        assert re.fullmatch(rule.pattern, key).expand(rule.path) == path
        assert rule.key("nothing.of.the.kind") is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_old_names_are_those_in_files_of_weights(kind):
    naming = names.naming_of(base(kind), "transformers4")
    held = {key for key in load_file(BASES / kind / "model.safetensors") if kind != "roberta" or "pooler" not in key}
    assert {naming.theirs(path) for path in names.parameters(base(kind))} == held


def test_the_new_names_are_those_of_transformers_5s_modules():
    old, new = (names.naming_of(base("vit"), version) for version in ("transformers4", "transformers5"))
    for path in names.parameters(base("vit")):
        assert new.theirs(path) == renamed(old.theirs(path), "new")


@pytest.mark.parametrize("version", ["transformers4", "transformers5"])
@pytest.mark.parametrize("kind", KINDS)
def test_names_and_arrays_come_back(kind, version):
    naming, ours = names.naming_of(base(kind), version), names.parameters(base(kind))
    theirs = {naming.theirs(path): names.their_array(base(kind), path, array) for path, array in ours.items()}
    assert len(theirs) == len(ours)
    for path in ours:
        for key in (naming.theirs(path), naming.theirs(path).removeprefix(naming.prefix)):
            assert names.read_name(kind, key)[0] == path
    found = convert(theirs)
    assert found.keys() == ours.keys()
    for path, array in ours.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("vit", "bert.encoder.layer.0.attention.self.query.weight"),
        ("bert", "roberta.encoder.layer.0.attention.self.query.weight"),
        ("bert", "classifier.out_proj.weight"),
        ("roberta", "bert.encoder.layer.0.attention.self.query.weight"),
        ("roberta", "classifier.weight"),
        ("roberta", "roberta.pooler.dense.weight"),
        ("vit", "model.layers.0.self_attn.q_proj.weight"),
    ],
)
def test_names_of_other_architectures_are_not_read(kind, key):
    assert names.read_name(kind, key) is None


@pytest.mark.parametrize(
    ("base_kind", "kind", "first"),
    [
        ("bert", "ernie", "ernie"),
        ("bert", "electra", "electra"),
        ("roberta", "camembert", "roberta"),
        ("roberta", "xlm-roberta", "roberta"),
        ("roberta", "data2vec-text", "data2vec_text"),
    ],
)
def test_kinds_by_another_name_have_their_own_first_word(base_kind, kind, first):
    model = reshaped(base_kind, kind=kind)
    for version in ("transformers4", "transformers5"):
        key = names.naming_of(model, version).theirs("blocks.0.attention.query.kernel")
        assert key == f"{first}.encoder.layer.0.attention.self.query.weight"
        assert names.read_name(kind, key)[0] == "blocks.0.attention.query.kernel"


def test_models_that_transformers_lacks_are_refused():
    with pytest.raises(InputError, match="given CLIP's vision tower; .* for ViT, BERT and RoBERTa"):
        names.kind_of(reshaped("vit", embedding_norm=True, patch_bias=False))
    with pytest.raises(InputError, match="given a Linear; "):
        names.kind_of(nnx.eval_shape(lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0))))
    with pytest.raises(InputError, match="names='transformers3'; nearest: transformers"):
        names.naming_of(base("vit"), "transformers3")
    with pytest.raises(InputError, match="embed.norm.scale has no counterpart"):
        names.naming_of(base("vit"), "transformers5").theirs("embed.norm.scale")
