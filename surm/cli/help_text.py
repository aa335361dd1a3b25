"""What `surm train --help` and docs/config.md say of the keys of a config, made from their declarations."""

import ast
import pathlib
import textwrap

from surm import config as configs
from surm.cli.flags import Command
from surm.machine.keys import Key

_WIDTH = 100
_VALUES = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


def of_command(command: Command) -> str:
    """The help of a command: its flags, then every key by sections, with default, values and meaning.

    Args:
      command: whose help it is.

    Returns:
      The text, in lines of at most 100 characters.
    """
    flags = {
        "config=FILE[:ARGUMENTS]": "the config file, such as configs/vit_digits.py, perhaps with arguments of its own",
        "workdir=DIR": "the folder that is written to, made if absent",
        "config.KEY=VALUE": "another value of a key than FILE has; the keys are listed below",
        **{f"{name}=VALUE": text for name, text in command.options.items()},
        **command.switches,
        "help": "show this help",
    }
    lines = [f"usage: surm {command.name} --config=FILE --workdir=DIR [--config.KEY=VALUE ...]", ""]
    lines += [*textwrap.wrap(command.about, _WIDTH), ""]
    for flag, text in flags.items():
        lines += [f"  --{flag}", *_indented(text)]
    lines += ["", "The keys of a config, each with its default and what it may be:"]
    for section, (about, keys) in configs.SECTIONS.items():
        lines += ["", f"{section}: {about}" if section else about]
        for name, key in keys.items():
            head = f"{section}.{name}".lstrip(".")
            lines += _indented(f"{head}={_default(key)}   ({values(key)})", first=2)
            lines += _indented(key.meaning.replace("`", ""))
    return "\n".join(lines)


def show(command: Command) -> int:
    """Prints the help of a command; the exit status."""
    print(of_command(command))
    return 0


def table() -> str:
    """All keys as a table in Markdown; the last column is the decision of `surm.machine.keys.Decision`."""
    rows = ["| key | default | meaning | values | going on |", "|---|---|---|---|---|"]
    for name, key in configs.KEYS.items():
        cells = (f"`{name}`", f"`{_default(key)}`", key.meaning, values(key), key.decision)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def values(key: Key) -> str:
    """What a key may be, in a few words.

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
    """The names in a registry, read off its source, so that whoever asks for help does not wait for jax.

    Args:
      registry: a dictionary that is written out by hand, by its dotted name.

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
    """The lines of a text, the first of them indented by so many spaces and the others by six."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=" " * first,
        subsequent_indent=" " * 6,
        break_long_words=False,
        break_on_hyphens=False,
    )
