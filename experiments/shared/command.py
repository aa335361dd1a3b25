"""The command lines of the experiments: their flags, and one line and an exit status for whatever ends a script."""

import argparse
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from surm.errors import InputError, one_line
from surm.machine.status import status_of


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument ").replace(": must", " must", 1))


def parser(words: str) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring for `--help`, and raises InputError for arguments it cannot use."""
    return _Parser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)


def instead(parser: argparse.ArgumentParser, flag: str, act: Callable[[], object], what: str) -> None:
    """Adds a flag with which the script does something else, and nothing more."""

    class Act(argparse.Action):
        def __call__(self, *_: object) -> None:
            act()
            parser.exit()

    parser.add_argument(flag, action=Act, nargs=0, help=what)


def several(
    parser: argparse.ArgumentParser,
    flag: str,
    known: Iterable[object],
    what: str = "",
    default: list[str] | None = None,
) -> None:
    """Adds an argument that lists some of the known names; `what` says of what, and by default it lists all."""
    names = [str(name) for name in known]
    told = ", ".join(filter(None, [what, "comma-separated"])) + ("; all by default" if default is None else "")

    def chosen(text: str) -> list[str]:
        given = text.split(",")
        if unknown := [name for name in given if name not in names]:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(names)}, got {', '.join(unknown)}")
        return given

    parser.add_argument(flag, type=chosen, default=names if default is None else default, help=told)


def count(text: str) -> int:
    """The type of an argument that is a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def counts(text: str) -> list[int]:
    """The type of an argument that lists whole numbers of at least 1, comma-separated."""
    return [count(part) for part in text.split(",")]


def existing(text: str) -> pathlib.Path:
    """The type of an argument that names a file or folder; the path is made absolute."""
    path = pathlib.Path(text).resolve()
    if not path.exists():
        raise argparse.ArgumentTypeError(f"there is no {path}")
    return path


def status(act: Callable[[], object]) -> int:
    """Runs a script, which returns nothing or its exit status, and says in one line what stopped it.

    The status is that of `surm.machine.status.status_of`, 3 if a loss is no longer finite, and 128 + the signal's
    number if a run was asked to stop.
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
    """Runs a script, and ends the process with its status; calibrations of this machine do not decide on paths."""
    os.environ["SURM_CACHE"] = f"{os.devnull}/none"
    sys.exit(status(act))
