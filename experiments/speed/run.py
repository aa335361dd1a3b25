"""What an adapter costs: training steps over the floor of the same model, ours and HF PEFT's, alternately in one run.

    python experiments/speed/run.py --shape=bert_base
    python experiments/speed/run.py --shape=vit_b16

The floor trains the head alone, with the gradient flowing through every block. Query and value are adapted, float32.
Every repeat takes one step of everything in turn; a ratio is the median over repeats of the ratio within a repeat. HF
PEFT wants the extra [peers]; --peers=none leaves it out. Two CPU cores: ten minutes a shape.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import ours

import surm
from surm import files
from surm.memory import keep_freed_memory
from surm.train import versions

RESULTS = pathlib.Path(__file__).parent / "results"
TARGETS = r".*\.(query|value)"
BATCH, LENGTH = 8, 128
SPECS: dict[str, dict] = {
    "circulant": {"family": "circulant"},
    "toeplitz": {"family": "toeplitz"},
    "kronecker": {"family": "kronecker"},
    "low_displacement_rank r=1": {"family": "low_displacement_rank", "options": "rank=1"},
    "low_rank r=8": {"family": "low_rank", "options": "rank=8"},
}
PATHS = ("auto", "branch", "fused", "fused_dense")


def timed(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every step in every repeat, after one step each that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, base: str) -> float:
    """The median over repeats of one step's time over another's."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def measure(shape: str, paths: tuple[str, ...], repeats: int, peers: bool) -> dict:
    """Times everything on one shape; a JSON object."""
    steps = {"floor": ours.step(shape, BATCH, LENGTH, None)}
    for name, changes in SPECS.items():
        for path in paths:
            spec = surm.PeftSpec(targets=TARGETS, train=("head",), path=path, **changes)
            steps[f"{name}, {path}"] = ours.step(shape, BATCH, LENGTH, spec)
            print(f"compiled {name}, {path}", file=sys.stderr, flush=True)
    runs = {name: step.run for name, step in steps.items()}
    rows = {
        name: {"temporary_bytes": step.temporary_bytes, "trained_parameters": step.trained_parameters}
        for name, step in steps.items()
    }
    if peers:
        import peers as hf

        for name in (None, *hf.METHODS):
            label = f"HF PEFT {name or 'floor'}"
            runs[label], trained = hf.step(shape, BATCH, LENGTH, name)
            rows[label] = {"trained_parameters": trained}
    seconds = timed(runs, repeats)
    for name, row in rows.items():
        own = "HF PEFT floor" if name.startswith("HF PEFT") else "floor"
        row |= {"median_seconds": statistics.median(seconds[name]), "over_own_floor": ratio(seconds, name, own)}
        if peers:
            row["over_c3a"] = ratio(seconds, name, "HF PEFT C3A")
    return {"shape": shape, "batch": BATCH, "length": LENGTH, "targets": TARGETS, "repeats": repeats, "rows": rows}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(ours.FLOOR), default="bert_base")
    parser.add_argument("--paths", default="auto", help=f"comma-separated, of {', '.join(PATHS)}")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--peers", choices=("peft", "none"), default="peft")
    arguments = parser.parse_args()
    if arguments.repeats < 1 or not set(arguments.paths.split(",")) <= {*PATHS}:
        parser.error(f"expected --repeats of at least 1, and --paths of {', '.join(PATHS)}")
    keep_freed_memory()
    result = measure(arguments.shape, tuple(arguments.paths.split(",")), arguments.repeats, arguments.peers == "peft")
    result |= {"command": " ".join(["python experiments/speed/run.py", *sys.argv[1:]]), "versions": versions()}
    RESULTS.mkdir(exist_ok=True)
    files.replace(RESULTS / f"{arguments.shape}.json", json.dumps(result, indent=2) + "\n")
    for name, row in result["rows"].items():
        print(f"{name:40s} {row['median_seconds']:.3f} s  {row['over_own_floor']:.3f}")


if __name__ == "__main__":
    main()
