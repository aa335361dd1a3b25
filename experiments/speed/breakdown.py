"""Where the time of a training step goes, by the kind of compiled operation.

    python experiments/speed/breakdown.py --shape=bert_base
    python experiments/speed/breakdown.py --shape=bert_base --method=circulant

Steps run under JAX's profiler; an operation's time is that between its start and its end in the trace, the mean over
the steps. Operations can overlap, so the sum may exceed the step. A matmul counts as attention's if it has batch axes;
other operations go by the name that XLA gave the fusion (multiply_erf is GELU). Written to
results/breakdown_SHAPE_METHOD.json, METHOD being `floor` without an update. Two CPU cores: a few minutes.
"""

import collections
import gzip
import json
import pathlib
import re
import statistics
import tempfile
import time

import jax

from experiments.shared import command, methods, results
from experiments.speed import ours
from surm.machine.memory import keep_freed_memory

RESULTS = results.of(__file__)
SHOWN = 15
"""The number of kinds that are named; the rest is `other`."""


def kinds_of(program: str) -> dict[str, str]:
    """The kind of every operation of a compiled program, by the operation's name."""
    kinds = {}
    entry = program[program.index("\nENTRY ") :]
    bodies = dict(re.findall(r"^%?([\w.-]+) \([^\n]*\{\n(.*?)^\}", program, re.MULTILINE | re.DOTALL))
    for name, operation in re.findall(r"^ +(?:ROOT )?%?([\w.-]+) = (.*)$", entry, re.MULTILINE):
        called = re.search(r"(?:calls|to_apply)=%?([\w.-]+)", operation)
        body = operation + bodies.get(called.group(1), "") if called else operation
        if re.search(r"\bdot\(", body):
            kinds[name] = "matmuls of attention" if "lhs_batch_dims={0" in body else "matmuls with weights"
        else:
            of_call = called and " call(" in operation  # which the name of what is called tells more of
            kinds[name] = re.sub(r"[.\d]+$", "", called.group(1) if of_call else name).removesuffix("_fusion")
    return kinds


def breakdown(step: ours.Step, repeats: int) -> tuple[float, dict[str, float]]:
    """Median seconds of a step, and of every kind of operation the mean seconds in a step."""
    for _ in range(repeats):  # until the process has all the memory that a step asks for
        step.run()
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                began = time.perf_counter()
                step.run()
                seconds.append(time.perf_counter() - began)
        (file,) = pathlib.Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    kinds, spent = kinds_of(step.program()), collections.Counter()
    for event in events:
        if event.get("ph") == "X" and event["name"] in kinds:
            spent[kinds[event["name"]]] += event["dur"] / 1e6 / repeats
    return statistics.median(seconds), dict(spent.most_common())


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--shape", choices=ours.SHAPES, default="bert_base")
    parser.add_argument("--method", choices=("floor", *methods.TIMED), default="floor")
    parser.add_argument("--repeats", type=command.count, default=9)
    arguments = parser.parse_args()
    keep_freed_memory()
    setting = ours.Setting(arguments.shape, 8, "float32")
    seconds, kinds = breakdown(ours.step(setting, arguments.method), arguments.repeats)
    named = dict([*kinds.items()][:SHOWN])
    named["other"] = sum(kinds.values()) - sum(named.values())
    for kind, spent in named.items():
        print(f"{1e3 * spent:8.1f} ms  {kind}")
    name = f"breakdown_{arguments.shape}_{arguments.method.split()[0]}.json"
    results.write(RESULTS / name, {"seconds": seconds, "seconds_by_kind": named})


if __name__ == "__main__":
    command.run(main)
