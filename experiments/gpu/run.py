"""What do our updates cost on a GPU? The one script for whoever has a GPU for a quarter of an hour.

    python experiments/gpu/run.py
    python experiments/gpu/run.py --minutes=5 --parts=bert_base,paths --results=/tmp/measured
    python experiments/gpu/run.py --small --minutes=2 --results=/tmp/tried

bert_base        steps on 64 texts of 128 tokens, query and value adapted, everything in bfloat16: ours, and HF PEFT's
                 LoRA, C3A and LoKr where PyTorch with CUDA, transformers and peft can be imported
llama3_2_1b      the same on 4 rows of 1,024 tokens (one row on a device with less than 60 GB), all seven maps of every
                 block adapted, on random weights that are made on the device
paths            one layer by every path, bfloat16, sizes of 768, 576 and 1536, at first with 8,192 rows
bert_base_again  BERT-base by the paths that `paths` found to be faster, and Toeplitz by FFTs
peaks            the memory at its peak of two steps of ours in a process of their own

Every part runs in a process of its own, which is ended when its share of the minutes is over, so that a part that fails
or takes long costs no other one. What is measured is written at once, and what is not reached is named. Ratios are
medians over rounds in which everything takes one step, JAX's first and then PyTorch's. The last lines are the bars with
their figures. --small tries all of it at small sizes, also on a CPU; its figures say nothing.

By `paths.json` the choice of `path="auto"` can be improved:

    cp experiments/gpu/results/paths.json surm/peft/multiply/measured/gpu.json
"""

import argparse
import concurrent.futures
import contextlib
import gc
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.gpu import bars
from experiments.shared import command, results
from surm import files
from surm.errors import InputError, one_line

RESULTS = results.of(__file__)
PARTS = {"bert_base": 0.23, "llama3_2_1b": 0.27, "paths": 0.28, "bert_base_again": 0.10, "peaks": 0.12}
"""The parts in their order, with their shares of the time; what one leaves is the next one's."""
FEWEST_SECONDS = 5.0
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # PyTorch needs some of it
    "CUDA_VISIBLE_DEVICES": "0",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
"""Of the parts' processes, where it is not set otherwise; they share compiled programs, too."""


def table() -> str:
    """The table of experiments/README.md."""
    return bars.table(RESULTS)


def run_all(given: argparse.Namespace) -> int:
    """Runs the parts one after another, and says at the end what there is."""
    began, whole = time.time(), 60 * given.minutes
    shares, passed, ended = {name: PARTS[name] for name in given.parts}, 0.0, {}
    for name, share in shares.items():
        passed += share / sum(shares.values())
        ended[name], status = in_a_process(given, name, began + passed * whole)
        if status == 2 and len(ended) == 1:
            return status  # the part has said why in a line, and it holds for all
        files.replace(
            given.results / "parts.json", json.dumps({"command": asked(given), "ended": ended}, indent=2) + "\n"
        )
    said = not_reached(given.results, ended)
    print(*said, "", bars.table(given.results), sep="\n", flush=True)
    return int(any(text.startswith("failed") for text in ended.values()))


def in_a_process(given: argparse.Namespace, name: str, until: float) -> tuple[str, int | None]:
    """Runs one part until it ends or its time is over; says which, and with which status it ended."""
    began = time.time()
    if until - began < FEWEST_SECONDS:
        return f"not started: {max(until - began, 0):.0f} s were left", None
    print(f"{name}: {until - began:.0f} s", file=sys.stderr, flush=True)
    process = subprocess.Popen(words(given, f"--part={name}", f"--until={until}"), process_group=0)
    try:
        status = process.wait(until - time.time())
    except subprocess.TimeoutExpired:
        return f"stopped when its time was over, after {time.time() - began:.0f} s", None
    finally:
        _end(process)
    return (f"failed with status {status}" if status else f"done in {time.time() - began:.0f} s"), status


