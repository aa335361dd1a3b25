"""PEFT on transformers loads what we export and answers as we do, and the other way round; merged models likewise."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx

import surm
from surm.exchange import export_merged, export_peft, import_peft, lokr, peft_files, to_low_rank
from surm.exchange.updates import check_fields
from surm.models import bert, vit
from surm.models.convert import restore
from surm.models.hf_config import config_from_hf
from surm.models.weights import open_weights
from tests.exchange.models import noisy
from tests.parity import torch_models

TOLERANCE = 1e-4  # of the largest logit
QV = r".*\.(query|value)"
SIZES = {"width": 16, "depth": 2, "heads": 2}
OUTPUTS = {"vit": 7, "bert": 5, "roberta": 5}


class Pair:
    """The same base as transformers has it and as we have it, with an input."""

    def __init__(self, kind, folder):
        self.kind, self.folder = kind, folder
        model = getattr(torch_models, kind)(**SIZES, **({"image": 16} if kind == "vit" else {}))
        model.save_pretrained(folder)
        weights = open_weights(str(folder))
        build, shape = vit.ViT if kind == "vit" else bert.Bert, config_from_hf(weights.config)
        empty = nnx.eval_shape(lambda: build(shape, OUTPUTS[kind], rngs=nnx.Rngs(0)))
        self.ours = restore(empty, weights, head=True)
        if kind == "vit":
            pixels = torch.randn((3, 3, 16, 16), generator=torch.Generator().manual_seed(2))
            self.given = {"pixel_values": pixels}
            self.inputs = {"images": jnp.asarray(pixels.permute(0, 2, 3, 1).numpy())}
        else:
            self.inputs = {name: jnp.asarray(array) for name, array in torch_models.texts(model).items()}
            named = {"input_ids": "tokens", "token_type_ids": "segments", "attention_mask": "mask"}
            self.given = {theirs: torch.tensor(np.asarray(self.inputs[ours])).long() for theirs, ours in named.items()}
        self.before = self.answer(self.ours)

    def fresh(self):
        """The base in transformers; PEFT changes it in place."""
        auto = "AutoModelForImageClassification" if self.kind == "vit" else "AutoModelForSequenceClassification"
        return getattr(transformers, auto).from_pretrained(self.folder).eval()

    def theirs(self, model) -> np.ndarray:
        """The logits of a model of transformers or PEFT."""
        with torch.no_grad():
            return model.eval()(**self.given).logits.numpy()

    def answer(self, model) -> np.ndarray:
        """The logits of a model of ours."""
        graph, state = nnx.split(model)
        return np.asarray(jax.jit(lambda state, inputs: nnx.merge(graph, state)(**inputs))(state, self.inputs))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return {kind: Pair(kind, tmp_path_factory.mktemp(kind)) for kind in OUTPUTS}


def each(cases) -> list[tuple[str, str]]:
    """Every case on a ViT and a BERT, the first two on a RoBERTa, which differs in its head alone."""
    return [(kind, case) for kind in OUTPUTS for case in list(cases)[: 2 if kind == "roberta" else None]]


def check(one: np.ndarray, other: np.ndarray, base: np.ndarray) -> None:
    """Two answers are the same, and not those of the base."""
    largest = np.abs(other).max()
    assert np.abs(one - other).max() < TOLERANCE * largest
    assert np.abs(one - base).max() > 0.05 * largest


OURS = {
    "low_rank": {"options": "rank=3", "scale": 2.0},
    "low_rank dora": {"options": "rank=3", "scale": 0.5, "magnitude": True},
    "low_rank ruled": {"options": "rank=3", "rules": r".*\.0\.attention\.value => rank=1, scale=4; .*\.up => rank=2"},
    "c3a": {"options": "block_size=4", "scale": 3.0},
    "c3a mixed": {"rules": ".*value => family=circulant; .*0.*down => family=block_circulant, scale=0.3"},
    "block_circulant": {"options": "block_size=8", "scale": 0.5},
    "block_circulant everywhere": {"targets": (QV, r".*\.mlp\.(up|down)", r".*\.0\.attention\.output")},
    "circulant": {"scale": 0.3},
    "kronecker": {"options": "rank=4", "scale": 1.5},
    "kronecker ruled": {"options": "rank=4", "rules": r".*\.0\.attention\.value => scale=3"},
    "kronecker oblong": {"options": "rank=4", "targets": r".*\.mlp\.down"},
}
MORE = {
    "low_rank all biases": {"options": "rank=3", "train": ("head", r".*\.bias")},
    "low_rank own biases": {"options": "rank=3", "train": ("head", QV + r"\.bias", r".*\.1\.norm1")},
    "low_rank all biases, one norm": {"options": "rank=3", "train": ("head", r".*\.bias", r".*\.1\.norm1")},
    "c3a own biases": {"options": "block_size=4", "train": ("head", QV + r"\.bias")},
    "adalora": {"options": "rank=2,initial_rank=3", "scale": 2.0},
    "adalora uneven": {"options": "rank=2,initial_rank=5", "rules": ".*value => rank=1, initial_rank=2, scale=-3"},
    "adalora all biases": {"options": "rank=2", "train": ("head", r".*\.bias")},
}  # on every kind of model


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")  # AdaLoRA's, which PEFT follows
@pytest.mark.parametrize(("kind", "case"), [*each(OURS), *((kind, case) for kind in OUTPUTS for case in MORE)])
def test_peft_answers_as_we_do(kind, case, pairs, tmp_path):
    pair = pairs[kind]
    spec = {"family": case.split()[0], "targets": QV, "train": ("head", r".*\.1\.norm1")} | (OURS | MORE)[case]
    model = noisy(surm.attach(pair.ours, surm.PeftSpec(**spec), nnx.Rngs(1)))
    export_peft(tmp_path, model)
    loaded = peft.PeftModel.from_pretrained(pair.fresh(), tmp_path)
    check(pair.answer(model), pair.theirs(loaded), pair.before)
    again = import_peft(tmp_path, pair.ours)
    check(pair.answer(again), pair.theirs(loaded), pair.before)


def theirs(pair) -> dict[str, peft.PeftConfig]:
    """Adapters as people make them in PEFT."""
    query, value, up, down = {
        "vit": ("q_proj", "v_proj", "fc1", "fc2"),
        "bert": ("query", "value", "intermediate.dense", "0.output.dense"),
        "roberta": ("query", "value", "intermediate.dense", "0.output.dense"),
    }[pair.kind]
    head = {"modules_to_save": ["classifier"]}
    sequences = {} if pair.kind == "vit" else {"task_type": "SEQ_CLS"}
    return {
        "lora": peft.LoraConfig(r=2, lora_alpha=8, target_modules=[query, value], lora_dropout=0.1, **sequences),
        "lora uneven": peft.LoraConfig(
            r=2, lora_alpha=4, target_modules=[query, value, up], rank_pattern={up: 5, r".*\.1\..*" + query: 1},
            alpha_pattern={value: 1}, use_rslora=True, **head,
        ),
        "lora chosen": peft.LoraConfig(
            r=1, target_modules=[query, value, down], layers_to_transform=[1], exclude_modules=[value],
            init_lora_weights="gaussian",
        ),
        "lora by pattern": peft.LoraConfig(r=1, target_modules=rf".*\.0\..*({query}|{value})", **head),
        "dora": peft.LoraConfig(r=2, use_dora=True, use_rslora=True, target_modules=[query, value], **head),
        "c3a": peft.C3AConfig(block_size=4, target_modules=[query, value], **head, **sequences),
        "c3a everywhere": peft.C3AConfig(block_size=16, target_modules=[query, up], **head),
        "lokr": peft.LoKrConfig(r=6, alpha=3, target_modules=[query, value], **head, **sequences),
        "lokr of factors": peft.LoKrConfig(
            r=1, alpha=2, decompose_both=True, target_modules=[query], rank_pattern={r".*\.0\..*" + query: 6}, **head
        ),
        "lora, all biases": peft.LoraConfig(r=2, target_modules=[query, value], bias="all", **head),
        "lora, own biases": peft.LoraConfig(r=2, target_modules=[query, up], bias="lora_only", **head, **sequences),
        "lora, biases without a head": peft.LoraConfig(r=2, target_modules=[query], bias="all"),
        "lora by rows": peft.LoraConfig(r=2, target_modules=[query], fan_in_fan_out=True, **head),
        "c3a, own biases": peft.C3AConfig(block_size=4, target_modules=[query, value], bias="c3a_only", **head),
        "adalora": peft.AdaLoraConfig(init_r=3, target_r=2, lora_alpha=5, total_step=9, target_modules=[query, value],
                                      lora_dropout=0.1, **head, **sequences),
        "adalora pruned": peft.AdaLoraConfig(init_r=6, target_r=1, tinit=1, tfinal=1, total_step=5, **head,
                                             target_modules=[query, value, up], bias="lora_only"),
    }  # fmt: skip


THEIRS = ("lora uneven", "lora", "lora chosen", "lora by pattern", "dora", "c3a", "c3a everywhere", "lokr",
          "lokr of factors")  # fmt: skip
MORE_OF_THEIRS = ("lora, all biases", "lora, own biases", "lora, biases without a head", "lora by rows",
                  "c3a, own biases", "adalora", "adalora pruned")  # fmt: skip


def randomised(model: peft.PeftModel) -> peft.PeftModel:
    """With other values in all that trains; and without the components that AdaLoRA's schedule takes."""
    generator, of_slopes = torch.Generator().manual_seed(3), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = 0.5 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(parameter + noise if "magnitude" in name else noise)
                parameter.grad = torch.randn(parameter.shape, generator=of_slopes)
    config = model.peft_config["default"]
    if isinstance(config, peft.AdaLoraConfig) and config.tfinal:
        for step in range(config.total_step - config.tfinal + 1):
            model.base_model.update_and_allocate(step)
        assert len({sum(kept) for kept in config.rank_pattern.values()}) > 1
    return model


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True but the target module is")
@pytest.mark.filterwarnings("ignore:Adapter 'default'. . LoRA tensor.s. have invalid shape")  # all components pruned
@pytest.mark.parametrize(
    ("kind", "case"), [*each(THEIRS), *((kind, case) for kind in OUTPUTS for case in MORE_OF_THEIRS)]
)
def test_we_answer_as_peft_does(kind, case, pairs, tmp_path):
    pair = pairs[kind]
    model = randomised(peft.get_peft_model(pair.fresh(), theirs(pair)[case]))
    model.save_pretrained(tmp_path)
    check(pair.answer(import_peft(tmp_path, pair.ours)), pair.theirs(model), pair.before)


