"""surm: fine-tunes Transformers with structured, unrestricted-rank matrices, and shows what came of it.

    surm train --config=configs/vit_digits.py --workdir=runs/digits     trains one config
    surm sweep --config=configs/vit_digits.py --workdir=runs/sweep      trains what the config's sweep() lists
    surm report runs/sweep --out report                                 one page of many runs
    surm inspect runs/digits                                            what a run or an adapter is
    surm export runs/mrpc --out peft --encoder_only                     the adapter in Hugging Face PEFT's files
    surm merge runs/digits --out merged.safetensors                     the whole model, the adapter folded in

`surm COMMAND --help` says more of each; `python -m surm` is the same. Status 0: done; 1: runs of a sweep failed;
2: something that was given cannot be used; 3: a loss was not finite; 128 + the signal's number: stopped.
"""

import sys
from collections.abc import Callable, Sequence

from surm.cli import commands
from surm.errors import nearest


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
      arguments: those behind the program's name; None for the process's own.

    Returns:
      The exit status.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(__doc__)
        return 0 if given else 2
    if given[0] not in COMMANDS:
        print(f"error: no command is called {given[0]!r}; {nearest(given[0], COMMANDS)}", file=sys.stderr)
        return 2
    return COMMANDS[given[0]](given[1:])


# What a command needs is imported by it alone: `inspect` and `report` wait for no jax.
def _train(arguments: list[str]) -> int:
    with commands.ended_by_interrupts():
        from surm import train

    return train.main(["surm train", *arguments])


def _sweep(arguments: list[str]) -> int:
    with commands.ended_by_interrupts():
        from surm import sweep

    return sweep.main(["surm sweep", *arguments])


def _report(arguments: list[str]) -> int:
    from surm.report import __main__ as report

    return report.main(arguments)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "sweep": _sweep,
    "report": _report,
    "inspect": commands.inspect,
    "export": commands.export,
    "merge": commands.merge,
}

if __name__ == "__main__":
    sys.exit(main())
