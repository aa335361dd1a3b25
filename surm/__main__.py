"""surm: fine-tunes Transformers with structured, unrestricted-rank matrices, and shows the results.

    surm train --config=configs/vit_digits.py --workdir=runs/digits     trains one config
    surm sweep --config=configs/vit_digits.py --workdir=runs/sweep      trains the runs that the config's sweep() lists
    surm report runs/sweep --out report                                 makes one page of many runs
    surm inspect runs/digits                                            describes a run or an adapter
    surm export runs/mrpc --out peft --encoder_only                     writes the adapter in Hugging Face PEFT's files
    surm merge runs/digits --out merged.safetensors                     writes the whole model, with the adapter merged

`surm COMMAND --help` tells more; `python -m surm` is the same program. The exit status is 0 if all is done, 1 if runs
of a sweep failed, 2 if an input cannot be used, 3 if a loss was not finite, and 128 + the signal's number if stopped.
"""

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from surm.cli import command_line, flags, help_text
from surm.errors import nearest
from surm.machine.status import status_of


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


@contextlib.contextmanager
def _ended_by_interrupts() -> Iterator[None]:
    """Ctrl-C ends the process at once, while others are imported: inside them an exception can be lost."""
    if threading.current_thread() is not threading.main_thread():  # where there are no signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# What a command needs is imported by it alone: `inspect`, `report` and all help wait for no jax.
def _train(arguments: list[str]) -> int:
    if command_line.asks_for_help(arguments):
        return status_of(lambda: help_text.show(flags.TRAIN))
    with _ended_by_interrupts():
        from surm import train

    return train.main(["surm train", *arguments])


def _sweep(arguments: list[str]) -> int:
    if command_line.asks_for_help(arguments):
        return status_of(lambda: help_text.show(flags.SWEEP))
    with _ended_by_interrupts():
        from surm import sweep

    return sweep.main(["surm sweep", *arguments])


def _report(arguments: list[str]) -> int:
    from surm.report import __main__ as report

    return report.main(arguments)


def _inspect(arguments: list[str]) -> int:
    """`surm inspect`: what runs and adapters are."""
    from surm.report import inspection

    parser = argparse.ArgumentParser(
        prog="surm inspect", description=inspection.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="+", help="of a run or an adapter")
    folders = parser.parse_args(arguments).folder

    def show() -> int:
        print("\n\n".join(inspection.shown(folder, colour=sys.stdout.isatty()) for folder in folders))
        return 0

    return status_of(show)


def _export(arguments: list[str]) -> int:
    """`surm export`: a run's adapter in Hugging Face PEFT's files."""
    parser = argparse.ArgumentParser(
        prog="surm export", description="Writes a finished run's adapter as adapter_config.json and "
        "adapter_model.safetensors of Hugging Face PEFT: LoRA, AdaLoRA, C3A or LoKr, whichever it is. Models that "
        "transformers has, as a BERT or a ViT whose head sees the class token; of others with mean pooling BERT's with "
        "--encoder_only. Files of these names that are there are replaced.",
    )  # fmt: skip
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--names", choices=("transformers4", "transformers5"), default="transformers5")
    parser.add_argument(
        "--rank", type=int, help="write the nearest LoRA of this rank, and say how near; for any family"
    )
    parser.add_argument("--encoder_only", action="store_true", help="leave out the head")
    _add_step(parser)
    chosen = parser.parse_args(arguments)

    def write() -> int:
        with _ended_by_interrupts():
            import surm.training.runs

        model = surm.load_run(chosen.run, step=chosen.step).model
        if chosen.rank is not None:
            model, errors = surm.to_low_rank(model, rank=chosen.rank)
            width = max(map(len, errors))
            for path, error in errors.items():
                print(f"{path:<{width}}   rank {chosen.rank}   relative error {error:.2e}")
        surm.export_peft(chosen.out, model, names=chosen.names, encoder_only=chosen.encoder_only)
        print(f"written to {chosen.out}")
        return 0

    return status_of(write)


def _add_step(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--step", type=_step, help="of a step whose checkpoint is kept, or best; what the run ended with if not given"
    )


def _step(text: str) -> int | str:
    if text != "best" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of steps, or best")
    return text if text == "best" else int(text)


def _merge(arguments: list[str]) -> int:
    """`surm merge`: a run's whole model, its adapter folded in."""
    parser = argparse.ArgumentParser(
        prog="surm merge", description="Writes a finished run's whole model, its adapter folded in: to a folder as "
        "transformers loads it (model.safetensors, config.json and preprocessor_config.json or, of texts, the "
        "tokenizer's files), or to a file "
        "NAME.safetensors of our own, which config.model.weights takes (without its head) and which also holds what "
        "transformers has not, such as mean pooling, as the shipped backbone has. What is there is replaced.",
    )  # fmt: skip
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--out", required=True, help="folder, or NAME.safetensors, to write to")
    _add_step(parser)
    chosen = parser.parse_args(arguments)

    def write() -> int:
        with _ended_by_interrupts():
            import surm.training.runs

        run = surm.load_run(chosen.run, step=chosen.step)
        if chosen.out.endswith(".safetensors"):
            surm.save_model(chosen.out, run.model, processor=run.task.processor)
        else:
            labels = [str(name) for name in run.result["classes"]] or None
            also = {"processor": run.task.processor, "tokenizer": run.task.tokenizer}
            surm.export_merged(chosen.out, run.model, labels=labels, **also)
        print(f"written to {chosen.out}")
        return 0

    return status_of(write)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "sweep": _sweep,
    "report": _report,
    "inspect": _inspect,
    "export": _export,
    "merge": _merge,
}

if __name__ == "__main__":
    sys.exit(main())
