"""PEFT's AdaLoRA; test_golden_adapters.py and tests/parity say that PEFT agrees."""

import json

import numpy as np
import pytest
from flax import nnx

import surm
from surm import InputError
from surm.exchange import adalora, export_peft, import_peft
from surm.peft import surgery
from surm.peft.schedules import rank_budget
from tests.exchange.models import adapted, answer, base, change, one_line, put, tensors
from tests.exchange.test_peft_import import copied

QV = r".*\.(query|value)"
QUERY = "base_model.model.bert.encoder.layer.1.attention.self.query."


def written(folder, **spec):
    model = adapted("vit", **{"family": "adalora", "targets": QV} | spec)
    export_peft(folder, model)
    return model, json.loads((folder / "adapter_config.json").read_text()), tensors(folder)


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        (
            {"options": "rank=2", "scale": 2.0},
            {"init_r": 3, "target_r": 2, "lora_alpha": 6.00002, "rank_pattern": None},
        ),
        ({"options": "rank=1,initial_rank=4", "scale": 0.0}, {"init_r": 4, "target_r": 1, "lora_alpha": 4}),
        ({"scale": -1.5, "dropout": 0.1}, {"init_r": 12, "target_r": 8, "lora_alpha": 12, "lora_dropout": 0.1}),
    ],
)
def test_it_comes_back_with_its_answers(spec, fields, tmp_path):
    model, config, held = written(tmp_path, **spec)
    assert {name: config[name] for name in fields} == pytest.approx(fields)
    assert (config["peft_type"], config["total_step"]) == ("ADALORA", 1)
    assert held["base_model.model.vit.layers.0.attention.q_proj.lora_E"].shape == (fields["init_r"], 1)
    again = import_peft(tmp_path, base("vit"))
    np.testing.assert_allclose(answer(again), answer(model), rtol=1e-5, atol=1e-6)
    assert dict(surgery.spec_of(again).options) == {"rank": fields["target_r"], "initial_rank": fields["init_r"]}


def test_what_is_held_is_written_bit_for_bit(tmp_path):
    model, _, held = written(tmp_path, options="rank=2", scale=0.7)
    gates = model.blocks[0].attention.query.delta.parameters["e"][...]
    np.testing.assert_array_equal(held["base_model.model.vit.layers.0.attention.q_proj.lora_E"][:, 0], gates)


def test_layers_of_other_ranks_and_scales(tmp_path):
    rules = r".*value => rank=1, initial_rank=2, scale=-3"
    model, config, _ = written(tmp_path, options="rank=2,initial_rank=4", rules=rules)
    place = "vit.layers.0.attention.v_proj.lora_E"
    assert config["rank_pattern"][place] == [True, True, False, False] and len(config["rank_pattern"]) == 4
    np.testing.assert_allclose(answer(import_peft(tmp_path, base("vit"))), answer(model), rtol=1e-4, atol=1e-5)


def test_layers_that_lost_components_keep_the_scale_of_all(tmp_path):
    """The golden adapter has 4 components a layer at first; alpha is 3."""
    model = import_peft(copied("transformers5/bert_adalora", tmp_path), base("bert"))
    layers = surgery.layers_by_path(model)
    ranks = {path: len(layer.delta.parameters["e"][...]) for path, layer in layers.items()}
    assert ranks["blocks.0.mlp.up"] == 1 and ranks["blocks.1.attention.query"] == 2
    assert "blocks.1.attention.output" not in ranks, "a layer without components has no update"
    assert {layer.scale for layer in layers.values()} == {3 / (4 + 1e-5)}
    assert {gated.target for budget in rank_budget.budgets_of(model, 9) for gated in budget.gated} == {1, 2}


def test_what_trains_on_goes_down_to_the_target(tmp_path):
    written(tmp_path, options="rank=2")
    (budget,) = rank_budget.budgets_of(import_peft(tmp_path, base("vit"), nnx.Rngs(0)), 100)
    assert (int(budget.kept(0)), int(budget.kept(100))) == (12, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init_r": "4"}, "init_r='4' in the adapter's config, expected a finite number"),
        ({"init_r": 0}, "init_r=0 in the adapter's config, expected a whole number of at least 1"),
        ({"init_r": 3, "rank_pattern": None}, "of shapes .*, but its config says rank 3"),
        ({"lora_alpha": float("inf")}, "lora_alpha=inf"),
        ({"rank_pattern": [True]}, r"rank_pattern=\[True\] in the adapter's config, expected lists of true and false"),
        ({"rank_pattern": {"a.lora_E": [1, 0]}}, "expected lists of true and false"),
        ({"use_dora": True}, "says use_dora=True; supported: False, None"),
        ({"layer_replication": [[0, 1]]}, "says layer_replication=.*, which is not supported"),
    ],
)
def test_configs_that_do_not_fit_are_refused(fields, message, tmp_path):
    folder = copied("transformers5/bert_adalora", tmp_path)
    change(folder, **fields)
    with pytest.raises(InputError, match=message) as error:
        import_peft(folder, base("bert"))
    one_line(error)


@pytest.mark.parametrize("fields", [{"r": 99}, {"use_rslora": True}, {"alpha_pattern": {"query": 99}}, {"tinit": 7}])
def test_fields_of_lora_that_peft_does_not_read_there_change_nothing(fields, tmp_path):
    folder = copied("transformers5/bert_adalora", tmp_path)
    expected = answer(import_peft(folder, base("bert")))
    change(folder, **fields)
    np.testing.assert_array_equal(answer(import_peft(folder, base("bert"))), expected)


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    folder = copied("transformers5/bert_adalora", tmp_path)
    held = tensors(folder)
    for array, message in ((np.ones((3, 1)), "has AdaLoRA tensors of shapes"), (np.ones(1), "lora_E has shape")):
        put(folder, held | {QUERY + "lora_E": array})
        with pytest.raises(InputError, match=message):
            import_peft(folder, base("bert"))
    put(folder, {key: array for key, array in held.items() if key != QUERY + "lora_E"})
    with pytest.raises(InputError, match="has the tensors lora_A, lora_B; supported: lora_A, lora_B, lora_E"):
        import_peft(folder, base("bert"))
    put(folder, held | {QUERY + "ranknum": np.ones(1)})  # which PEFT passes over too
    import_peft(folder, base("bert"))


def test_an_adapter_that_lost_everything_is_refused(tmp_path):
    folder = copied("transformers5/bert_adalora", tmp_path)
    axes = {"lora_A": 0, "lora_B": 1, "lora_E": 0}
    empty = {key: array if (axis := axes.get(key[-6:])) is None else np.take(array, (), axis)
             for key, array in tensors(folder).items()}  # fmt: skip
    put(folder, empty)
    pattern = {key.removeprefix("base_model.model."): [False] * 4 for key in empty if key.endswith("lora_E")}
    change(folder, rank_pattern=pattern)
    with pytest.raises(InputError, match="every layer of the adapter has lost all of its components"):
        import_peft(folder, base("bert"))


def test_a_magnitude_is_refused(tmp_path):
    with pytest.raises(InputError, match="q_proj has magnitude=True, which PEFT has for .*, not for AdaLoRA"):
        written(tmp_path / "none", magnitude=True)
    assert not (tmp_path / "none").exists()


def test_alpha_is_whole_where_rounding_alone_parts_it_from_that():
    assert adalora._alpha(3 / (4 + 1e-5), 4) == 3 and isinstance(adalora._alpha(3 / (4 + 1e-5), 4), int)
    assert surm.PeftSpec(family="adalora").scale == 1.0 and adalora._alpha(1.0, 12) == 12.00001
