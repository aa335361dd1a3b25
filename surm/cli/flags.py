"""The commands that take a config, and the flags that each takes beside --config and --workdir."""

from collections.abc import Mapping
from typing import NamedTuple


class Command(NamedTuple):
    """A command that takes a config.

    Attributes:
      name: behind `surm` on the command line, and of the module `surm.NAME`.
      about: what it does, in a sentence.
      options: its flags with a value, each with a line of help.
      switches: its flags without a value, likewise.
      without_workdir: the switch with which it needs no --workdir; empty if there is none.
    """

    name: str
    about: str
    options: Mapping[str, str]
    switches: Mapping[str, str]
    without_workdir: str = ""


TRAIN = Command(
    "train",
    "Trains what a config names. The same command goes on where a run was stopped.",
    options={
        "coordinator_address": "HOST:PORT at which process 0 is met, where JAX does not find it by itself",
        "num_processes": "how many processes train together",
        "process_id": "which of them this is, from 0",
        "join_seconds": "how long to wait for the others at the start; 300 if not given",
    },
    switches={
        "dry_run": "say what the run takes, compiled, and stop before the first step; nothing is written",
        "distributed": "train with the other processes that a TPU pod, Slurm, GKE or MPI has started",
    },
    without_workdir="dry_run",
)

SWEEP = Command(
    "sweep",
    "Trains every run that the config's sweep() lists, each in a folder of its own, and prints them as a table.",
    options={
        "launcher": "where to train: local (if not given), print, slurm or xpk; all but the first only say what to run",
        "template": "the template of a script for slurm or xpk, in place of the one in scripts/",
    },
    switches={},
)
