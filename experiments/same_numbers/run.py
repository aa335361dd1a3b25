"""Whether two versions of the library train the same, byte for byte: a demo, a run stopped and continued, and others.

    git worktree add /tmp/before COMMIT
    python experiments/same_numbers/run.py --before=/tmp/before --data=../shared/data

Each run is trained with the code of one tree, then of the other, on this machine: the demo's config; the same stopped
by SIGTERM in its middle and continued; a population of four; CIFAR-10 with Toeplitz; MRPC with MiniLM. Lines of
metrics.jsonl hold no times, so they are compared as bytes. Two CPU cores: ten minutes.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from typing import Any

from experiments.shared import command, processes, recipes, results
from surm.errors import InputError

RESULTS = results.of(__file__)
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "demo": ("digits", {"optim.steps": 60, "eval_every_steps": 20}),
    "continued": ("digits", {"optim.steps": 200, "eval_every_steps": 20, "checkpoint_every_steps": 20}),
    "population": ("digits", {"optim.steps": 20, "population": "seed=0|1,learning_rate=2e-3|4e-3"}),
    "cifar10": (
        "cifar10",
        {
            "data.source": "cifar10.npz", "model.weights": "asset:vit_micro", "data.train_examples": 200,
            "optim.steps": 15, "peft.family": "toeplitz",
        },
    ),
    "mrpc": ("mrpc", {"data.source": "glue/MRPC", "optim.steps": 12, "optim.learning_rate": 1.2e-3}),
}  # fmt: skip
"""The task of every run, and the keys of its config that are changed; sources are below --data."""
STOPPED = ("continued",)


def train(tree: pathlib.Path, name: str, data: pathlib.Path) -> dict[str, bytes]:
    """Trains one of `RUNS` with a tree's code; its logs by path."""
    task, changes = RUNS[name]
    source = {"data.source": data / changes["data.source"]} if "data.source" in changes else {}
    given = recipes.flags(task, changes | source)
    settings = os.environ | {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder, "run")
        if name in STOPPED:
            with processes.Training(given, settings, tree, workdir) as run:
                run.wait_for_step(20)
                run.process.send_signal(signal.SIGTERM)
                if run.process.wait() != 128 + signal.SIGTERM:
                    raise InputError(f"{name} ended with status {run.process.returncode}, expected to be stopped")
        with processes.Training(given, settings, tree, workdir) as run:
            run.result()
        return {str(file.relative_to(workdir)): file.read_bytes() for file in sorted(workdir.rglob("metrics.jsonl"))}


def compared(before: dict[str, bytes], after: dict[str, bytes]) -> dict[str, object]:
    """How many lines two trees' logs have, and whether they are equal."""
    lines = sum(text.count(b"\n") for text in before.values())
    return {"logs": len(before), "lines": lines, "equal": lines > 0 and before == after}


def main() -> int:
    """The command line."""
    parser = command.parser(__doc__)
    told = "a tree of the version to compare with"
    parser.add_argument("--before", type=command.existing, required=True, help=told)
    parser.add_argument("--after", type=command.existing, default=results.ROOT, help="the other one; this tree")
    parser.add_argument("--data", type=pathlib.Path, default="../shared/data", help="holds cifar10.npz and glue/MRPC")
    command.several(parser, "--runs", RUNS)
    arguments = parser.parse_args()
    found, data = {}, arguments.data.resolve()
    for name in arguments.runs:
        found[name] = compared(*(train(tree, name, data) for tree in (arguments.before, arguments.after)))
        print(json.dumps({name: found[name]}), flush=True)
    commit = ["git", "-C", str(arguments.before), "rev-parse", "--short", "HEAD"]
    before = subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip()
    result = {"command": results.own_command("--before=BEFORE"), "before": before, "runs": found}
    results.write(RESULTS / "cpu.json", result)
    if differing := [name for name, run in found.items() if not run["equal"]]:
        print(f"the logs differ: {', '.join(differing)}", file=sys.stderr)
    return int(bool(differing))


if __name__ == "__main__":
    command.run(main)
