"""The paper's image experiments: a frozen ViT-B/16 or CLIP-ViT, with query, key and value updated.

    python -m surm.train --config=configs/vit_cifar.py:dataset=cifar100,family=toeplitz --workdir=runs/cifar100

Arguments, all optional, separated by commas:
  dataset   cifar10 (default), cifar100, sun397, dtd, stl10: through TensorFlow Datasets
  family    circulant (default) or any other of surm.matrices.FAMILIES
  backbone  vit_b16 (default: ViT-B/16 pretrained on ImageNet-21k) or clip_b16 (CLIP's vision tower): from the hub

This command works offline, with the bundled backbone and a local .npz, and takes about two minutes on two CPU cores:

    python -m surm.train --config=configs/vit_cifar.py --workdir=runs/cifar \\
        --config.data.source=cifar10.npz --config.model.weights=asset:vit_micro

Expected number: 55.0 % of the test images classified correctly, offline, after training on 10,000 images.
experiments/vit_families/results has the results of all families.
"""

import ml_collections

from surm import config as configs
from surm import matrices

BACKBONES = {
    "vit_b16": "hf:google/vit-base-patch16-224-in21k",
    "clip_b16": "hf:openai/clip-vit-base-patch16",
}
DATASETS = ("cifar10", "cifar100", "sun397", "dtd", "stl10")


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
    """The run's configuration for the arguments after the colon."""
    chosen = configs.arguments(
        arguments, {"dataset": DATASETS, "family": tuple(matrices.FAMILIES), "backbone": tuple(BACKBONES)}
    )
    config = configs.default()
    config.data.source = f"tfds:{chosen['dataset']}"
    config.data.augment = "crop_flip"
    config.model.weights = BACKBONES[chosen["backbone"]]
    config.peft.family = chosen["family"]
    config.optim.epochs = 3
    config.optim.batch_size = 64
    return config
