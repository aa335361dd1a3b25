"""surm: fine-tunes Transformers with structured, unrestricted-rank matrices, and shows the results.

    surm train --config=configs/vit_digits.py --workdir=runs/digits     trains one config
    surm sweep --config=configs/vit_digits.py --workdir=runs/sweep      trains the runs that the config's sweep() lists
    surm calibrate --config=configs/vit_digits.py                       times the ways to multiply on this device
    surm generate runs/chat --prompt "Hello"                            continues prompts with a run's language model
    surm report runs/sweep --out report                                 makes one page of many runs
    surm inspect runs/digits                                            describes a run or an adapter
    surm export runs/mrpc --out peft --encoder_only                     writes the adapter in Hugging Face PEFT's files
    surm merge runs/digits --out merged.safetensors                     writes the whole model, with the adapter merged

`surm COMMAND --help` describes a command; `python -m surm` is the same program. The exit status is 0 for success, 1 if
runs of a sweep failed, 2 if an input cannot be used, 3 if a loss was not finite, and 128 + the signal's number if a
signal stopped the command.
"""

import argparse
import contextlib
import dataclasses
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from surm.cli import command_line, flags, generating, help_text
from surm.errors import InputError, nearest
from surm.machine import stopping
from surm.machine.status import status_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: the arguments after the program's name; None takes them from `sys.argv`.

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
    """Makes Ctrl-C end the process immediately during imports, in which an exception can get lost."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# Each command does its own imports, so that `inspect`, `report` and help do not have to import jax.
def _train(arguments: list[str]) -> int:
    if command_line.asks_for_help(arguments):
        return status_of(lambda: help_text.show(flags.TRAIN))
    with stopping.at_once():
        from surm import train

        return train.main(["surm train", *arguments])


def _sweep(arguments: list[str]) -> int:
    if command_line.asks_for_help(arguments):
        return status_of(lambda: help_text.show(flags.SWEEP))
    with _ended_by_interrupts():
        from surm import sweep

    return sweep.main(["surm sweep", *arguments])


def _calibrate(arguments: list[str]) -> int:
    """`surm calibrate`: times the ways to multiply by a run's matrices on this device."""
    if command_line.asks_for_help(arguments):
        return status_of(lambda: help_text.show(flags.CALIBRATE))
    with stopping.at_once("the file of measurements is as it was before, or complete"):
        from surm.machine import processes
        from surm.training.run import calibrate

        def measure() -> int:
            line = command_line.parse(["surm calibrate", *arguments], flags.CALIBRATE)
            seconds = _seconds(line.options["seconds"])
            processes.join(line.options, distributed=line.switches["distributed"])
            with processes.one_voice():
                print(calibrate(line.config, seconds))
            return 0

        return processes.ending(lambda: status_of(measure))


def _seconds(text: str | None) -> float:
    """The value of --seconds, 10 if it is not given; InputError unless it is a finite number above 0."""
    if text is None:
        return 10.0
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"--seconds={text}, expected a finite number above 0")
    return seconds


def _report(arguments: list[str]) -> int:
    from surm.report import __main__ as report

    return report.main(arguments)


def _inspect(arguments: list[str]) -> int:
    """`surm inspect`: describes runs and adapters."""
    from surm.report import inspection

    parser = argparse.ArgumentParser(
        prog="surm inspect", description=inspection.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="+", help="the folder of a run or an adapter")
    folders = parser.parse_args(arguments).folder

    def show() -> int:
        print("\n\n".join(inspection.shown(folder, colour=sys.stdout.isatty()) for folder in folders))
        return 0

    return status_of(show)


