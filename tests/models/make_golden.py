"""Writes tests/models/golden: tiny random models as transformers saves them, and what they compute.

    python -m tests.models.make_golden

Needs torch and transformers; test_golden.py then needs neither. Run again only to change the sizes: another
version of torch may draw other weights.
"""

import pathlib

from safetensors.numpy import save_file

from tests.parity import torch_models

GOLDEN = pathlib.Path(__file__).parent / "golden"
SIZES = {"width": 16, "depth": 2, "heads": 2, "image": 16, "patch": 8}


TEXT_SIZES = {"width": 16, "depth": 2, "heads": 2, "positions": 12}
SMALLEST = {"width": 8, "depth": 1, "heads": 2}


def main() -> None:
    """Writes all models."""
    for name, model in (("vit", torch_models.vit(**SIZES)), ("clip", torch_models.clip_vision(**SIZES))):
        folder = GOLDEN / name
        model.save_pretrained(folder)
        save_file(torch_models.reference(model), folder / "computed.safetensors")
    dinov2 = torch_models.dinov2(**SMALLEST, image=8, patch=4, registers=2, use_swiglu_ffn=True, mlp_ratio=1)
    dinov2.save_pretrained(GOLDEN / "dinov2")
    save_file(torch_models.reference(dinov2, batch=1, size=12), GOLDEN / "dinov2" / "computed.safetensors")
    distilbert = torch_models.distilbert(**SMALLEST, positions=12)
    bert, roberta = torch_models.bert(**TEXT_SIZES), torch_models.roberta(**TEXT_SIZES)
    for name, model in (("bert", bert), ("roberta", roberta), ("distilbert", distilbert)):
        folder = GOLDEN / name
        model.save_pretrained(folder)
        inputs = torch_models.texts(model)
        save_file(inputs | torch_models.text_reference(model, inputs), folder / "computed.safetensors")


if __name__ == "__main__":
    main()
