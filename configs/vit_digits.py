"""The demo: a frozen, pretrained ViT learns handwritten digits through a circulant update of query, key and value.

    python -m surm.train --config=configs/vit_digits.py --workdir=runs/digits

The data come with scikit-learn and the weights with surm, so no network is needed. The run takes about two minutes on
two CPU cores. Expected number: 97.2 % of the test images classified correctly
(experiments/vit_families/results/digits_circulant.json). One point is four images of 360; on another machine a
different order of summation may change the result by that much.

This command trains three families with two seeds each and prints a table; it takes six times as long:

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
    # With only 1,077 images, the model would overfit without dropout and label smoothing: the training loss falls to 0
    # and the held-out loss does not. These settings and the batch size were chosen on the validation split.
    config.peft.dropout = 0.3
    config.optim.learning_rate = 8e-3
    config.optim.label_smoothing = 0.1
    config.optim.epochs = 40
    config.optim.batch_size = 32
    return config


def sweep() -> list[sweeps.Overrides]:
    """Three families, each with a learning rate (None means the family's default), times two seeds."""
    families = sweeps.zipped(
        {"peft.family": ["circulant", "toeplitz", "kronecker"], "optim.learning_rate": [8e-3, None, None]}
    )
    return sweeps.product(families, seed=[0, 1])