def _end(process: subprocess.Popen) -> None:
    """Ends a process with those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def words(given: argparse.Namespace, *more: str) -> list[str]:
    """The command of a part."""
    return [sys.executable, __file__, *flags(given), f"--results={given.results}", *more]


def flags(given: argparse.Namespace) -> list[str]:
    """What was asked for, without the folder."""
    parts = [f"--parts={','.join(given.parts)}"] if given.parts != [*PARTS] else []
    return [f"--minutes={given.minutes:g}", *parts, *(["--small"] if given.small else [])]


def asked(given: argparse.Namespace) -> str:
    """The command as results name it."""
    return results.own_command(*flags(given))


def not_reached(folder: pathlib.Path, ended: Mapping[str, str]) -> list[str]:
    """A line for every part, and one for each of its steps, waves and programs that were not reached or failed."""
    lines = []
    for name, text in ended.items():
        lines.append(f"{name}: {text}")
        told = files.json_object(folder / f"{'waves' if name == 'paths' else name}.json") or {}
        missing = [label for label in told.get("asked", []) if label not in {**told["rows"], **told["failed"]}]
        lines += [f"  not reached: {label}" for label in [*missing, *told.get("not_reached", [])]]
        lines += [f"  only in part: {label}" for label in told.get("in_part", [])]
        failed = told.get("failed", {})
        for reason in dict.fromkeys(failed.values()):
            lines.append(f"  without {', '.join(one for one in failed if failed[one] == reason)}: {reason}")
    return lines


def run_part(given: argparse.Namespace) -> None:
    """Runs one part in this process."""
    import jax

    from experiments.gpu import grid, steps
    from surm.machine.memory import keep_freed_memory

    keep_freed_memory()
    if jax.default_backend() == "cpu" and not given.small:
        raise InputError("JAX found no accelerator; --small tries the script on a CPU")
    named = {"command": asked(given)}
    of = lambda name: lambda found: results.write(given.results / f"{name}.json", named | found)  # noqa: E731
    own = [steps.Named(method) for method in (steps.SMALL if given.small else steps.OURS)]
    adapted = [one.method for one in own if one.method != steps.FLOOR]
    if given.part == "paths":
        grid.measure(given.results / "paths.json", given.until, given.small, of("waves"), named)
    elif given.part == "peaks":
        peaks(given, adapted[:1] if given.small else adapted, of("peaks"))
    elif given.part == "bert_base_again":
        again = others(given.results / "paths.json", given.small)
        steps.measure("bert_base", again, given.until, given.small, of("bert_base_again"), with_peers=False)
    else:
        steps.measure(given.part, own, given.until, given.small, of(given.part))


def others(file: pathlib.Path, small: bool) -> list[Any]:
    """LoRA; Toeplitz as it is chosen and by FFTs; and methods by a path that is faster in the measured points."""
    from experiments.gpu import grid, steps

    if small:
        return [steps.Named(steps.LORA), steps.Named("kronecker", "branch")]
    points = [grid.Point(*(point[key] for key in grid.Point.__dataclass_fields__)) for point in _of_bert(file)]
    found = [steps.Named(steps.LORA), steps.Named("toeplitz"), steps.Named("toeplitz", "branch")]
    for point, row in zip(points, _of_bert(file), strict=True):
        best = min(row["seconds"], key=row["seconds"].__getitem__)
        names = [method for method in steps.OURS if method != steps.FLOOR and grid.is_of(point, method)]
        found += [steps.Named(name, best) for name in names if best != row["chosen"]]
    return [*dict.fromkeys(found)]


def _of_bert(file: pathlib.Path) -> list[dict[str, Any]]:
    """The measured points of BERT-base's layers and batch."""
    points = (files.json_object(file) or {}).get("points", [])
    return [point for point in points if (point["n_out"], point["n_in"], point["rows"]) == (768, 768, 8192)]


def peaks(given: argparse.Namespace, own: Sequence[str], write: Any) -> None:
    """The peaks of ours, some at once; each is written as soon as it is known."""
    every = [(model, method) for method in own for model in bars.MODELS]
    found: dict[str, Any] = {model: {} for model in bars.MODELS}
    found |= {"not_reached": [": ".join(one) for one in every], "failed": {}}
    write(found)

    def one(model: str, method: str) -> int:
        done = subprocess.run(words(given, f"--peak={model}:{method}"), stdout=subprocess.PIPE, text=True, check=True)
        return int(done.stdout.split()[-1])

    with concurrent.futures.ThreadPoolExecutor(max(os.cpu_count() // 3, 1)) as pool:
        for future in concurrent.futures.as_completed(futures := {pool.submit(one, *each): each for each in every}):
            model, method = futures[future]
            if error := future.exception():
                found["failed"][f"{model}: {method}"] = one_line(error)
            else:
                found[model][method] = future.result()
            found["not_reached"].remove(f"{model}: {method}")
            write(found)


def own_peak(given: argparse.Namespace) -> int:
    """The peak of this process, on the device if it says so, after two steps of a model with a method."""
    import jax

    from experiments.gpu import steps

    model, method = given.peak.split(":")
    step = steps.own_builder(model, given.small)(method, "auto")
    gc.collect()  # what only building needed
    step.run()
    step.run()
    of_device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return of_device or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def ended_at_once(act: Callable[[], None]) -> None:
    """Ends this process after a function, without waiting for programs that threads still compile."""
    try:
        status = command.status(act)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> int:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="of everything")
    command.several(parser, "--parts", PARTS, "what is measured")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="the folder that is written to")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the script; needs --results")
    for flag, kind in (("--part", str), ("--until", float), ("--peak", str)):
        parser.add_argument(flag, type=kind, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.results = given.results.resolve()
    if given.peak:
        print(own_peak(given))
        return 0
    if given.part:
        ended_at_once(lambda: run_part(given))
    if given.small and given.results == RESULTS.resolve():
        raise InputError("--small needs --results=DIR, because figures of small sizes are no results")
    if not given.minutes > 0:
        raise InputError(f"--minutes must be above 0, got {given.minutes:g}")
    given.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        own = {"JAX_COMPILATION_CACHE_DIR": cache}
        own |= {"OMP_NUM_THREADS": "1"} if given.small else {}  # PyTorch's threads would wait for one another
        for name, value in {**ENVIRONMENT, **own}.items():
            os.environ.setdefault(name, value)
        return run_all(given)


if __name__ == "__main__":
    command.run(main)
