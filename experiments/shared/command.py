"""The command lines of the experiments: flags, and one line and a status for whatever ends one."""

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

from surm.errors import InputError, one_line
from surm.machine.status import status_of


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument ").replace(": must", " must", 1))


def parser(words: str) -> argparse.ArgumentParser:
    """A parser of a command line.

    Args:
      words: the script's docstring, shown as it is by `--help`.

    Returns:
      The parser; what it cannot use ends in an InputError.
    """
    return _Parser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)


def instead(parser: argparse.ArgumentParser, flag: str, act: Callable[[], object], what: str) -> None:
    """Adds a flag with which a script does something else, prints what that returns, and ends."""

    class Act(argparse.Action):
        def __call__(self, *_: object) -> None:
            if (said := act()) is not None:
                print(said, flush=True)
            parser.exit()

    parser.add_argument(flag, action=Act, nargs=0, help=what)


def some_of(known: Iterable[object]) -> Callable[[str], list[str]]:
    """The type of an argument that names some of what is known, comma-separated."""
    names = [str(name) for name in known]

    def chosen(text: str) -> list[str]:
        given = text.split(",")
        if unknown := [name for name in given if name not in names]:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(names)}, got {', '.join(unknown)}")
        return given

    return chosen


def several(parser: argparse.ArgumentParser, flag: str, known: Iterable[object], what: str = "") -> None:
    """Adds an argument that names some of what is known; all by default."""
    names = [str(name) for name in known]
    told = f"{what}{', ' if what else ''}comma-separated; all by default"
    parser.add_argument(flag, type=some_of(names), default=names, help=told)


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number, and not below another."""

    def number(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text}")
        return int(text)

    return number


def counts(text: str) -> list[int]:
    """The type of an argument that lists whole numbers from one on, comma-separated."""
    return [at_least(1)(part) for part in text.split(",")]


def there(parser: argparse.ArgumentParser, paths: Mapping[str, pathlib.Path | None]) -> dict[str, pathlib.Path]:
    """Those of some paths that were given, in full; an error names the first that does not exist."""
    given = {name: path.resolve() for name, path in paths.items() if path}
    if missing := [path for path in given.values() if not path.exists()]:
        parser.error(f"there is no {missing[0]}")
    return given


def status(act: Callable[[], object]) -> int:
    """Runs a script to its end.

    Args:
      act: what it does; returns nothing, or an exit status.

    Returns:
      The exit status: as `surm.machine.status.status_of` has it, 3 where a loss did not stay finite, 128 + the
      signal's number for a run that was asked to stop.
    """
    return status_of(lambda: _acted(act))


def _acted(act: Callable[[], object]) -> int:
    from surm.machine.stopping import Stopped
    from surm.rundir.log import NonFiniteError

    try:
        return int(act() or 0)
    except ModuleNotFoundError as error:
        if str(error.name).startswith(("surm", "experiments")):
            raise
        raise InputError(f"{error.name} is not installed; --help says what this script needs") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines() or ["nothing was said"]
        raise InputError(f"a process of its own ended with status {error.returncode}: {one_line(said[-1])}") from error
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        return 128 + stopped.signal


def run(act: Callable[[], object]) -> NoReturn:
    """Runs a script, and ends the process with its status."""
    sys.exit(status(act))
