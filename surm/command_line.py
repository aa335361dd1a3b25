"""The flags `--config` and `--workdir`, and how a command ends: every mistake is one line and a status."""

import dataclasses
import io
import logging
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import absl.logging
import ml_collections
from absl import flags
from ml_collections import config_flags

from surm import config as configs
from surm.errors import InputError


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What the command line says.

    Attributes:
      config: overrides applied.
      workdir: the run's folder.
      config_file: as given, FILE or FILE:ARGUMENTS.
      overrides: what `--config.KEY=VALUE` set, by dotted key.
      options: the value of every further flag, None where it was not given.
      switches: whether each further flag without a value was given.
    """

    config: ml_collections.ConfigDict
    workdir: str
    config_file: str
    overrides: dict[str, Any]
    options: dict[str, str | None]
    switches: dict[str, bool]


def parse(
    argv: list[str],
    program: str = "surm.train",
    options: Mapping[str, str] | None = None,
    switches: Mapping[str, str] | None = None,
) -> CommandLine:
    """Parses `--config=FILE[:ARGUMENTS] --workdir=DIR [--config.KEY=VALUE ...]`.

    Args:
      argv: as `sys.argv`.
      program: the module's name, for help.
      options: further flags that this program has, each with its line of help.
      switches: further flags without a value, likewise.

    Returns:
      Config and workdir, and where they came from.

    Raises:
      InputError: for an unknown flag or key, a value of the wrong type, or a config file that is missing or fails.
      SystemExit: after `--help`.
    """
    values, options, switches = flags.FlagValues(), options or {}, switches or {}
    config = config_flags.DEFINE_config_file(
        "config", None, "the run's config file, such as configs/vit_digits.py", flag_values=values, sys_argv=argv
    )
    flags.DEFINE_string("workdir", None, "the run's folder, made if absent", flag_values=values)
    for name, text in options.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    for name, text in switches.items():
        flags.DEFINE_bool(name, False, text, flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    unset, overrides = _check_keys(argv), {}
    try:
        rest = values([argument for argument in argv if argument not in unset])
        chosen = config.value
        if chosen is not None:
            chosen.keys()  # a file that failed to load only says so when it is read
            chosen.update_from_flattened_dict({key: None for key in unset.values()})
            overrides = {**config_flags.get_override_values(values["config"]), **dict.fromkeys(unset.values())}
            configs.apply_durations(chosen, overrides)
    except Exception as error:  # whatever absl, ml_collections or the config file itself raise
        raise InputError(_one_line(error)) from error
    if values.help:
        print(f"usage: python -m {program} --config=FILE --workdir=DIR [--config.KEY=VALUE ...]\n"
              f"The keys, their values and defaults: {pathlib.Path(configs.__file__)}\n{values}")  # fmt: skip
        sys.exit(0)
    if rest[1:]:
        raise InputError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    for name in ("config", "workdir"):
        if not values[name].value:
            raise InputError(f"--{name} is missing: python -m {program} --config=FILE --workdir=DIR")
    return CommandLine(
        config=chosen,
        workdir=os.path.expanduser(values.workdir),
        config_file=config_flags.get_config_filename(values["config"]),
        overrides=overrides,
        options={name: values[name].value for name in options},
        switches={name: values[name].value for name in switches},
    )


def status_of(act: Callable[[], int]) -> int:
    """Runs a command to its end and says in one line what stopped it.

    Args:
      act: what it does; returns its exit status.

    Returns:
      That status; 2 for unusable input or what cannot be written, 128 + SIGINT's number for Ctrl-C.
    """
    absl.logging.set_verbosity(absl.logging.FATAL)  # what goes wrong is raised, and said in one line
    logging.getLogger("surm").setLevel(logging.WARNING)  # but surm's own warnings are for the user
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without × shows ?, and the run goes on
    try:
        return act()
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _check_keys(argv: list[str]) -> dict[str, str]:
    """Refuses `--config.KEY=VALUE` for an unknown key or a value of another type, better than absl says it.

    Returns:
      The arguments that set a key to None, which absl cannot, and their keys.
    """
    known, unset = dict(configs.leaves(configs.default())), {}
    for argument in argv[1:]:
        match = re.fullmatch(r"--?config\.([\w.]+)(?:=(.*))?", argument, re.DOTALL)
        if match is None:
            continue
        key, text = match.groups()
        configs.check_key(key, known)
        if text == "None" and known[key] is None:
            unset[argument] = key
            continue
        expected = _NUMBERS.get(type(known[key]) if known[key] is not None else float)
        if text is not None and expected and not _parses(text, expected[0]):
            raise InputError(f"config.{key}={text}, expected {expected[1]}")
    return unset


_NUMBERS = {int: (int, "a whole number"), float: (float, "a number")}


def _parses(text: str, kind: type) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _one_line(error: Exception) -> str:
    if isinstance(error, InputError) and "Traceback" not in str(error):
        return str(error)
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    text = error.args[0] if isinstance(error, KeyError) and error.args else error  # str(KeyError) quotes its message
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    if "Traceback" in str(text):  # what a config file raises comes wrapped in the text of its traceback
        return re.sub(r"^surm\.errors\.InputError: ", "", lines[-1])
    if missing := re.search(r"No such file or directory: '([^']*)'", str(text)):
        return f"no config file {missing[1]!r}; expected a path such as configs/vit_digits.py, perhaps with :ARGUMENTS"
    if folder := re.search(r"Is a directory: '([^']*)'", str(text)):
        return f"config {folder[1]!r} is a folder; expected a file such as configs/vit_digits.py"
    if isinstance(error, OSError):
        return " ".join(lines)
    hints = [line for line in lines[1:] if line.startswith("Did you mean")]
    return " ".join([*lines[:1], *hints]) or type(error).__name__
