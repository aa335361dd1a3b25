"""Trains every family briefly on the demo's task; `notebooks/read_a_run.ipynb` draws the learned updates.

    surm sweep --config=configs/digits_families.py --workdir=runs/families

Each family trains for 150 steps, with its own default learning rate and options, which takes half a minute on two CPU
cores. The runs are too short to compare the accuracy of families; experiments/vit_families does that.
"""

import pathlib
import runpy

import ml_collections

from surm import matrices, sweeps

DEMO = runpy.run_path(str(pathlib.Path(__file__).with_name("vit_digits.py")))


def get_config() -> ml_collections.ConfigDict:
    """The demo's configuration with fewer steps and the family's own learning rate."""
    config = DEMO["get_config"]()
    config.optim.learning_rate = None
    config.optim.epochs, config.optim.steps = 0, 150
    return config


def sweep() -> list[sweeps.Overrides]:
    """One run for each family."""
    return sweeps.product({"peft.family": list(matrices.FAMILIES)})
