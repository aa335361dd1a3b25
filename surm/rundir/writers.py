"""Writers that show metrics while a run trains, beside metrics.jsonl: TensorBoard and Weights & Biases, both extras."""

import importlib
import os
import pathlib
import struct
import time
import uuid
from typing import Protocol, runtime_checkable

import ml_collections

from surm import files
from surm.errors import InputError, nearest, one_line
from surm.machine import notes
from surm.rundir import mirror
from surm.rundir.workdir import Workdir

_BLOCK = 32768  # bytes, in the files of Weights & Biases


@runtime_checkable
class Writer(Protocol):
    """Something that shows metrics."""

    def start(self, step: int) -> None:
        """Opens the writer; metrics of later steps, written before the run was stopped, will come again."""

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Writes the metrics of a split after a step."""

    def flush(self) -> None:
        """Saves everything so far, whatever then happens to the process."""

    def close(self) -> None:
        """Waits until everything is written."""


class TensorBoard:
    """Event files in the run's folder `tensorboard`; `tensorboard --logdir=DIR` shows those of all runs below DIR."""

    needs = "tensorboardX"

    def __init__(self, folder: Workdir):
        """Writes below a run's folder."""
        self._folder, self._events = mirror.Mirror(folder.path / "tensorboard"), None

    def start(self, step: int) -> None:
        """See `Writer`; TensorBoard drops the steps that come again."""
        import tensorboardX

        place = self._folder.place
        before = place.is_dir() and any(place.iterdir())
        self._events = tensorboardX.SummaryWriter(str(self._folder.here), purge_step=step + 1 if before else None)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """See `Writer`; the names are `split/metric`."""
        for name, value in values.items():
            self._events.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        """See `Writer`."""
        self._events.flush()
        self._folder.send()

    def close(self) -> None:
        """See `Writer`."""
        if self._events:
            self._events.close()
            self._folder.send()


class WeightsAndBiases:
    """A run of Weights & Biases, named as the run's folder, in the group of the folder above it.

    Its project is `WANDB_PROJECT`, or `surm`. With `WANDB_MODE=offline` it stays in the run's folder `wandb` until
    `wandb sync`. A continued run keeps its id; repeated steps are the same as those already there.
    """

    needs = "wandb"

    def __init__(self, folder: Workdir):
        """Writes below a run's folder."""
        self._folder, self._run = folder, None
        self._local = mirror.Mirror(folder.path / "wandb")

    def start(self, _: int) -> None:
        """See `Writer`; raises InputError if Weights & Biases cannot be reached or refuses the login."""
        import wandb

        path = files.absolute(self._folder.path)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "surm"), name=path.name, group=path.parent.name,
                id=self._id(), resume="allow", reinit="create_new", dir=self._local.here.parent.absolute(),
                config=self._folder.config.to_dict(),
            )  # fmt: skip
        except wandb.errors.Error as error:
            raise InputError(
                f"config.writers={self._folder.config.writers!r}: Weights & Biases says {one_line(error)!r}; run "
                "`wandb login`, or set WANDB_MODE=offline"
            ) from error

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """See `Writer`; the names are `split/metric`."""
        self._run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def flush(self) -> None:
        """See `Writer`; the writer's own process keeps the data."""

    def close(self) -> None:
        """See `Writer`."""
        if self._run:
            written = pathlib.Path(self._run.settings.sync_file)
            self._run.finish()
            if self._local.is_remote:
                _wait_until_whole(written)
                self._local.send()

    def _id(self) -> str:
        file = self._folder.path / "wandb_id"
        if not file.is_file():
            files.replace(file, uuid.uuid4().hex)
        return file.read_text()


def _wait_until_whole(written: pathlib.Path, seconds: float = 60) -> None:
    """Waits for the file of a finished run, because its process still writes after `finish` (wandb 0.28)."""
    until = time.monotonic() + seconds
    while not is_whole(written):
        if time.monotonic() > until:
            notes.say(f"Weights & Biases did not end {written.name} within {seconds:g} s; the file is sent incomplete")
            return
        time.sleep(0.02)


def is_whole(written: pathlib.Path) -> bool:
    """Whether the last record of a run's file is the one that marks its end.

    A header of 7 bytes is followed by blocks of 32 KiB, of which the first is shorter by the header. Records follow one
    another and are split where a block ends. Each part has a checksum, its length, and its place in the record (1
    whole, 2 first, 3 middle, 4 last). Fewer than 7 bytes at the end of a block are unused.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    data, at, record = written.read_bytes(), 7, b""
    while at < len(data):
        if (left := _BLOCK - at % _BLOCK) < 7:
            at += left
            continue
        if at + 7 > len(data):
            return False
        size, place = struct.unpack_from("<HB", data, at + 4)
        part, at = data[at + 7 : at + 7 + size], at + 7 + size
        record = part if place in (1, 2) else record + part
    try:
        return at == len(data) and wandb_internal_pb2.Record.FromString(record).HasField("exit")
    except DecodeError:
        return False


WRITERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def check(config: ml_collections.ConfigDict) -> None:
    """Raises InputError if `config.writers` names a writer that is unknown or not installed."""
    for name in _names(config):
        if name not in WRITERS:
            raise InputError(f"config.writers={config.writers!r} names {name!r}; {nearest(name, WRITERS)}")
        try:
            importlib.import_module(WRITERS[name].needs)
        except ImportError as error:
            raise InputError(
                f"config.writers={config.writers!r} needs {WRITERS[name].needs}: pip install 'surm[{name}]'"
            ) from error


def of(folder: Workdir) -> list[Writer]:
    """The writers of a run; empty in a process that does not write.

    Args:
      folder: the folder of the run, whose config names the writers.

    Returns:
      The writers, not yet started.
    """
    return [WRITERS[name](folder) for name in _names(folder.config)] if folder.writes else []


def _names(config: ml_collections.ConfigDict) -> list[str]:
    return [name.strip() for name in config.writers.split(",") if name.strip()]
