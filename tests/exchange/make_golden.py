"""Writes tests/exchange/golden: adapters as PEFT saves them on the models of tests/models/golden, and their logits.

    python -m tests.exchange.make_golden

Needs torch, transformers and peft, and writes the folder of the installed version of transformers. The committed ones
are of transformers 4.57.1 with peft 0.17.1 and of transformers 5.23.0 with peft 0.21.2: the versions name the layers of
a ViT differently, and answer the same to the last bit (biases and AdaLoRA are of the latter alone).
test_golden_adapters.py then needs none of them.
"""

import pathlib

import peft
import torch
import transformers
from safetensors.numpy import save_file

BASES = pathlib.Path(__file__).parent.parent / "models" / "golden"
GOLDEN = pathlib.Path(__file__).parent / "golden"
VERSION = f"transformers{transformers.__version__.split('.')[0]}"
NEW = VERSION == "transformers5"
VIT_QV = ["q_proj", "v_proj"] if NEW else ["query", "value"]
UP = "layers.1.mlp.fc1" if NEW else "layer.1.intermediate.dense"


def cases() -> dict[str, tuple[str, peft.PeftConfig]]:
    """Every adapter with the name of its base."""
    head = {"modules_to_save": ["classifier"]}
    lora = peft.LoraConfig(r=2, lora_alpha=6, target_modules=VIT_QV + [UP], rank_pattern={UP: 3},
                           alpha_pattern={f"0.*{VIT_QV[1]}": 1}, **head)  # fmt: skip
    rslora = peft.LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=4, use_rslora=True, target_modules=["query", "key"])
    dora = peft.LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=VIT_QV, **head)
    adalora = peft.AdaLoraConfig(
        task_type="SEQ_CLS", init_r=4, target_r=1, lora_alpha=3, tinit=1, tfinal=1, total_step=4, bias="lora_only",
        target_modules=["query", "dense"],
    )  # fmt: skip
    return {
        "vit_dora": ("vit", dora),
        "vit_lora": ("vit", lora),
        "vit_biases": ("vit", peft.LoraConfig(r=2, bias="all", target_modules=VIT_QV, **head)),
        "bert_adalora": ("bert", adalora),
        "vit_c3a": ("vit", peft.C3AConfig(block_size=8, target_modules=VIT_QV, **head)),
        "vit_lokr": ("vit", peft.LoKrConfig(r=2, alpha=3, target_modules=VIT_QV, **head)),
        "bert_lora": ("bert", rslora),
        "roberta_lora": ("roberta", peft.LoraConfig(r=1, target_modules=r".*\.0\..*(query|dense)", **head)),
    }


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Gives everything that trains other values."""
    generator, of_gradients = (torch.Generator().manual_seed(seed) for seed in (3, 5))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = 0.4 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(1 + noise if name.endswith("magnitude_vector.default.weight") else noise)
                parameter.grad = torch.randn(parameter.shape, generator=of_gradients)
    config = model.peft_config["default"]
    for step in range(config.total_step) if isinstance(config, peft.AdaLoraConfig) else ():
        model.base_model.update_and_allocate(step)  # the last of them leaves components out
    return model.eval()


def inputs(kind: str, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Three images, or three texts."""
    generator = torch.Generator().manual_seed(4)
    if kind == "vit":
        size = model.config.image_size
        return {"pixel_values": torch.randn((3, 3, size, size), generator=generator)}
    return {"input_ids": torch.randint(5, model.config.vocab_size, (3, 7), generator=generator)}


def main() -> None:
    """Writes all adapters, what they were given, and what they answered."""
    computed = {}
    for name, (kind, config) in cases().items():
        classifies = "ForImageClassification" if kind == "vit" else "ForSequenceClassification"
        base = getattr(transformers, f"AutoModel{classifies}").from_pretrained(BASES / kind)
        model = randomise(peft.get_peft_model(base, config))
        given = inputs(kind, base)
        computed |= {f"{kind}.{key}": tensor.numpy() for key, tensor in given.items()}
        computed[f"{name}.logits"] = model(**given).logits.detach().numpy()
        model.peft_config["default"].base_model_name_or_path = kind  # rather than a path of this machine
        model.save_pretrained(GOLDEN / VERSION / name)
        (GOLDEN / VERSION / name / "README.md").unlink(missing_ok=True)
    save_file(computed, GOLDEN / "computed.safetensors")


if __name__ == "__main__":
    main()
