"""Lists and checks the runs of a sweep before any is trained, then trains them or writes a script for them."""

import inspect
import runpy
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from surm import config as configs
from surm import files, report
from surm.cli import command_line
from surm.cli.command_line import CommandLine
from surm.errors import InputError, one_line
from surm.rundir import names
from surm.sweeps import launchers
from surm.sweeps.launchers import Run
from surm.sweeps.overrides import Overrides, flags


def plan(line: CommandLine) -> list[Run]:
    """Lists the runs of a sweep and checks the config of each; nothing is written.

    Args:
      line: the parsed command line.

    Returns:
      The runs, in the order of the config's `sweep()`.

    Raises:
      InputError: if there is no `sweep()`, it fails or yields something else, or a config is refused.
    """
    runs = [_run(line, overrides) for overrides in overrides_of(line.config_file)]
    called = [run.name for run in runs]
    if twice := [name for name in called if called.count(name) > 1]:
        raise InputError(f"sweep() yields {twice[0]!r} twice")
    return runs


def overrides_of(config_file: str) -> list[Overrides]:
    """The overrides that the `sweep()` of a config file yields.

    Args:
      config_file: FILE or FILE:ARGUMENTS; a `sweep` with a parameter gets the text after the colon.

    Returns:
      The overrides of every run.

    Raises:
      InputError: if there is no `sweep()`, it fails, or it yields anything else.
    """
    file, *arguments = config_file.split(":", 1)
    sweep = runpy.run_path(file).get("sweep")
    if sweep is None:
        raise InputError(
            f"config {file!r} has no sweep(); an example: from surm import sweeps; def sweep(): "
            'return sweeps.product({"peft.family": ["circulant", "toeplitz"], "seed": [0, 1]})'
        )
    try:
        found = list(sweep(*arguments[: len(inspect.signature(sweep).parameters)]))
    except Exception as error:  # whatever the config file raises
        raise InputError(f"sweep() of config {file!r}: {one_line(error)}") from error
    if not found:
        raise InputError(f"sweep() of config {file!r} yields no run")
    for overrides in found:
        if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
            raise InputError(f"sweep() of config {file!r} yields {overrides!r:.80}, expected dicts as {{'seed': 1}}")
    return [{key: _plain(key, value) for key, value in overrides.items()} for overrides in found]


def _plain(key: str, value: object) -> object:
    """A value as a number or text of Python; InputError if a command line cannot express it."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, bool | int | float | str | None) or not str(value).isprintable():
        raise InputError(f"sweep() sets {key} to {value!r:.80}, expected one number, True, False, None or line of text")
    return value


def _run(line: CommandLine, overrides: Overrides) -> Run:
    """Makes one run; its command is parsed as `surm.train` will parse it."""
    name = names.name(overrides)
    if both := sorted(line.overrides.keys() & overrides.keys()):
        raise InputError(f"--config.{both[0]} is given, but sweep() sets it too; leave it out")
    folder = files.path(line.workdir) / name
    given = flags({**line.overrides, **overrides})
    arguments = [f"--config={line.config_file}", *given, f"--workdir={folder}"]
    try:
        config = command_line.parse(["surm.train", *arguments]).config
        configs.check(config)
    except InputError as error:
        raise InputError(f"run {name!r}: {error}") from error
    values = dict(configs.leaves(config))
    for key, value in overrides.items():
        if values[key] != value:
            raise InputError(f"run {name!r}: sweep() sets {key} to {value!r}, the config has {values[key]!r} there")
    return Run(name, overrides, config, folder, arguments)


def table(runs: Sequence[Run], failed: Mapping[str, str]) -> str:
    """The runs of a sweep as a table, with the keys whose values differ among them."""
    results = [run.result() for run in runs]
    states = [
        "finished" if result else "failed" if run.name in failed else "missing"
        for run, result in zip(runs, results, strict=True)
    ]
    return report.sweep_table(settings(runs), results, states)


def settings(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The values of each run as text, by the short names of the keys in which runs of the sweep differ."""
    values = [dict(configs.leaves(run.config)) for run in runs]
    keys = dict.fromkeys(key for run in runs for key in run.overrides)
    differ = {key: names.short(key) for key in keys if any(value[key] != values[0][key] for value in values)}
    return [
        {short: "default" if value[key] is None else str(value[key]) for key, short in differ.items()}
        for value in values
    ]


def train_here(runs: Sequence[Run]) -> int:
    """Trains the missing runs on this machine, then prints the table and the failures.

    Returns:
      The exit status: 0, 1 if runs failed, 128 + the signal's number if a signal stopped the sweep.
    """
    failed, asked = launchers.train_here(_missing(runs))
    print(table(runs, failed), flush=True)
    for run in runs:
        if run.name in failed:
            print(f"failed: {run.name}: {failed[run.name]}; see {run.log}", file=sys.stderr)
    if asked:
        print(f"stopped by {signal.Signals(asked[0]).name}; the same command goes on from there", file=sys.stderr)
        return 128 + asked[0]
    return 1 if failed else 0


def print_commands(runs: Sequence[Run]) -> int:
    """Prints the commands of the missing runs, one per line; the table goes to the error stream."""
    for run in _missing(runs):
        print(shlex.join(run.command))
    print(table(runs, {}), file=sys.stderr)
    return 0


def write_script(runs: Sequence[Run], launcher: str, workdir: str, template: str | None) -> int:
    """Writes the script for the missing runs, and prints the table and the command that starts it."""
    print(table(runs, {}))
    if missing := _missing(runs):
        written = launchers.script(launcher, missing, files.path(workdir), template)
        print(f"to train the missing runs: {launchers.STARTED_WITH[launcher]} {shlex.quote(str(written))}")
    return 0


def _missing(runs: Sequence[Run]) -> list[Run]:
    """The runs without a result; InputError if a folder holds the run of another config."""
    return [run for run in runs if run.result() is None]
