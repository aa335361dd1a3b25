"""Parses the command line of commands that take a config; every mistake becomes an InputError of one line."""

import dataclasses
import difflib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from surm import config as configs
from surm import files
from surm.cli import help_text
from surm.cli.flags import TRAIN, Command
from surm.errors import InputError, one_line


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """The parsed command line.

    Attributes:
      config: the configuration, with overrides applied.
      workdir: the run's folder; empty if the command needs none.
      config_file: the value of `--config`, FILE or FILE:ARGUMENTS.
      overrides: the values set by `--config.KEY=VALUE`, by dotted key.
      options: the value of every further flag with a value; None if it was not given.
      switches: for every further flag without a value, whether it was given.
    """

    config: ml_collections.ConfigDict
    workdir: str
    config_file: str
    overrides: dict[str, Any]
    options: dict[str, str | None]
    switches: dict[str, bool]


def parse(argv: list[str], command: Command = TRAIN) -> CommandLine:
    """Parses `--config=FILE[:ARGUMENTS] --workdir=DIR [--config.KEY=VALUE ...]`.

    Args:
      argv: the program's name and its arguments, as in `sys.argv`.
      command: the command whose flags are accepted.

    Returns:
      The parsed command line.

    Raises:
      InputError: if a flag or key is unknown, a value has the wrong type, or the config file is missing or fails.
      SystemExit: after `--help`.
    """
    if asks_for_help(argv[1:]):
        sys.exit(help_text.show(command))
    values, config = _defined(argv, command)
    unset, overrides, given = _check_keys(argv), {}, _config_file(argv)
    sys.modules.pop("config_config", None)  # otherwise ml_collections would mix this file with the last one loaded
    try:
        rest = values([argument for argument in argv if argument not in unset])
        chosen = config.value
        if chosen is not None:
            _check_is_config(chosen, given)
            chosen.update_from_flattened_dict({key: None for key in unset.values()})
            overrides = {**config_flags.get_override_values(values["config"]), **dict.fromkeys(unset.values())}
            configs.apply_durations(chosen, overrides)
    except Exception as error:  # absl, ml_collections and the config file can raise any exception
        raise InputError(_one_line(error, given)) from error
    if rest[1:]:
        raise InputError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    if given and chosen is None:
        raise InputError(_NOTHING.format(given))
    spared = ("workdir",) if command.without_workdir and values[command.without_workdir].value else ()
    for name in ("config", "workdir") if command.workdir else ("config",):
        if not values[name].value and name not in spared:
            program = f"python -m surm.{command.name}" if command.workdir else f"surm {command.name}"
            raise InputError(f"--{name} is missing: {program} {command.usage}")
    return CommandLine(
        config=chosen,
        workdir=str(files.path(values.workdir)) if command.workdir and values.workdir else "",
        config_file=config_flags.get_config_filename(values["config"]),
        overrides=overrides,
        options={name: values[name].value for name in command.options},
        switches={name: values[name].value for name in command.switches},
    )


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether the arguments ask for help."""
    return bool({"--help", "-help", "-h"} & {*arguments})


def _defined(argv: list[str], command: Command) -> tuple[flags.FlagValues, flags.FlagHolder]:
    """Defines all flags of a command, not yet parsed; returns them and the one that names the config file."""
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
    if command.workdir:
        flags.DEFINE_string("workdir", None, "", flag_values=values)
    for name, text in command.options.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    for name, text in command.switches.items():
        flags.DEFINE_bool(name, False, text, flag_values=values)
    return values, config


def _check_keys(argv: list[str]) -> dict[str, str]:
    """Refuses `--config.KEY=VALUE` if the key is unknown or the value has another type, more clearly than absl would.

    Returns:
      The arguments that set a key to None, which absl does not support, each with its key.
    """
    unset = {}
    for argument in argv[1:]:
        match = re.fullmatch(r"--?config\.([\w.]+)(?:=(.*))?", argument, re.DOTALL)
        if match is None:
            continue
        key, text = match.groups()
        configs.check_key(key, configs.KEYS)
        default = configs.KEYS[key].default
        if text == "None" and default is None:
            unset[argument] = key
            continue
        expected = _NUMBERS.get(float if default is None else type(default))
        if text is not None and expected and not _parses(text, expected[0]):
            raise InputError(f"config.{key}={text}, expected {expected[1]}")
    return unset


_NOTHING = "get_config() of {!r} returned nothing; expected `return config` at its end"
_NUMBERS = {int: (int, "a whole number"), float: (float, "a number")}


def _parses(text: str, kind: type) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _config_file(argv: Sequence[str]) -> str:
    """The file that the last `--config` names, without the arguments behind the colon; empty if there is none."""
    file = ""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL):
            file = (following if match[1] is None else match[1]).partition(":")[0]
    return file


def _check_is_config(value: object, file: str) -> None:
    getattr(value, "keys", None)  # raises the error of a file that failed to load
    if not isinstance(value, ml_collections.ConfigDict):
        raise InputError(
            f"get_config() of {file!r} returned a {type(value).__name__}; expected surm.config.default() with changes"
        )


def _one_line(error: Exception, file: str) -> str:
    """One line that describes an error in the flags or the config file."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    if raised := _raised_in(error, file):
        inner, line = raised
        return str(inner) if isinstance(inner, InputError) else f"{file}, line {line}: {_said(inner)}"
    text = str(error)
    if isinstance(error, flags.UnrecognizedFlagError):
        return _unknown_flag(error, file)
    if "has no attribute 'get_config'" in text:
        return f"{file!r} has no function get_config(), which returns the configuration"
    if "get_config() takes 0 positional arguments" in text:
        return f"{file!r} takes no arguments behind a colon; set its keys by --config.KEY=VALUE"
    if "<class 'NoneType'>" in text:
        return _NOTHING.format(file)
    if missing := re.search(r"No such file or directory: '([^']*)'", text):
        return f"no config file {missing[1]!r}; expected a path such as configs/vit_digits.py, perhaps with :ARGUMENTS"
    if folder := re.search(r"Is a directory: '([^']*)'", text):
        return f"config {folder[1]!r} is a folder; expected a file such as configs/vit_digits.py"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(error, OSError):
        return " ".join(lines)
    hints = [line for line in lines[1:] if line.startswith("Did you mean")]
    return " ".join([*lines[:1], *hints]) or type(error).__name__


