"""The commands that take a config, and the flags that each takes beside --config and --workdir."""

from collections.abc import Mapping
from typing import NamedTuple


class Command(NamedTuple):
    """A command that takes a config.

    Attributes:
      name: its name on the command line, `surm NAME`, and that of its module, `surm.NAME`.
      about: a sentence that says what it does.
      options: its flags with a value, each with a line of help.
      switches: its flags without a value, each with a line of help.
      without_workdir: the switch with which it needs no --workdir; empty if there is none.
      workdir: whether it takes --workdir at all.
    """

    name: str
    about: str
    options: Mapping[str, str]
    switches: Mapping[str, str]
    without_workdir: str = ""
    workdir: bool = True

    @property
    def usage(self) -> str:
        """The arguments that it needs."""
        return "--config=FILE --workdir=DIR" if self.workdir else "--config=FILE"


_TARGET = (
    "with --dry_run: hardware that need not be there, such as tpu:v5e:4x4 or gpu:h100:8, for which the step is compiled"
)

_TOGETHER = {
    "coordinator_address": "the HOST:PORT of process 0, if JAX does not find it by itself",
    "num_processes": "the number of processes that train together",
    "process_id": "the number of this process, from 0",
    "join_seconds": "how many seconds to wait for the other processes at the start; 300 if not given",
}

TRAIN = Command(
    "train",
    "Trains the model that a config describes. The same command continues a run that was stopped.",
    options={**_TOGETHER, "target": _TARGET},
    switches={
        "dry_run": "compile one training step, report its memory and cost, and exit; nothing is written",
        "json": "with --dry_run --target=...: print the report as one line of JSON",
        "distributed": "train together with the other processes that a TPU pod, Slurm, GKE or MPI has started",
    },
    without_workdir="dry_run",
)

SWEEP = Command(
    "sweep",
    "Trains every run that the config's sweep() lists, each in a folder of its own, and prints them as a table.",
    options={
        "launcher": "how to start the runs: local (the default) trains them here; print shows the commands, and slurm "
        "and xpk write a script",
        "template": "the template of the script for slurm or xpk, instead of the one in scripts/",
        "target": _TARGET,
    },
    switches={
        "dry_run": "with --target: compile one training step of every run, and print a table; nothing is written"
    },
    without_workdir="dry_run",
)

CALIBRATE = Command(
    "calibrate",
    "Times the ways to multiply by the matrices of a run on this device. peft.path=auto then chooses by that.",
    options={
        "seconds": "how many seconds to measure, compilation included; 10 if not given",
        **_TOGETHER,
    },
    switches={"distributed": "run with the other processes that a TPU pod, Slurm, GKE or MPI has started"},
    workdir=False,
)
