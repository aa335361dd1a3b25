"""What training runs together costs: a population of 16 against 16 runs of their own, by the real command.

    python experiments/population/run.py
    python experiments/population/run.py --sizes=1,4,16,64 --steps=60

The demo's config (digits, circulant, dropout) with four learning rates and as many seeds as the size asks for, and one
run alone, take turns, each in a process of its own. `over_alone` is the median step of the population over the size
times that of the run alone in the same turn, so compilation is in neither; `peak_over_alone` is the peak memory of its
process over that of the run alone. On two CPU cores five minutes with the defaults.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import jax

from surm import files
from surm.training.result import versions

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = pathlib.Path(__file__).parent / "results"
RATES = ("2e-3", "4e-3", "8e-3", "16e-3")


def population(size: int) -> str:
    """So many members: up to four learning rates, the rest seeds."""
    rates = min(size, len(RATES))
    return f"learning_rate={'|'.join(RATES[:rates])},seed={'|'.join(map(str, range(size // rates)))}"


def trained(folder: pathlib.Path, steps: int, size: int) -> dict:
    """The result of one command; of size 0 a run alone."""
    flags = [f"--config={ROOT / 'configs' / 'vit_digits.py'}", f"--workdir={folder}", f"--config.optim.steps={steps}"]
    flags += [f"--config.population={population(size)}"] if size else []
    subprocess.run([sys.executable, "-m", "surm.train", *flags], cwd=ROOT, check=True, capture_output=True)
    return json.loads((folder / "result.json").read_text())


def measure(size: int, steps: int, turns: int) -> dict:
    """A population against a run alone, in turns."""
    steps_over, peaks_over, examples = [], [], []
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            alone = trained(pathlib.Path(folder) / "alone", steps, 0)
            together = trained(pathlib.Path(folder) / "together", steps, size)
        steps_over.append(together["step_seconds_median"] / (size * alone["step_seconds_median"]))
        peaks_over.append(together["peak_bytes"] / alone["peak_bytes"])
        examples.append(size * together["config"]["optim"]["batch_size"] / together["step_seconds_median"])
    return {
        "members": size,
        "over_alone": statistics.median(steps_over),
        "over_alone_each": steps_over,
        "peak_over_alone": statistics.median(peaks_over),
        "examples_per_second": statistics.median(examples),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="16", help="comma-separated numbers of members, 1, 2, 3 or multiples of 4")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    if min(arguments.steps, arguments.turns, *sizes) < 1 or any(size > 4 and size % 4 for size in sizes):
        parser.error("expected --steps and --turns of at least 1, --sizes of 1, 2, 3 or multiples of 4")
    rows = [measure(size, arguments.steps, arguments.turns) for size in sizes]
    for row in rows:
        print(json.dumps(row))
    command = " ".join(["python experiments/population/run.py", *sys.argv[1:]])
    result = {"command": command, "versions": versions(), "steps": arguments.steps, "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    files.replace(RESULTS / f"digits_{jax.default_backend()}.json", json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