def _unknown_flag(error: flags.UnrecognizedFlagError, file: str) -> str:
    """One line that describes an unknown flag, and names the flag that was probably meant."""
    name, keys = error.flagname, [f"config.{key}" for key in configs.KEYS]
    if not file and name.startswith("config."):
        return f"--{name} changes a config, but --config=FILE, which names the config, is missing"
    said = f"no flag is called --{name}"
    meant = [key for key in keys if key.endswith(f".{name}")]
    of_absl = re.search(r"Did you mean: ([^ ,]+)", str(error))
    near = meant or difflib.get_close_matches(f"config.{name}", keys, n=1, cutoff=0.8)
    if of_absl and not meant:
        return f"{said}; did you mean --{of_absl[1]}?"
    return f"{said}; did you mean --{near[0]}=VALUE?" if near else said


def _raised_in(error: BaseException | None, file: str) -> tuple[BaseException, int] | None:
    """The exception that came from a config file, found among wrapped ones, with the line of the file; None if none."""
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [at.lineno for at in frames if os.path.abspath(at.filename) == os.path.abspath(file)]
        if lines:
            return error, lines[-1]
        error = error.__cause__ or error.__context__
    return None


def _said(error: BaseException) -> str:
    """The type and text of an exception; for an unknown key, the key that was probably meant."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)  # else in quotes
    if unknown := re.search(r'Key "(.*?)" does not exist', text):
        near = re.search(r'Did you mean "(.*?)"', text)
        return f"config has no key {unknown[1]!r}" + (f"; nearest: {near[1]}" if near else "")
    return f"{type(error).__name__}: {one_line(text)}" if text else type(error).__name__