def _export(arguments: list[str]) -> int:
    """`surm export`: writes a run's adapter in the files of Hugging Face PEFT."""
    parser = argparse.ArgumentParser(
        prog="surm export", description="Writes a finished run's adapter as adapter_config.json and "
        "adapter_model.safetensors of Hugging Face PEFT, as LoRA, AdaLoRA, C3A or LoKr. transformers must have the "
        "same model, such as a Llama, a BERT or a ViT whose head reads the class token; for a BERT with mean pooling, "
        "use --encoder_only. Existing files of these names are replaced.",
    )  # fmt: skip
    parser.add_argument("run", help="the folder of a finished run")
    parser.add_argument("--out", required=True, help="the folder to write to")
    parser.add_argument("--names", choices=("transformers4", "transformers5"), default="transformers5")
    parser.add_argument(
        "--rank", type=int, help="write the nearest LoRA of this rank and print its error; possible for any family"
    )
    parser.add_argument("--encoder_only", action="store_true", help="leave out the head")
    _add_step(parser)
    chosen = parser.parse_args(arguments)

    def write() -> int:
        with _ended_by_interrupts():
            import surm.training.runs

        run = surm.load_run(chosen.run, step=chosen.step)
        model = run.model
        if chosen.rank is not None:
            model, errors = surm.to_low_rank(model, rank=chosen.rank)
            width = max(map(len, errors))
            for path, error in errors.items():
                print(f"{path:<{width}}   rank {chosen.rank}   relative error {error:.2e}")
        options = {"names": chosen.names, "encoder_only": chosen.encoder_only, "base_model_name": run.base_model_name}
        surm.export_peft(chosen.out, model, **options)
        print(f"written to {chosen.out}")
        return 0

    return status_of(write)


def _add_step(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--step", type=_step, help="a step whose checkpoint was kept, or best; the final adapter if not given"
    )


def _step(text: str) -> int | str:
    if text != "best" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of steps, or best")
    return text if text == "best" else int(text)


def _merge(arguments: list[str]) -> int:
    """`surm merge`: writes a run's whole model with the adapter merged into it."""
    parser = argparse.ArgumentParser(
        prog="surm merge", description="Writes a finished run's whole model with its adapter merged into the weights: "
        "to a folder that transformers can load (model.safetensors, config.json and preprocessor_config.json or, for "
        "texts, the tokenizer's files, with chat template and generation_config.json), or to a file NAME.safetensors "
        "in surm's own format. Such a file is accepted by config.model.weights (which ignores its head), and can also "
        "hold models that transformers does not have, such as a ViT with mean pooling. Existing files are replaced.",
    )  # fmt: skip
    parser.add_argument("run", help="the folder of a finished run")
    parser.add_argument("--out", required=True, help="the folder, or NAME.safetensors, to write to")
    parser.add_argument("--dtype", default="float32", help="of a folder's weights: float32, bfloat16 or float16")
    _add_step(parser)
    chosen = parser.parse_args(arguments)

    def write() -> int:
        with _ended_by_interrupts():
            import surm.training.runs

        run = surm.load_run(chosen.run, step=chosen.step)
        if chosen.out.endswith(".safetensors"):
            surm.save_model(chosen.out, run.model, processor=getattr(run.task, "processor", None))
        else:
            surm.export_merged(chosen.out, run.model, dtype=chosen.dtype, **run.beside)
        print(f"written to {chosen.out}")
        return 0

    return status_of(write)


def _generate(arguments: list[str]) -> int:
    """`surm generate`: continues prompts with a run's language model."""
    parser = generating.parser()
    _add_step(parser)
    chosen = parser.parse_args(arguments)

    def write() -> int:
        generating.check(chosen)
        with _ended_by_interrupts():
            import surm.training.runs
            from surm.training import writing

        run = surm.load_run(chosen.run, step=chosen.step)
        base = dataclasses.replace(run, model=writing.untrained(run.model)).generate if chosen.base else None
        return generating.answer(run.generate, chosen, base)

    return status_of(write)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "sweep": _sweep,
    "calibrate": _calibrate,
    "generate": _generate,
    "report": _report,
    "inspect": _inspect,
    "export": _export,
    "merge": _merge,
}

if __name__ == "__main__":
    sys.exit(main())
