"""The help text of commands and the table of docs/config.md, made from the declarations of config keys."""

import ast
import pathlib
import textwrap

from surm import config as configs
from surm.cli.flags import Command
from surm.machine.keys import Key

_WIDTH = 100
_VALUES = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


def of_command(command: Command) -> str:
    """The help text of a command: its flags, then every config key by section, with default, values and meaning.

    Args:
      command: the command.

    Returns:
      The text, in lines of at most 100 characters.
    """
    flags = {
        "config=FILE[:ARGUMENTS]": "the config file, such as configs/vit_digits.py, perhaps with its own arguments",
        **({"workdir=DIR": "the folder to write to; it is created if absent"} if command.workdir else {}),
        "config.KEY=VALUE": "sets a key to another value than FILE does; the keys are listed below",
        **{f"{name}=VALUE": text for name, text in command.options.items()},
        **command.switches,
        "help": "show this help",
    }
    lines = [f"usage: surm {command.name} {command.usage} [--config.KEY=VALUE ...]", ""]
    lines += [*textwrap.wrap(command.about, _WIDTH), ""]
    for flag, text in flags.items():
        lines += [f"  --{flag}", *_indented(text)]
    lines += ["", "The keys of a config, each with its default and its allowed values:"]
    for section, (about, keys) in configs.SECTIONS.items():
        lines += ["", f"{section}: {about}" if section else about]
        for name, key in keys.items():
            head = f"{section}.{name}".lstrip(".")
            lines += _indented(f"{head}={_default(key)}   ({values(key)})", first=2)
            lines += _indented(key.meaning.replace("`", ""))
    return "\n".join(lines)


def show(command: Command) -> int:
    """Prints the help text of a command; returns the exit status 0."""
    print(of_command(command))
    return 0


def table() -> str:
    """All keys as a Markdown table; the last column is the `surm.machine.keys.Decision` of each key."""
    rows = ["| key | default | meaning | values | going on |", "|---|---|---|---|---|"]
    for name, key in configs.KEYS.items():
        cells = (f"`{name}`", f"`{_default(key)}`", key.meaning, values(key), key.decision)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def values(key: Key) -> str:
    """The allowed values of a key, in a few words.

    Examples:
      >>> values(Key(0.9, "The momentum of sgd.", least=0, most=1))
      'a number from 0 to 1'
      >>> values(Key("cosine", "How rates fall.", choices=("cosine", "linear", "constant")))
      'cosine, linear or constant'
    """
    names = key.choices or (registered(key.registry) if key.registry else ())
    if names:
        return f"{', '.join(names[:-1])} or {names[-1]}"
    kind = _VALUES[float if key.default is None else type(key.default)]
    also = f", or {key.beside[0]} for {key.beside[1]}" if key.beside else ""
    none = ", or None" if key.default is None else ""
    if key.most is not None:
        return f"{kind} from {key.least} to {key.most}{none}"
    return kind + (f", at least {key.least}" if key.least is not None else "") + also + none


def registered(registry: str) -> tuple[str, ...]:
    """The keys of a registry, parsed from its source code, so that help does not have to import jax.

    Args:
      registry: the dotted name of a dictionary that is written as a literal.

    Returns:
      Its keys, in order.

    Examples:
      >>> registered("surm.ops.activations.BRANCH_ACTIVATIONS")
      ('gelu', 'relu', 'tanh', 'identity')
    """
    module, _, name = registry.rpartition(".")
    place = pathlib.Path(__file__).parents[1].joinpath(*module.split(".")[1:])
    source = (place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text()
    (found,) = (
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name
    )
    return tuple(ast.literal_eval(key) for key in found.keys)


def _default(key: Key) -> str:
    return "''" if key.default == "" else str(key.default)


def _indented(text: str, first: int = 6) -> list[str]:
    """Wraps a text into lines; the first one is indented by `first` spaces, and the others by six."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=" " * first,
        subsequent_indent=" " * 6,
        break_long_words=False,
        break_on_hyphens=False,
    )
