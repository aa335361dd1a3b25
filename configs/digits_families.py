"""Trains every family briefly on the demo's task; `notebooks/read_a_run.ipynb` draws the learned updates.

    surm sweep --config=configs/digits_families.py --workdir=runs/families

One run of 150 steps a family, at the family's own rate and with its default options; half a
minute each on two CPU cores. Too short to compare families by accuracy, which experiments/vit_families does.
"""

import pathlib
import runpy

import ml_collections

from surm import matrices, sweeps

DEMO = runpy.run_path(str(pathlib.Path(__file__).with_name("vit_digits.py")))


def get_config() -> ml_collections.ConfigDict:
    """The demo's configuration, shorter, with the family's own rate."""
    config = DEMO["get_config"]()
    config.optim.learning_rate = None
    config.optim.epochs, config.optim.steps = 0, 150
    return config


def sweep() -> list[sweeps.Overrides]:
    """One run a family."""
    return sweeps.product({"peft.family": list(matrices.FAMILIES)})
