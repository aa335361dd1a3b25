"""Pretrains vit_micro (2.7 M parameters, 16 patches of 8×8) from scratch on Tiny-ImageNet at 32×32.

    python scripts/prepare_tiny_imagenet.py tiny_imagenet_32.npz tiny_imagenet.npz
    python -m surm.train --config=configs/pretrain_vit.py --workdir=runs/pretrain \
        --config.data.source=tiny_imagenet.npz

The run takes 74 minutes on two shared CPU cores. Expected number: 21.7 % top-1 on the 10,000 official validation
images. The bundled weights come from this run; surm/models/assets/vit_micro.json is its result.
"""

import ml_collections

from surm.config import default


def get_config() -> ml_collections.ConfigDict:
    """The run's configuration."""
    config = default()
    config.data.source = "tiny_imagenet.npz"
    config.data.augment = "crop_flip"
    config.model.name = "vit_micro"
    config.model.weights = "none"
    config.peft.method = "full"
    config.peft.train = ""
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.05
    config.optim.warmup_fraction = 0.05
    config.optim.gradient_clip = 1.0
    config.optim.label_smoothing = 0.1
    config.optim.batch_size = 128
    config.optim.epochs = 12
    config.log_every_steps = 20
    config.eval_every_steps = 750
    config.checkpoint_every_steps = 250
    return config
