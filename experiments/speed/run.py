"""What an adapter costs: training steps over the floor of the same model, ours and HF PEFT's, alternately in one run.

    python experiments/speed/run.py --shape=bert_base
    python experiments/speed/run.py --shape=vit_b16 --paths=auto,branch
    python experiments/speed/run.py --shape=bert_base --dtype=bfloat16 --batch=64
    python experiments/speed/run.py --table

The floor trains the head alone, with the gradient flowing through every block. Query and value are adapted.
Every repeat takes one step of everything in turn; a ratio is the median over repeats of the ratio within a repeat. What
a step keeps for its backward pass and asks for beside its arguments is what JAX and XLA say of it; the peak is that of
a process of its own that takes two steps. HF PEFT wants the extra [peers]; --peers=none leaves it out. --table prints
the committed results of CPUs as Markdown. Two CPU cores: a quarter of an hour a shape. On a GPU both JAX and PyTorch
use it.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with PyTorch

import jax
import ours
from ours import Setting

import surm
from surm import files
from surm.memory import keep_freed_memory
from surm.peft import paths
from surm.train import versions

RESULTS = pathlib.Path(__file__).parent / "results"
TARGETS = r".*\.(query|value)"
LENGTH = 128
SPECS: dict[str, dict] = {
    "circulant": {"family": "circulant"},
    "toeplitz": {"family": "toeplitz"},
    "kronecker": {"family": "kronecker"},
    "low_displacement_rank r=1": {"family": "low_displacement_rank", "options": "rank=1"},
    "low_rank r=8": {"family": "low_rank", "options": "rank=8"},
}
PATHS = ("auto", *paths.available("update", "circulant"))


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


def labels(methods: list[str], chosen: tuple[str, ...], peers: bool) -> dict[str, tuple[str | None, str]]:
    """What is measured: by its name in the result, the method (None for the floor) and the path, or `peer`."""
    found: dict[str, tuple[str | None, str]] = {"floor": (None, "auto")}
    for name in methods:
        there_are = ("auto", *paths.available("update", SPECS[name]["family"]))
        found |= {f"{name}, {path}": (name, path) for path in chosen if path in there_are}
    if peers:
        import peers as hf

        found |= {f"HF PEFT {name or 'floor'}": (name, "peer") for name in (None, *hf.METHODS)}
    return found


def build(setting: Setting, method: str | None, path: str) -> tuple[Callable[[], None], dict[str, int]]:
    """A step to run, and what is known of it without running it."""
    if path == "peer":
        import peers as hf

        run, trained = hf.step(setting, method)
        return run, {"trained_parameters": trained}
    spec = surm.PeftSpec(targets=TARGETS, train=("head",), path=path, **SPECS[method]) if method else None
    step = ours.step(setting, spec)
    return step.run, {
        "trained_parameters": step.trained_parameters,
        "saved_bytes": step.saved_bytes,
        "temporary_bytes": step.temporary_bytes,
    }


def peak_bytes(setting: Setting, label: str) -> int:
    """The peak memory, of the GPU if there is one, for a process that takes two steps of one thing alone."""
    flags = [f"--{name}={value}" for name, value in dataclasses.asdict(setting).items() if name != "length"]
    command = [sys.executable, __file__, *flags, f"--one={label}"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def own_peak_bytes(label: str) -> int:
    """The peak memory of this process so far, of the GPU if there is one."""
    if label.startswith("HF PEFT"):
        import peers as hf

        of_device = hf.peak_bytes()
    else:
        of_device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return of_device or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(setting: Setting, measured: dict[str, tuple[str | None, str]], repeats: int) -> dict:
    """Times everything in one setting; a JSON object."""
    runs: dict[str, Callable[[], None]] = {}
    rows: dict[str, dict] = {}
    for label, (method, path) in measured.items():
        runs[label], rows[label] = build(setting, method, path)
        print(f"ready: {label}", file=sys.stderr, flush=True)
    seconds = timed(runs, repeats)
    runs.clear()
    for label, row in rows.items():
        own = "HF PEFT floor" if label.startswith("HF PEFT") else "floor"
        row |= {"median_seconds": statistics.median(seconds[label]), "over_own_floor": ratio(seconds, label, own)}
        if "HF PEFT C3A" in rows:
            row["over_c3a"] = ratio(seconds, label, "HF PEFT C3A")
        row["peak_bytes"] = peak_bytes(setting, label)
    return {**dataclasses.asdict(setting), "targets": TARGETS, "repeats": repeats, "rows": rows}


def table() -> str:
    """The committed results of CPUs as a Markdown table: a column for everything measured, a row for every shape."""
    names = {shape: f"{shape}_cpu_float32.json" for shape in ours.FLOOR}
    of_shape = {shape: json.loads((RESULTS / name).read_text())["rows"] for shape, name in names.items()}
    rows = of_shape["bert_base"]
    steps = [label for label in rows if not label.endswith("floor")]
    heads = [label.removesuffix(", auto").replace("HF PEFT", "PEFT's") for label in steps]
    lines = [["", *heads], ["---", *["---:"] * len(steps)]]
    lines.append(["trained beside the head", *(f"{rows[label]['trained_parameters']:,}" for label in steps)])
    for shape, rows in of_shape.items():
        cells = [f"{rows[label]['over_own_floor']:.2f} ({rows[label]['over_c3a']:.2f})" for label in steps]
        lines.append([f"[{shape}](experiments/speed/results/{names[shape]})", *cells])
    memory = [[rows[label].get("temporary_bytes") for rows in of_shape.values()] for label in steps]
    in_mib = [", ".join("" if size is None else f"{size / 2**20:.0f}" for size in sizes) for sizes in memory]
    lines.append(["temporary memory, MiB", *(cell.strip(", ") for cell in in_mib)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(ours.FLOOR), default="bert_base")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of base and activations")
    parser.add_argument("--methods", default=",".join(SPECS), help="comma-separated; all by default")
    parser.add_argument("--paths", default="auto", help=f"comma-separated, of {', '.join(PATHS)}")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--peers", choices=("peft", "none"), default="peft")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    methods, chosen = arguments.methods.split(","), tuple(arguments.paths.split(","))
    if min(arguments.repeats, arguments.batch) < 1 or not {*chosen} <= {*PATHS} or not {*methods} <= SPECS.keys():
        parser.error(
            "expected --repeats and --batch of at least 1, "
            f"--paths of {', '.join(PATHS)}, --methods of {', '.join(SPECS)}"
        )
    keep_freed_memory()
    setting = Setting(arguments.shape, arguments.batch, LENGTH, arguments.dtype)
    if arguments.one:
        run, _ = build(setting, *labels([*SPECS], PATHS, peers=arguments.one.startswith("HF"))[arguments.one])
        run()
        run()
        print(own_peak_bytes(arguments.one))
        return
    result = measure(setting, labels(methods, chosen, arguments.peers == "peft"), arguments.repeats)
    result |= {"command": " ".join(["python experiments/speed/run.py", *sys.argv[1:]]), "versions": versions()}
    RESULTS.mkdir(exist_ok=True)
    name = f"{arguments.shape}_{jax.default_backend()}_{arguments.dtype}.json"
    files.replace(RESULTS / name, json.dumps(result, indent=2) + "\n")
    for name, row in result["rows"].items():
        print(f"{name:40s} {row['median_seconds']:.3f} s  {row['over_own_floor']:.3f}")


if __name__ == "__main__":
    main()
