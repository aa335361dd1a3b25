"""How long a run takes to its first step: the demo's command, by the clock of the shell that starts it.

    python experiments/start_up/run.py

`first_step` is the time from the start of the process to the metrics of the first step in metrics.jsonl, when the
second step is already under way; the run is then killed. `cold` compiles everything, `cached` finds what the run before
it compiled (`JAX_COMPILATION_CACHE_DIR`). They take turns; two CPU cores need three minutes.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from surm import files
from surm.training.result import versions

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = pathlib.Path(__file__).parent / "results"


def first_step(cache: pathlib.Path | None) -> float:
    """Seconds from the start of the demo to the metrics of its first step.

    Args:
      cache: where compiled programs are kept; None for nowhere.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(cache)} if cache else {}
    with tempfile.TemporaryDirectory() as folder:
        flags = [
            f"--config={ROOT / 'configs' / 'vit_digits.py'}",
            f"--workdir={folder}/run",
            "--config.log_every_steps=1",
        ]
        metrics, since = pathlib.Path(folder, "run", "metrics.jsonl"), time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "surm.train", *flags],
            cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while process.poll() is None and not (metrics.is_file() and metrics.read_text().endswith("\n")):
            time.sleep(0.01)
        seconds = time.perf_counter() - since
        ended = process.poll() is not None
        process.kill()
        _, error = process.communicate()
    if ended:
        raise RuntimeError(f"the run ended before its first step: {error}")
    return seconds


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    turns = parser.parse_args().turns
    if turns < 1:
        parser.error("expected --turns of at least 1")
    with tempfile.TemporaryDirectory() as cache:
        first_step(pathlib.Path(cache))  # fills it
        each = {"cold": [], "cached": []}
        for _ in range(turns):
            each["cold"].append(first_step(None))
            each["cached"].append(first_step(pathlib.Path(cache)))
    rows = [
        {"start": name, "first_step": statistics.median(seconds), "each": seconds} for name, seconds in each.items()
    ]
    for row in rows:
        print(json.dumps(row))
    command = " ".join(["python experiments/start_up/run.py", *sys.argv[1:]])
    RESULTS.mkdir(exist_ok=True)
    found = {"command": command, "versions": versions(), "rows": rows}
    files.replace(RESULTS / "digits_cpu.json", json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
