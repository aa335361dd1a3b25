"""What an adapter costs: training steps over the floor of the same model, ours and HF PEFT's, alternately in one run.

    python experiments/speed/run.py --shape=bert_base
    python experiments/speed/run.py --shape=vit_b16 --paths=auto,branch --peers=none
    python experiments/speed/run.py --shape=bert_base --dtype=bfloat16 --batch=64
    python experiments/speed/run.py --shape=bert_base --name=bert_base_newest
    python experiments/speed/run.py --table

The floor adapts nothing and takes the gradient of every activation; a second floor takes that of those alone which
adapting query and value asks for, so that in the first block it ends there. Query and value are adapted. Every repeat
takes one step of everything, JAX's first and then PyTorch's, in an order drawn anew and after one step of each that is
not counted; a ratio is the median over repeats of the ratio within a repeat. What a step keeps for its backward pass
and asks for beside its arguments is what JAX and XLA say of it; the peak is that of two steps in a process of its own,
above what the process held before the model was built (so with the weights; of JAX on a GPU it is that of the process).
That is read where Linux has it. HF PEFT wants the extra [peers]; --peers=none leaves it out. A run of every method with
auto and the peers is written to results/; --table prints the committed ones as Markdown. Two CPU cores: a quarter of an
hour a shape. On a GPU both JAX and PyTorch use it; a minute and a half.
"""

import argparse
import concurrent.futures
import ctypes
import dataclasses
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Callable

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with PyTorch

import jax

import surm
from experiments.shared import command, methods, results, tables, turns
from experiments.speed import ours
from experiments.speed.ours import Setting
from surm.machine.memory import keep_freed_memory
from surm.peft.multiply import paths
from surm.training.result import versions

RESULTS = results.of(__file__)
TARGETS = r".*\.(query|value)"
LENGTH = 128
PATHS = ("auto", *paths.available("update", "circulant"))
TABLE = {
    "bert_base": "bert_base_cpu_float32_8",
    "vit_b16": "vit_b16_cpu_float32_8",
    "bert_base on an H100": "bert_base_gpu_bfloat16_64",
}
"""The results that --table prints, by what it calls them."""


def labels(names: list[str], chosen: list[str], peers: bool) -> dict[str, tuple[str, str]]:
    """What is measured: by its name in the result, the method or floor, and the path or `peer`."""
    found = {name: (name, "auto") for name in ours.FLOORS}
    for name in names:
        there_are = ("auto", *paths.available("update", methods.spec(name).family))
        found |= {f"{name}, {path}": (name, path) for path in chosen if path in there_are}
    if peers:
        from experiments.speed import peers as hf

        found |= {f"HF PEFT {name}": (name, "peer") for name in (*ours.FLOORS, *hf.METHODS)}
    return found


def spec_of(setting: Setting, method: str, path: str = "auto") -> surm.PeftSpec:
    """What a method, or floor, adapts and trains."""
    if method in ours.FLOORS:
        return ours.floor(setting, method)
    return methods.spec(method, targets=TARGETS, train=("head",), path=path)


def build(setting: Setting, method: str, path: str) -> tuple[Callable[[], None], dict[str, int]]:
    """A step to run, and what is known of it without running it."""
    if path == "peer":
        from experiments.speed import peers as hf

        run, trained = hf.step(setting, method)
        return run, {"trained_parameters": trained}
    step = ours.step(setting, spec_of(setting, method, path))
    return step.run, {
        "trained_parameters": step.trained_parameters,
        "saved_bytes": step.saved_bytes,
        "temporary_bytes": step.temporary_bytes,
    }


def peak_bytes(setting: Setting, label: str) -> int:
    """The peak memory, of the GPU if there is one, of two steps of one thing in a process of their own."""
    flags = [f"--{name}={value}" for name, value in dataclasses.asdict(setting).items() if name != "length"]
    words = [sys.executable, __file__, *flags, f"--one={label}"]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1])


