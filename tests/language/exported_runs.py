"""Two runs of a few steps on the small decoder, from a folder and from a GGUF file, with their merged folders."""

import pathlib
from typing import NamedTuple

from surm import __main__ as command
from surm import train
from tests.language import small_decoder

CONFIG = str(pathlib.Path(__file__).parents[2] / "configs" / "lm_text.py")


class Exported(NamedTuple):
    """A run with what the command line makes of it.

    Attributes:
      weights: the folder or file of the base.
      run: the folder of the run.
      peft: the folder of `surm export`.
      merged: the folder of `surm merge`.
    """

    weights: pathlib.Path
    run: pathlib.Path
    peft: pathlib.Path
    merged: pathlib.Path


def make(folder: pathlib.Path, *, gguf: bool) -> Exported:
    """Makes the run, its adapter in PEFT's files and its merged folder."""
    weights, chats = small_decoder.write(folder / "weights"), small_decoder.write_chats(folder / "chats")
    made = Exported(weights, folder / "run", folder / "peft", folder / "merged")
    if gguf:
        made = made._replace(weights=small_decoder.write_gguf(folder / "gguf", weights))
    trained(made.weights, chats, made.run)
    assert command.main(["export", str(made.run), "--out", str(made.peft)]) == 0
    assert command.main(["merge", str(made.run), "--out", str(made.merged)]) == 0
    return made


def trained(weights: pathlib.Path, chats: pathlib.Path, workdir: pathlib.Path) -> None:
    """Trains a LoRA on queries and downward maps for a few large steps."""
    given = (f"config={CONFIG}:data={chats},family=low_rank", f"config.model.weights={weights}", f"workdir={workdir}",
             r"config.peft.targets=.*\.(query|down)", "config.data.lengths=48", "config.optim.batch_size=8",
             "config.optim.steps=6", "config.optim.schedule=constant", "config.optim.learning_rate=1e-1")  # fmt: skip
    assert train.main(["surm.train", *(f"--{one}" for one in given)]) == 0
