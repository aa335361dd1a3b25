"""Trains the runs of a sweep on this machine, one after the other, or writes a script for Slurm or xpk.

Scripts are made from templates: those in `scripts/`, or the user's own. Names in double braces are replaced, and the
lines between `# every run` and `# end` are written once for each run:

    array, directory, output            for all runs: the indices 0-N, the current folder, the file for Slurm's output
    index, flags, quoted_flags, log,    for each run; workload is a name that Kubernetes accepts
    python, workload

All values except array and index are quoted for a shell; flags become several words, quoted_flags a single word.
"""

import dataclasses
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from etils import epath

from surm import files
from surm.errors import InputError, nearest
from surm.machine import buckets, stopping
from surm.rundir import names
from surm.rundir.workdir import Workdir
from surm.sweeps.overrides import Overrides

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
TEMPLATES = {"slurm": "slurm_array.sh", "xpk": "xpk_workloads.sh"}
"""The template in `scripts/` of each launcher that takes one; the written script has the same name."""

STARTED_WITH = {"slurm": "sbatch", "xpk": "CLUSTER=NAME IMAGE=NAME bash"}
"""The command that starts such a script."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
      name: the unique name of the run in the sweep, and of its folder.
      overrides: the values that the sweep sets, by dotted key.
      config: the config with all overrides, also those of the command line.
      folder: the workdir.
      flags: the arguments of `python -m surm.train`.
    """

    name: str
    overrides: Overrides
    config: ml_collections.ConfigDict
    folder: epath.Path
    flags: list[str]

    @property
    def log(self) -> epath.Path:
        """The file for the run's output, one attempt after the other, beside the run's own files."""
        return self.folder / "log.txt"

    @property
    def command(self) -> list[str]:
        """The command that trains it on this machine."""
        return [sys.executable, "-m", "surm.train", *self.flags]

    def result(self) -> dict[str, Any] | None:
        """The contents of `result.json`; None if there is none, or if the config now asks for more steps;
        InputError if the folder holds the run of another config."""
        folder = Workdir(self.folder, self.config)
        return None if folder.longer else folder.result()


def train_here(runs: Sequence[Run]) -> tuple[dict[str, str], list[int]]:
    """Trains one run after the other, each in a process of its own, and continues after failures.

    Args:
      runs: the runs to train.

    Returns:
      The reasons of failures, by the name of the run; and the signals, if any, that asked to stop. After a signal the
      current run has saved a checkpoint, and later runs have not begun.

    Raises:
      OSError: if a log cannot be written.
    """
    failed: dict[str, str] = {}
    with stopping.requests() as asked:
        for number, run in enumerate(runs, 1):
            if asked:
                break
            print(f"[{number}/{len(runs)}] {run.name}: its output is in {run.log}", flush=True)
            status = _train(run, asked)
            if status and not asked:
                failed[run.name] = _reason(run, status)
                print(f"[{number}/{len(runs)}] {run.name}: failed: {failed[run.name]}", flush=True)
    return failed, asked


_OTHER = {signal.SIGINT: signal.SIGTERM, signal.SIGTERM: signal.SIGINT}


def _train(run: Run, asked: list[int]) -> int:
    """Trains one run; returns its exit status, which is negative if a signal killed it."""
    run.folder.mkdir(parents=True, exist_ok=True)
    here = files.local(run.log)
    here.parent.mkdir(parents=True, exist_ok=True)
    with open(here, "ab") as log:
        log.write(f"$ {shlex.join(run.command)}\n".encode())
        log.flush()
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}  # otherwise printed lines would come after the error
        process = subprocess.Popen(
            run.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
    passed_on = 0
    try:
        while process.poll() is None:
            # A terminal, or a scheduler, may have sent the signal to the run as well, and a second signal of the same
            # kind would end it before it has saved. So the other kind is passed on.
            for number in asked[passed_on:]:
                process.send_signal(_OTHER[number])
                passed_on += 1
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
        return process.returncode
    finally:
        if process.poll() is None:  # interrupted for the second time
            process.kill()
            process.wait()
        if buckets.holds(run.log):
            files.replace(run.log, here.read_bytes())


def _reason(run: Run, status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    lines = re.split(r"[\r\n]+", run.log.read_bytes().decode(errors="replace").strip())
    return lines[-1].strip()


def script(launcher: str, runs: Sequence[Run], workdir: epath.Path, template: str | None) -> epath.Path:
    """Writes a script that trains runs elsewhere.

    For a sweep in an object store, the script and the output of the runs are in a local folder with the sweep's name,
    because neither a shell nor Slurm writes to a store.

    Args:
      launcher: a key of `TEMPLATES`.
      runs: the runs to train.
      workdir: the sweep's folder; the script is written to it if it is local.
      template: the user's own template; None for the one in `scripts/`.

    Returns:
      The script.

    Raises:
      InputError: if the template is missing, has no part for every run, or uses an unknown name.
      OSError: if the script cannot be written.
    """
    source = pathlib.Path(template) if template is not None else SCRIPTS / TEMPLATES[launcher]
    here = epath.Path(workdir.name) if buckets.holds(workdir) else workdir
    common = {
        "array": f"0-{len(runs) - 1}",
        "directory": shlex.quote(os.getcwd()),
        "output": shlex.quote(f"{here.absolute()}".replace("%", "%%") + "/slurm-%A_%a.out"),
    }
    each = [
        {
            "index": str(index),
            "flags": shlex.join(run.flags),
            "quoted_flags": shlex.quote(shlex.join(run.flags)),
            "log": shlex.quote(str(here / run.name / run.log.name)),
            "python": shlex.quote(sys.executable),
            "workload": workload_name(run),
        }
        for index, run in enumerate(runs)
    ]
    text = _filled(_read(source), common, each, str(source))
    here.mkdir(parents=True, exist_ok=True)
    files.replace(here / TEMPLATES[launcher], text)
    return here / TEMPLATES[launcher]


def workload_name(run: Run) -> str:
    """A run's name for Kubernetes and xpk: a-z, 0-9 and -, at most 40 characters, unique to its folder."""
    readable = re.sub(r"[^a-z0-9]+", "-", run.name.lower())[:28].strip("-")
    return f"surm-{readable}-{names.digest(str(run.folder))}"


def _read(source: pathlib.Path) -> str:
    try:
        return source.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"no template {str(source)!r} can be read; the templates are in scripts/ of a clone (pip install -e .), "
            "or name your own with --template=FILE"
        ) from error


_EVERY_RUN = re.compile(r"^# every run\n(.*?)^# end$\n?", re.DOTALL | re.MULTILINE)


def _filled(text: str, common: Mapping[str, str], runs: Sequence[Mapping[str, str]], source: str) -> str:
    parts = _EVERY_RUN.split(text)
    if len(parts) != 3:
        raise InputError(f"template {source!r} has {len(parts) // 2} parts from '# every run' to '# end', expected one")

    def fill(part: str, values: Mapping[str, str]) -> str:
        def value(match: re.Match) -> str:
            if match[1] not in values:
                raise InputError(f"template {source!r} names {match[0]}; {nearest(match[1], values)}")
            return values[match[1]]

        return re.sub(r"\{\{(\w+)\}\}", value, part)

    before, every, after = parts
    return fill(before, common) + "".join(fill(every, {**common, **run}) for run in runs) + fill(after, common)