def own_peak_bytes(setting: Setting, label: str) -> int:
    """That peak, of this process."""
    peer = label.startswith("HF PEFT")
    if peer:
        from experiments.speed import peers as hf
    every = labels([*methods.TIMED], [*PATHS], peers=peer)
    before = _status_bytes("VmRSS")
    run, _ = build(setting, *every[label])
    # Building and compiling is not a step: what they freed goes back to the system, then their peak is forgotten.
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    if peer:
        hf.forget_peak()
    run()
    run()
    of_device = hf.peak_bytes() if peer else (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return of_device or _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    """A size that Linux tells of this process."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def measure(setting: Setting, measured: dict[str, tuple[str, str]], repeats: int) -> dict:
    """Times everything in one setting; a JSON object."""
    runs: dict[str, Callable[[], None]] = {}
    rows: dict[str, dict] = {}
    for label, (method, path) in measured.items():
        runs[label], rows[label] = build(setting, method, path)
        print(f"ready: {label}", file=sys.stderr, flush=True)
    peers = [label for label in rows if label.startswith("HF PEFT")]
    seconds = turns.timed(runs, repeats, peers)
    for label, row in rows.items():
        own = "HF PEFT floor" if label in peers else "floor"
        low, row["over_own_floor"], high = turns.ratios(seconds[label], seconds[own])
        row |= {"quartiles_over_own_floor": [low, high], "median_seconds": statistics.median(seconds[label])}
        if "HF PEFT C3A" in rows:
            row["over_c3a"] = turns.ratios(seconds[label], seconds["HF PEFT C3A"])[1]
    return {**dataclasses.asdict(setting), "targets": TARGETS, "repeats": repeats, "rows": rows}


def table() -> str:
    """The committed results as a Markdown table: a column for everything measured, a row for every setting."""
    of_setting = {label: results.read(RESULTS / f"{name}.json")["rows"] for label, name in TABLE.items()}
    rows = of_setting["bert_base"]
    of_peers = [label for label in rows if label.startswith("HF PEFT") and "floor" not in label]
    steps = [label for label in rows if label.endswith(", auto") or label in of_peers]
    heads = [label.removesuffix(", auto").replace("HF PEFT", "PEFT's") for label in steps]
    lines = [["trained beside the head", *(f"{rows[label]['trained_parameters']:,}" for label in steps)]]
    for setting, rows in of_setting.items():
        cells = [f"{rows[label]['over_own_floor']:.2f} ({rows[label]['over_c3a']:.2f})" for label in steps]
        lines.append([f"[{setting}](experiments/speed/results/{TABLE[setting]}.json)", *cells])
    peaks = [[f"{rows[label]['peak_bytes'] / 2**30:.2f}" for rows in of_setting.values()] for label in steps]
    lines.append([f"peak memory, GiB ({', '.join(of_setting)})", *map(", ".join, peaks)])
    return tables.markdown(("", *heads), lines, rule=tables.SPACED)


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--shape", choices=ours.SHAPES, default="bert_base")
    parser.add_argument("--batch", type=command.at_least(1), default=8)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of base and activations")
    command.several(parser, "--methods", methods.TIMED)
    told = f"comma-separated, of {', '.join(PATHS)}"
    parser.add_argument("--paths", type=command.some_of(PATHS), default=["auto"], help=told)
    parser.add_argument("--repeats", type=command.at_least(1), default=9)
    parser.add_argument("--peers", choices=("peft", "none"), default="peft")
    parser.add_argument("--name", help="of the result; by default SHAPE_DEVICE_DTYPE_BATCH")
    command.instead(parser, "--table", table, "time nothing, print what is committed as Markdown")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    setting = Setting(arguments.shape, arguments.batch, LENGTH, arguments.dtype)
    if arguments.one:
        print(own_peak_bytes(setting, arguments.one))
        return
    keep_freed_memory()
    with_peers = arguments.peers == "peft"
    measured = labels(arguments.methods, arguments.paths, with_peers)
    if with_peers:
        from experiments.speed import peers as hf

        if (hf.DEVICE == "cuda") != (jax.default_backend() == "gpu"):
            parser.error(f"JAX runs on {jax.default_backend()}, PyTorch on {hf.DEVICE}: expected one device for both")
    # A GPU's memory is told by process, a CPU's has to hold one alone.
    with concurrent.futures.ThreadPoolExecutor(1 if jax.default_backend() == "cpu" else 8) as pool:
        peaks = dict(zip(measured, pool.map(lambda label: peak_bytes(setting, label), measured), strict=True))
    result = measure(setting, measured, arguments.repeats)
    for label, row in result["rows"].items():
        row["peak_bytes"] = peaks[label]
        print(f"{label:40s} {row['median_seconds']:.3f} s  {row['over_own_floor']:.3f}  {peaks[label] / 2**20:.0f} MiB")
    if not with_peers or "auto" not in arguments.paths or {*arguments.methods} != {*methods.TIMED}:
        print("not written: results hold every method with auto, and the peers")
        return
    result["versions"] = versions() | {"peers": hf.versions()}
    name = arguments.name or f"{arguments.shape}_{jax.default_backend()}_{arguments.dtype}_{arguments.batch}"
    results.write(RESULTS / f"{name}.json", result)


if __name__ == "__main__":
    command.run(main)
