"""What the runs of a sweep would take on hardware that is only described: `surm sweep --dry_run --target=...`."""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from surm import report
from surm.sweeps import plan
from surm.sweeps.launchers import Run

COLUMNS = ("fits", "GiB a chip", "ms a step", "a second", "counts", "sent MB", "compiled in s")
"""The columns behind the settings; the time and the rate are those of the roofline."""


def show(runs: Sequence[Run], target: str) -> int:
    """Compiles a step of every run, one after the other in processes of their own, and prints them as a table.

    Args:
      runs: from `surm.sweeps.plan.plan`; nothing is written to their folders.
      target: the name of the target.

    Returns:
      The exit status: 0, or 1 if a step could not be compiled.
    """
    differ, rows, failed = plan.settings(runs), [], {}
    for number, run in enumerate(runs, 1):
        print(f"[{number}/{len(runs)}] {run.name}", file=sys.stderr, flush=True)
        found = _step(run, target)
        if isinstance(found, str):
            failed[run.name] = found
        values = ["-"] * len(COLUMNS) if isinstance(found, str) else _cells(found)
        rows.append([*differ[number - 1].values(), *values])
    words = {*range(len(differ[0]) + 1), len(differ[0]) + COLUMNS.index("counts")}
    print(report.aligned([[*differ[0], *COLUMNS], *rows], words))
    for name, why in failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    return 1 if failed else 0


def _step(run: Run, target: str) -> dict[str, Any] | str:
    """What `surm.train` says of a run's step on a target, or the reason why it says nothing."""
    flags = [flag for flag in run.flags if not flag.startswith("--workdir=")]
    command = [sys.executable, "-m", "surm.train", *flags, "--dry_run", f"--target={target}", "--json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    said = done.stderr.strip().splitlines()
    return said[-1].removeprefix("error: ") if said else f"it ended with status {done.returncode}"


def _cells(step: dict[str, Any]) -> list[str]:
    sent = step["collectives"]
    return [
        "yes" if step["fits"] else "no",
        f"{step['in_all'] / 2**30:.2f}",
        f"{1e3 * step['seconds']:.3g}",
        f"{step['rate']:,.0f}",
        step["counts"],
        "-" if sent is None else f"{sum(one['size'] for one in sent.values()) / 1e6:,.1f}",
        f"{step['compile_seconds']:.0f}",
    ]
