"""The folder of a run: its config, its metrics as they come, and its result at the end.

It holds config.json, metrics.jsonl, checkpoints/, adapter/, curves.png, result.json, and .lock to keep other runs out;
calibration.json too if the run goes by measurements of `surm calibrate`.

The folder may be in an object store, where nothing can be appended to a file. The lines of metrics.jsonl are then kept
in memory, and the whole file is written before every checkpoint, and every `WRITTEN_EVERY` seconds if there are new
lines.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import ml_collections
from etils import epath

from surm import config as configs
from surm import files
from surm.errors import InputError, one_line
from surm.machine import buckets
from surm.machine.notes import say
from surm.report import run_folder
from surm.report.run_folder import CONFIG, METRICS, RESULT
from surm.rundir import checkpoint_files, going_on, locks

WRITTEN_EVERY = 60.0


class Workdir:
    """One run's folder; every file except the growing `metrics.jsonl` is replaced in one step."""

    def __init__(self, path: str | os.PathLike, config: ml_collections.ConfigDict, *, writes: bool = True):
        """Checks that the folder is free for this run; nothing is written before `claimed`.

        Args:
          path: the folder.
          config: the run's configuration.
          writes: whether this process writes; in the others, methods that write do nothing.

        Raises:
          InputError: if the path is not a folder, or holds the run of another config (the differences are listed).
        """
        self.path = files.path(path)
        self.config, self.writes = config, writes
        self.changes: list[going_on.Change] = []  # of the config since the run was stopped
        self.lock = locks.of(self.path)
        self._lines: list[str] | None = None  # of metrics.jsonl, where nothing can be appended to it
        self._written, self._unwritten = time.monotonic(), False
        if writes:
            self._look()

    def refuse_if_busy(self) -> None:
        """Raises InputError if another run works in the folder; an early check, while `claimed` decides."""
        self.lock.refuse_if_busy()

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Creates the folder and keeps other runs out of it during a `with` block; see `surm.rundir.locks`.

        Raises:
          InputError: if the folder cannot be written, or another run is at work in it.
        """
        with self.lock.held():
            self._refuse_another()  # another run may have worked here since the first check
            if not self.changes:
                self.write_json(CONFIG, self.config.to_dict())
            yield

    @property
    def longer(self) -> bool:
        """Whether the run is to have another length than before."""
        return any(change.decision == "length" for change in self.changes)

    def accept(self) -> None:
        """Accepts a config that differs, once its data and weights are known to match the checkpoint."""
        if not (self.writes and self.changes):
            return
        if self.longer:  # the result of the shorter run is not that of the longer one
            for result in [self.path / RESULT, *self.path.glob("members/*/result.json")]:
                result.unlink(missing_ok=True)
        self.write_json(CONFIG, self.config.to_dict())
        say(f"continuing with another config: {'; '.join(map(str, self.changes))}")

    @property
    def checkpoints(self) -> epath.Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def newest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none."""
        there = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        names = [path.name.removesuffix(checkpoint_files.SUFFIX) for path in there]
        return max((int(name) for name in names if name.isdecimal()), default=None)

    @property
    def adapter(self) -> epath.Path:
        """The folder of the adapter, which is written at the end."""
        return self.path / "adapter"

    def result(self) -> dict[str, Any] | None:
        """The result of the finished run; None if it has not finished."""
        return files.json_object(self.path / RESULT, run_folder.REMEDY)

    def log(self, step: int, split: str, values: dict[str, float]) -> None:
        """Appends one line to `metrics.jsonl`."""
        if not self.writes:
            return
        line = json.dumps({"step": step, "split": split, "values": values}) + "\n"
        if not buckets.holds(self.path):
            with open(self.path / METRICS, "a") as file:
                file.write(line)
            return
        self._kept_lines().append(line)
        self._unwritten = True
        if time.monotonic() - self._written > WRITTEN_EVERY:
            self.flush()

    def flush(self) -> None:
        """Writes everything that was logged; raises OSError if that fails, or another run has the folder now."""
        self.lock.check()
        if self._unwritten:
            files.replace(self.path / METRICS, "".join(self._kept_lines()))
            self._written, self._unwritten = time.monotonic(), False

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; see `run_folder.metrics`."""
        return run_folder.metrics(self.path / METRICS, "".join(self._kept_lines()) if self._unwritten else None)

    def _kept_lines(self) -> list[str]:
        if self._lines is None:
            self._lines = [json.dumps(line) + "\n" for line in self.metrics()]
        return self._lines

    def logged(self, step: int, split: str) -> dict[str, float] | None:
        """The values of one line; None if it has not been written."""
        found = [line["values"] for line in self.metrics() if (line["step"], line["split"]) == (step, split)]
        return found[0] if found else None

    def rewind(self, step: int) -> None:
        """Drops the metrics that a restart from this step will write again."""
        if not self.writes:
            return
        kept = [line for line in self.metrics() if line["step"] <= step]
        self._lines, self._unwritten = None, False
        files.replace(self.path / METRICS, "".join(json.dumps(line) + "\n" for line in kept))

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Writes a JSON file, completely or not at all."""
        self.lock.check()
        files.replace(self.path / name, json.dumps(value, indent=2) + "\n")

    def _look(self) -> None:
        """Refuses a path that is a file, a store that does not answer, or the folder of another run."""
        try:
            if self.path.exists() and not self.path.is_dir():
                raise InputError(f"workdir {str(self.path)!r} is a file, expected a folder")
            self._refuse_another()
        except Exception as error:
            if not buckets.holds(self.path) or isinstance(error, InputError):
                raise
            raise InputError(f"workdir {str(self.path)!r} cannot be read ({one_line(error)}); is the bucket there, and "
                             "are its credentials in the environment?") from error  # fmt: skip

    def _refuse_data(self) -> None:
        """Refuses a new run inside the data that it reads, because the next run would read its files as data."""
        source = self.config.data.source
        if source in ("", "digits", "orders") or source.startswith("tfds:"):
            return
        path, place = _real(self.path), _real(files.path(source))
        if path == place or place in path.parents:
            lies = "is" if path == place else "lies in"
            raise InputError(f"workdir {str(self.path)!r} {lies} config.data.source={source!r}, whose files are "
                             "data; name a folder elsewhere, such as runs/first")  # fmt: skip

    def _refuse_another(self) -> None:
        file = self.path / CONFIG
        if not file.is_file():
            if (self.path / RESULT).exists():
                raise InputError(
                    f"workdir {str(self.path)!r} holds a result.json but no config.json, so it is no run of surm; "
                    "name another workdir"
                )
            self._refuse_data()
            return
        before = configs.of_an_earlier_run(files.read_object(file, run_folder.REMEDY))
        self.changes = going_on.changes(dict(configs.leaves(before)), dict(configs.leaves(self.config)))
        going_on.check(self.changes, self.config, str(self.path), adapter=self.adapter.is_dir())


def _real(path: epath.Path) -> epath.Path:
    """The absolute path, with links followed."""
    return path if buckets.holds(path) else path.resolve()
