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
    """`python -m surm.train` in a process of its own, which has ended after a `with` block.

    Without a `workdir` the run has a temporary folder, which is then gone, too. `tree` is the clone whose code trains.
    """

    def __init__(
        self,
        flags: Sequence[str],
        environment: Mapping[str, str] = os.environ,
        tree: pathlib.Path = ROOT,
        workdir: pathlib.Path | None = None,
    ):
        self._scratch = tempfile.TemporaryDirectory()
        self.folder = workdir or pathlib.Path(self._scratch.name, "run")
        self._said = open(f"{self._scratch.name}/said", "w+")  # noqa: SIM115  closed by __exit__
        words = [sys.executable, "-m", "surm.train", *flags, f"--workdir={self.folder}"]
        self.process = subprocess.Popen(
            words, cwd=tree, env=dict(environment), stdout=self._said, stderr=subprocess.STDOUT
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._said.close()
        self._scratch.cleanup()

    def wait_for_step(self, step: int) -> None:
        """Waits until the metrics of a step are written; InputError if the run ends before."""
        metrics = self.folder / "metrics.jsonl"
        while not (metrics.is_file() and f'"step": {step},' in metrics.read_text()):
            if self.process.poll() is not None:
                raise InputError(f"the run ended before step {step}: {self._last_words()}")
            time.sleep(0.01)

    def result(self) -> dict[str, Any]:
        """The content of result.json at the end; InputError if the run fails."""
        if self.process.wait():
            raise InputError(f"the run failed: {self._last_words()}")
        return json.loads((self.folder / "result.json").read_text())

    def _last_words(self) -> str:
        self._said.seek(0)
        return one_line([*filter(str.strip, self._said), "nothing was said"][-2:][0])