@pytest.mark.parametrize("names", ["transformers4", "transformers5"])
@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_which_names_load_is_as_the_docs_say(kind, names, pairs, tmp_path):
    model = noisy(surm.attach(pairs[kind].ours, surm.PeftSpec(family="low_rank", train="head"), nnx.Rngs(1)))
    export_peft(tmp_path, model, names=names)
    if kind == "vit" and names != f"transformers{transformers.__version__[0]}":
        with pytest.raises(ValueError, match="No modules were targeted for adaptation"):
            peft.PeftModel.from_pretrained(pairs[kind].fresh(), tmp_path)
    else:
        loaded = peft.PeftModel.from_pretrained(pairs[kind].fresh(), tmp_path)
        check(pairs[kind].answer(model), pairs[kind].theirs(loaded), pairs[kind].before)


@pytest.mark.parametrize("case", ["low_rank", "low_rank all biases", "c3a", "kronecker", "adalora", "low_rank dora"])
def test_what_load_adapter_takes_is_as_the_docs_say(case, pairs, tmp_path):
    spec = {"family": case.split()[0], "targets": QV, "train": "head"} | (OURS | MORE)[case]
    pair = pairs["vit"]
    model = noisy(surm.attach(pair.ours, surm.PeftSpec(**spec), nnx.Rngs(1)))
    export_peft(tmp_path, model)
    loaded = pair.fresh()
    loaded.load_adapter(str(tmp_path))
    if case == "low_rank dora":
        assert np.abs(pair.theirs(loaded) - pair.answer(model)).max() > 0.05 * np.abs(pair.answer(model)).max()
    else:
        check(pair.answer(model), pair.theirs(loaded), pair.before)


