"""The same training step with HF PEFT on PyTorch (eager), on the GPU where there is one that PyTorch can use."""

from collections.abc import Callable

import peft
import torch
import transformers

from experiments.speed.ours import FLOORS, LENGTH, SHAPES, Setting, Step
from surm.models import bert, bert_files

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cuda.matmul.allow_tf32 = True  # as JAX does by default

TARGETS = dict.fromkeys(SHAPES, ["query", "value"]) | {"vit_b16": ["q_proj", "v_proj"]}
"""Query and value, as transformers 5 names them."""

METHODS: dict[str, Callable[[int, list[str]], peft.PeftConfig]] = {
    "LoRA r=8": lambda n, targets: peft.LoraConfig(r=8, lora_alpha=8, target_modules=targets),
    "C3A": lambda n, targets: peft.C3AConfig(block_size=n, target_modules=targets),
    "LoKr": lambda n, targets: peft.LoKrConfig(r=8, alpha=8, target_modules=targets),
    "FourierFT": lambda n, targets: peft.FourierFTConfig(n_frequency=1000, target_modules=targets),
}
"""Configurations by name, from the width and the targets."""


def step(setting: Setting, method: str) -> Step:
    """Builds the step of a method or floor: forward, backward, AdamW on the trained parameters."""
    torch.manual_seed(0)
    model, inputs = _model(setting)
    model.requires_grad_(False)
    model.to(DEVICE, getattr(torch, setting.dtype))
    if method in METHODS:
        chosen = METHODS[method](model.config.hidden_size, TARGETS[setting.shape])
        model = peft.get_peft_model(model, chosen)  # what trains is float32
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for parameter in model.classifier.parameters():
        parameter.requires_grad_(True)
    if method == "floor":
        # The embeddings' output asks for a gradient: it flows through every block, as at our floor.
        model.get_input_embeddings().register_forward_hook(lambda module, given, out: out.requires_grad_(True))
    elif method in FLOORS:
        for name, parameter in model.named_parameters():
            if ".0." in name and name.endswith(tuple(f"{target}.bias" for target in TARGETS[setting.shape])):
                parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    labels = torch.arange(setting.batch, device=DEVICE) % 2
    model.train(False)  # no dropout, as in ours; gradients flow all the same

    def run() -> None:
        optimiser.zero_grad()
        with torch.autocast(DEVICE, getattr(torch, setting.dtype), enabled=setting.dtype != "float32"):
            logits = model(**inputs).logits
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        optimiser.step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return Step(run, {"trained_parameters": trained})


def used_bytes() -> int:
    """The GPU's memory that PyTorch uses now; 0 without a GPU."""
    return torch.cuda.memory_allocated() if DEVICE == "cuda" else 0


def forget_peak() -> None:
    """Counts the GPU's peak memory anew."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int | None:
    """The GPU's peak memory since; None without a GPU."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None


def versions() -> dict[str, str]:
    """What the peers were measured with."""
    packages = {package.__name__: package.__version__ for package in (torch, peft, transformers)}
    return packages | {"device": DEVICE, "threads": str(torch.get_num_threads())}


def _model(setting: Setting) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    if setting.shape == "vit_b16":
        images = torch.randn(setting.batch, 3, 224, 224, device=DEVICE, dtype=getattr(torch, setting.dtype))
        return transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=2)), {"pixel_values": images}
    tokens = torch.randint(1000, 30000, (setting.batch, LENGTH), device=DEVICE)
    sizes = bert_files.ARCHITECTURE.to_hf(bert.preset(setting.shape))
    model = transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=2, **sizes))
    return model, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
