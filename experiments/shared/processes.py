"""Training by the real command, in a process of its own, watched while it runs."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from experiments.shared.results import ROOT
from surm.errors import InputError, one_line


class Training:
    """`python -m surm.train` in a process and a folder of its own; both are gone after a `with` block."""

    def __init__(self, flags: Sequence[str], environment: Mapping[str, str] | None = None):
        self._scratch = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self._scratch.name, "run")
        self._said = open(f"{self._scratch.name}/said", "w+")  # noqa: SIM115  closed by __exit__
        words = [sys.executable, "-m", "surm.train", *flags, f"--workdir={self.folder}"]
        self.process = subprocess.Popen(
            words, cwd=ROOT, env={**(os.environ if environment is None else environment)},
            stdout=self._said, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._said.close()
        self._scratch.cleanup()

    def wait_for_step(self, steps: int) -> None:
        """Waits until the metrics of so many steps are written; InputError if the run ends before."""
        metrics = self.folder / "metrics.jsonl"
        while not (metrics.is_file() and metrics.read_text().count("\n") >= steps):
            if self.process.poll() is not None:
                raise InputError(f"the run ended before step {steps}: {self._last_words()}")
            time.sleep(0.01)

    def result(self) -> dict[str, Any]:
        """What result.json holds at the end; InputError if the run fails."""
        if self.process.wait():
            raise InputError(f"the run failed: {self._last_words()}")
        return json.loads((self.folder / "result.json").read_text())

    def _last_words(self) -> str:
        self._said.seek(0)
        return one_line([*filter(str.strip, self._said), "nothing was said"][-2:][0])
