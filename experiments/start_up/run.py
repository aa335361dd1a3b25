"""How long a run takes to its first step: the demo's command, by the clock of the shell that starts it.

    python experiments/start_up/run.py

`first_step` is the time from the start of the process to the metrics of the first step in metrics.jsonl, when the
second step is already under way; the run is then killed. `cold` compiles everything, `cached` finds what the run before
it compiled (`JAX_COMPILATION_CACHE_DIR`). They take turns; two CPU cores need three minutes.
"""

import json
import os
import pathlib
import statistics
import tempfile
import time

from experiments.shared import command, processes, recipes, results

RESULTS = results.of(__file__)


def first_step(cache: pathlib.Path | None) -> float:
    """Seconds from the start of the demo to the metrics of its first step; `cache` keeps compiled programs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(cache)} if cache else {}
    since = time.perf_counter()
    with processes.Training(recipes.flags("digits", {"log_every_steps": 1}), environment) as run:
        run.wait_for_step(1)
        return time.perf_counter() - since


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--turns", type=command.count, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = pathlib.Path(folder)
        first_step(cache)  # fills it
        each = {"cold": [], "cached": []}
        for _ in range(arguments.turns):
            each["cold"].append(first_step(None))
            each["cached"].append(first_step(cache))
    rows = [{"start": name, "first_step": statistics.median(each[name]), "each": each[name]} for name in each]
    for row in rows:
        print(json.dumps(row))
    results.write(RESULTS / "digits_cpu.json", {"rows": rows})


if __name__ == "__main__":
    command.run(main)