def test_a_stand_in_of_low_rank_is_a_lora(pairs, tmp_path):
    images = pairs["vit"]
    model = noisy(surm.attach(images.ours, surm.PeftSpec(family="toeplitz", train="head"), nnx.Rngs(1)))
    near, errors = to_low_rank(model, energy=0.9)
    assert 0.1 < max(errors.values()) < 0.32
    export_peft(tmp_path, near)
    loaded = peft.PeftModel.from_pretrained(images.fresh(), tmp_path)
    check(images.answer(near), images.theirs(loaded), images.before)


def test_an_encoder_alone_loads_on_a_bare_model(pairs, tmp_path):
    pair = pairs["bert"]
    model = noisy(surm.attach(pair.ours, surm.PeftSpec(family="low_rank", train="head"), nnx.Rngs(1)))
    export_peft(tmp_path, model, encoder_only=True)
    loaded = peft.PeftModel.from_pretrained(pair.fresh().bert, tmp_path).eval()
    expected = model.hidden_states(**pair.inputs)[-1] * pair.inputs["mask"][..., None]
    found = loaded(**pair.given).last_hidden_state.detach().numpy() * pair.inputs["mask"][..., None]
    assert np.abs(expected - found).max() < TOLERANCE * np.abs(found).max()


@pytest.mark.parametrize("family", ["toeplitz", None])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_merged_models_load_whole(kind, family, pairs, tmp_path):
    pair = pairs[kind]
    model = pair.ours
    if family:
        model = noisy(surm.attach(model, surm.PeftSpec(family=family, train="head"), nnx.Rngs(1)))
    export_merged(tmp_path, model, labels=[f"class {index}" for index in range(OUTPUTS[pair.kind])])
    auto = transformers.AutoModelForImageClassification
    if pair.kind != "vit":
        auto = transformers.AutoModelForSequenceClassification
    loaded, found = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(pair.fresh())
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]
    assert loaded.config.id2label[1] == "class 1"
    expected = pair.answer(model)
    assert np.abs(pair.theirs(loaded) - expected).max() < TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("peft_type", peft_files.TYPES)
def test_no_default_of_pefts_is_an_obstacle(peft_type):
    more = {"total_step": 1} if peft_type == "ADALORA" else {}
    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft_type](**more)
    fields = json.loads(json.dumps(config.to_dict(), default=str)) | {"peft_type": peft_type}
    kind = peft_files.TYPES[peft_type]
    check_fields("there", fields, kind.READS, kind.TRAINING, kind.ACCEPTS)
    ours = {**kind.READS, **dict.fromkeys(kind.TRAINING), **kind.ACCEPTS}
    old = {"merge_weights"}  # of PEFT before 0.3
    assert ours.keys() - old <= fields.keys(), "a name that PEFT does not have"
    assert {name: fields[name] for name in kind.READS} == dict(kind.READS)


def test_sides_are_split_as_peft_splits_them():
    from peft.tuners.lokr.layer import factorization

    for size in (1, 2, 7, 16, 32, 96, 144, 768, 3072):
        for factor in (-1, *range(1, 70), size):
            assert lokr.factorization(size, factor) == factorization(size, factor), (size, factor)
