"""The demo: a frozen, pretrained ViT learns handwritten digits through a circulant update of query, key and value.

    python -m surm.train --config=configs/vit_digits.py --workdir=runs/digits

Data and weights ship with the packages; no network is needed. Two CPU cores: about two minutes. Expected number:
95.8 %; experiments/vit_families/results/digits_circulant.json. (A point more or less is four images of 360, and what
another order of summation, on another machine, may bring.)

Three families with two seeds each, in a table, in six times as long:

    python -m surm.sweep --config=configs/vit_digits.py --workdir=runs/digits_sweep
"""

import ml_collections

from surm import sweeps
from surm.config import default


def get_config() -> ml_collections.ConfigDict:
    """The run's configuration."""
    config = default()
    config.data.source = "digits"
    config.model.weights = "asset:vit_micro"
    config.peft.family = "circulant"
    # 1,077 images: without dropout and smoothing the training loss falls to 0 and the held-out one does not. They
    # and the batches of 32 were chosen on the validation split.
    config.peft.dropout = 0.3
    config.optim.learning_rate = 8e-3
    config.optim.label_smoothing = 0.1
    config.optim.epochs = 40
    config.optim.batch_size = 32
    return config


def sweep() -> list[sweeps.Overrides]:
    """Families, each with its rate (None: the family's own, in surm/training/optim.py), and seeds."""
    families = sweeps.zipped(
        {"peft.family": ["circulant", "toeplitz", "kronecker"], "optim.learning_rate": [8e-3, None, None]}
    )
    return sweeps.product(families, seed=[0, 1])
