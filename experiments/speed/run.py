"""What an adapter costs: training steps over the floor of the same model, ours and HF PEFT's, alternately in one run.

    python experiments/speed/run.py --shape=bert_base
    python experiments/speed/run.py --shape=vit_b16 --paths=auto,branch --peers=none
    python experiments/speed/run.py --shape=bert_base --dtype=bfloat16 --batch=64
    python experiments/speed/run.py --shape=bert_base --name=bert_base_newest

The floor adapts nothing and takes the gradient of every activation; a second floor takes only the gradients that
adapted queries and values ask for, so that the backward pass ends in the first block. Every repeat takes one step of
everything, JAX's first and then PyTorch's, in a new order and after one step of each that is not counted; a ratio is
the median over repeats of the ratio within a repeat. The bytes that a step keeps for its backward pass and those that
it needs besides its arguments are what JAX and XLA say of it. The peak is that of two steps in a process of their own,
above what the process held before the model was built, so it includes the weights (of JAX on a GPU it is that of the
process). It is read where Linux has it. HF PEFT needs the extra [peers]; --peers=none leaves it out. Only a run of
every method with auto and the peers is written to results/. Two CPU cores: a quarter of an hour for each shape. On a
GPU, which both JAX and PyTorch then use: a minute and a half.
"""

import argparse
import concurrent.futures
import ctypes
import os
import pathlib
import statistics
import subprocess
import sys
import types

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with PyTorch

import jax

from experiments.shared import command, methods, results, tables, turns
from experiments.speed import ours
from experiments.speed.ours import FLOORS, LENGTH, TARGETS, Setting, Step
from surm.machine.memory import keep_freed_memory
from surm.peft.multiply import paths
from surm.training.result import versions

RESULTS = results.of(__file__)
PATHS = ("auto", *paths.available("update", "circulant"))
TABLE = {
    "bert_base": "bert_base_cpu_float32_8",
    "vit_b16": "vit_b16_cpu_float32_8",
    "bert_base on an H100": "bert_base_gpu_bfloat16_64",
}
"""The results that the table shows, by their names in it."""


def peers() -> types.ModuleType:
    """The steps of HF PEFT, which are imported only if they are asked for."""
    from experiments.speed import peers

    return peers


def labels(names: list[str], chosen: list[str], with_peers: bool) -> dict[str, tuple[str, str]]:
    """The things to measure by their name in the result: the method or floor, and its path or `peer`."""
    found = {name: (name, "auto") for name in FLOORS}
    for name in names:
        there_are = ("auto", *paths.available("update", methods.spec(name).family))
        found |= {f"{name}, {path}": (name, path) for path in chosen if path in there_are}
    if with_peers:
        found |= {f"HF PEFT {name}": (name, "peer") for name in (*FLOORS, *peers().METHODS)}
    return found


def build(setting: Setting, method: str, path: str) -> Step:
    """A step of ours, or of HF PEFT."""
    return peers().step(setting, method) if path == "peer" else ours.step(setting, method, path)


def peak_bytes(setting: Setting, label: str) -> int:
    """The peak memory, of the GPU if there is one, of two steps of one thing in a process of their own."""
    flags = [f"--{name}={value}" for name, value in setting._asdict().items()]
    words = [sys.executable, __file__, *flags, f"--one={label}"]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1])


def own_peak_bytes(setting: Setting, label: str) -> int:
    """That peak, of this process."""
    peer = label.startswith("HF PEFT")
    method, path = labels([*methods.TIMED], [*PATHS], with_peers=peer)[label]
    before = _status_bytes("VmRSS")
    step = build(setting, method, path)
    # Building and compiling is not a step: what they freed goes back to the system, then their peak is forgotten.
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    if peer:
        peers().forget_peak()
    step.run()
    step.run()
    of_gpu = peers().peak_bytes() if peer else (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return of_gpu or _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    """A size of this process, as Linux gives it."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def measure(setting: Setting, measured: dict[str, tuple[str, str]], repeats: int) -> dict:
    """Times everything in one setting; a JSON object."""
    steps = {}
    for label, (method, path) in measured.items():
        steps[label] = build(setting, method, path)
        print(f"ready: {label}", file=sys.stderr, flush=True)
    of_peers = [label for label in steps if label.startswith("HF PEFT")]
    seconds = turns.timed({label: step.run for label, step in steps.items()}, repeats, of_peers)
    rows = {}
    for label, step in steps.items():
        floor = seconds["HF PEFT floor" if label in of_peers else "floor"]
        low, middle, high = turns.ratios(seconds[label], floor)
        rows[label] = {**step.known, "over_own_floor": middle, "quartiles_over_own_floor": [low, high]}
        rows[label]["median_seconds"] = statistics.median(seconds[label])
        if of_peers:
            rows[label]["over_c3a"] = turns.ratios(seconds[label], seconds["HF PEFT C3A"])[1]
    return {**setting._asdict(), "length": LENGTH, "targets": TARGETS, "repeats": repeats, "rows": rows}


def table() -> str:
    """The committed results as a Markdown table: a column for every method, a row for every setting."""
    of_setting = {label: results.read(RESULTS / f"{name}.json")["rows"] for label, name in TABLE.items()}
    rows = of_setting["bert_base"]
    steps = [label for label in rows if "floor" not in label and label.partition(", ")[2] in ("", "auto")]
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
    parser.add_argument("--batch", type=command.count, default=8)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of base and activations")
    command.several(parser, "--methods", methods.TIMED)
    command.several(parser, "--paths", PATHS, f"of {', '.join(PATHS)}", ["auto"])
    parser.add_argument("--repeats", type=command.count, default=9)
    parser.add_argument("--peers", choices=("peft", "none"), default="peft")
    parser.add_argument("--name", help="of the result; by default SHAPE_DEVICE_DTYPE_BATCH")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    setting, device = Setting(arguments.shape, arguments.batch, arguments.dtype), jax.default_backend()
    if arguments.one:
        print(own_peak_bytes(setting, arguments.one))
        return
    keep_freed_memory()
    with_peers = arguments.peers == "peft"
    if with_peers and (peers().DEVICE == "cuda") != (device == "gpu"):
        parser.error(f"JAX runs on {device}, PyTorch on {peers().DEVICE}: expected one device for both")
    measured = labels(arguments.methods, arguments.paths, with_peers)
    # A GPU counts memory by process; on a CPU one process at a time must have all of it.
    with concurrent.futures.ThreadPoolExecutor(1 if device == "cpu" else 8) as pool:
        peaks = dict(zip(measured, pool.map(lambda label: peak_bytes(setting, label), measured), strict=True))
    result = measure(setting, measured, arguments.repeats)
    for label, row in result["rows"].items():
        row["peak_bytes"] = peaks[label]
        print(f"{label:40s} {row['median_seconds']:.3f} s  {row['over_own_floor']:.3f}  {peaks[label] / 2**20:.0f} MiB")
    if not with_peers or "auto" not in arguments.paths or {*arguments.methods} != {*methods.TIMED}:
        print("not written: results hold every method with auto, and the peers")
        return
    result["versions"] = versions() | {"peers": peers().versions()}
    name = arguments.name or f"{arguments.shape}_{device}_{arguments.dtype}_{arguments.batch}"
    results.write(RESULTS / f"{name}.json", result)


if __name__ == "__main__":
    command.run(main)
