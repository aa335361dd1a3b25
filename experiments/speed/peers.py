"""The same training step with HF PEFT on PyTorch."""

from collections.abc import Callable

import peft
import torch
import transformers

METHODS: dict[str, Callable[[int, list[str]], peft.PeftConfig]] = {
    "LoRA r=8": lambda n, targets: peft.LoraConfig(r=8, lora_alpha=8, target_modules=targets),
    "C3A": lambda n, targets: peft.C3AConfig(block_size=n, target_modules=targets),
    "LoKr": lambda n, targets: peft.LoKrConfig(r=8, alpha=8, target_modules=targets),
    "FourierFT": lambda n, targets: peft.FourierFTConfig(n_frequency=1000, target_modules=targets),
}
"""By name: from the width and the targets to the configuration."""


def step(shape: str, batch: int, length: int, method: str | None) -> tuple[Callable[[], None], int]:
    """Builds the step: forward, backward, AdamW on what trains.

    Args:
      shape: `bert_base`, or `vit_b16` at 224 pixels.
      batch: examples.
      length: tokens of a text; unread for images.
      method: a key of `METHODS`; None for the floor, where the head trains and the gradient flows to the first layer.

    Returns:
      What takes one step, and the number of trained parameters without the head's.
    """
    torch.manual_seed(0)
    model, inputs = _model(shape, batch, length)
    model.requires_grad_(False)
    if method is not None:
        model = peft.get_peft_model(model, METHODS[method](768, ["query", "value"]))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for parameter in model.classifier.parameters():
        parameter.requires_grad_(True)
    if method is None:
        # The embeddings' output asks for a gradient: it flows through every block, as it does below an adapter.
        model.get_input_embeddings().register_forward_hook(lambda module, given, out: out.requires_grad_(True))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    labels = torch.arange(batch) % 2
    model.train(False)  # no dropout, as in ours; gradients flow all the same

    def run() -> None:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(**inputs).logits, labels).backward()
        optimiser.step()

    return run, trained


def _model(shape: str, batch: int, length: int) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    if shape == "vit_b16":
        config = transformers.ViTConfig(num_labels=2)
        return transformers.ViTForImageClassification(config), {"pixel_values": torch.randn(batch, 3, 224, 224)}
    tokens = torch.randint(1000, 30000, (batch, length))
    config = transformers.BertConfig(num_labels=2)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return transformers.BertForSequenceClassification(config), inputs
