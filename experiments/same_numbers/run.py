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
import time
from collections.abc import Sequence

from experiments.shared import command, results
from surm.errors import InputError

RESULTS = results.of(__file__)
RUNS = {
    "demo": ("configs/vit_digits.py", "optim.steps=60", "eval_every_steps=20"),
    "continued": ("configs/vit_digits.py", "optim.steps=200", "eval_every_steps=20", "checkpoint_every_steps=20"),
    "population": ("configs/vit_digits.py", "optim.steps=20", "population=seed=0|1,learning_rate=2e-3|4e-3"),
    "cifar10": (
        "configs/vit_cifar.py", "data.source=DATA/cifar10.npz", "model.weights=asset:vit_micro",
        "data.train_examples=200", "optim.steps=15",
        "peft.family=toeplitz",
    ),
    "mrpc": (
        "configs/bert_glue.py:weights=minilm", "data.source=DATA/glue/MRPC", "optim.steps=12",
        "optim.learning_rate=1.2e-3",
    ),
}  # fmt: skip
STOPPED = ("continued",)


def words_of(run: Sequence[str], data: str, workdir: pathlib.Path) -> list[str]:
    """The command of a run."""
    config, *changes = run
    flags = [f"--config.{change}".replace("DATA", data) for change in changes]
    return [sys.executable, "-m", "surm.train", f"--config={config}", f"--workdir={workdir}", *flags]


def train(tree: pathlib.Path, name: str, data: str, workdir: pathlib.Path) -> dict[str, bytes]:
    """Trains one of `RUNS` with a tree's code; its logs by path."""
    settings = os.environ | {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    given = words_of(RUNS[name], data, workdir)
    if name in STOPPED:
        stopped = subprocess.Popen(given, cwd=tree, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while stopped.poll() is None and not _reached(workdir / "metrics.jsonl", 20):
            time.sleep(0.1)
        stopped.send_signal(signal.SIGTERM)
        if stopped.wait() != 128 + signal.SIGTERM:
            raise InputError(f"{name} ended with status {stopped.returncode}, expected to be stopped in its middle")
    subprocess.run(given, cwd=tree, env=settings, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return {str(file.relative_to(workdir)): file.read_bytes() for file in sorted(workdir.rglob("metrics.jsonl"))}


def _reached(file: pathlib.Path, step: int) -> bool:
    return file.is_file() and f'"step": {step},' in file.read_text()


def compared(before: dict[str, bytes], after: dict[str, bytes]) -> dict[str, object]:
    """How many lines two trees' logs have, and whether they are equal."""
    lines = sum(text.count(b"\n") for text in before.values())
    return {"logs": len(before), "lines": lines, "equal": lines > 0 and before == after}


def main() -> int:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--before", type=pathlib.Path, required=True, help="a tree of the version to compare with")
    parser.add_argument("--after", type=pathlib.Path, default=results.ROOT, help="the other one; this tree")
    parser.add_argument("--data", default="../shared/data", help="the folder of cifar10.npz and glue/MRPC")
    command.several(parser, "--runs", RUNS)
    arguments = parser.parse_args()
    trees = command.there(parser, {"before": arguments.before, "after": arguments.after})
    found, data = {}, str(pathlib.Path(arguments.data).resolve())
    for name in arguments.runs:
        with tempfile.TemporaryDirectory() as folder:
            each = [train(tree, name, data, pathlib.Path(folder, side)) for side, tree in trees.items()]
        found[name] = compared(*each)
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
