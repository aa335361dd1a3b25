"""The flags `--config` and `--workdir`, every mistake in them turned into one line."""

import dataclasses
import sys

import ml_collections
from absl import flags
from ml_collections import config_flags

from surm import config as configs
from surm.errors import InputError


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What the command line says: the config, overrides applied, and the run's folder."""

    config: ml_collections.ConfigDict
    workdir: str


def parse(argv: list[str]) -> CommandLine:
    """Parses `--config=FILE[:ARGUMENTS] --workdir=DIR [--config.KEY=VALUE ...]`.

    Args:
      argv: as `sys.argv`.

    Returns:
      Config and workdir.

    Raises:
      InputError: for an unknown flag or key, a value of the wrong type, or a config file that is missing or fails.
      SystemExit: after `--help`.
    """
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file(
        "config", None, "the run's config file, such as configs/vit_digits.py", flag_values=values, sys_argv=argv
    )
    flags.DEFINE_string("workdir", None, "the run's folder, made if absent", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    try:
        rest = values(argv)
        chosen = config.value
        if chosen is not None:
            chosen.keys()  # a file that failed to load only says so when it is read
            configs.apply_durations(chosen, config_flags.get_override_values(values["config"]))
    except Exception as error:  # whatever absl, ml_collections or the config file itself raise
        raise InputError(_one_line(error)) from error
    if values.help:
        print(f"usage: python -m surm.train --config=FILE --workdir=DIR [--config.KEY=VALUE ...]\n{values}")
        sys.exit(0)
    if rest[1:]:
        raise InputError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    for name in ("config", "workdir"):
        if values[name].value is None:
            raise InputError(f"--{name} is missing: python -m surm.train --config=FILE --workdir=DIR")
    return CommandLine(chosen, values.workdir)


def _one_line(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    lines = [line.strip() for line in str(error).strip("'\"").splitlines() if line.strip()]
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    if isinstance(error, OSError):
        return " ".join(lines)
    hints = [line for line in lines[1:] if line.startswith("Did you mean")]
    return " ".join([*lines[:1], *hints]) or type(error).__name__
