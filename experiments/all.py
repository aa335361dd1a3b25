"""Runs every experiment again, one after another, and writes the tables.

    python experiments/all.py --data=DIR                       # or make experiments DATA=DIR
    python experiments/all.py --data=DIR --only=pinwheel,speed
    python experiments/all.py --list

DIR holds cifar10.npz (x_train, y_train, x_val, y_val, x_test, y_test) and glue/ with GLUE's own CoLA, MRPC and SST-2.
Hours are of two CPU cores. The speed comparison needs the extra `peers` (PyTorch, PEFT, transformers), `compiled` the
compilers that its script names. What trains in a
folder under runs/ goes on where it was stopped, and is not trained again once it is done: remove runs/ for that.
Results are replaced one by one; `paths` writes what `path="auto"` goes by into the package itself.
"""

import argparse
import pathlib
import shlex
import subprocess
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent


class Step(NamedTuple):
    """One command: a script under experiments/, its arguments, and how long it takes."""

    script: str
    arguments: str
    hours: float


STEPS = (
    Step("start_up/run.py", "", 0.1),
    Step("image_folder/run.py", "--data={data}/cifar10.npz", 0.3),
    Step("paths/run.py", "", 1.5),
    Step("compiled/run.py", "", 0.5),
    Step("speed/run.py", "--shape=bert_base --repeats=21", 0.5),
    Step("speed/run.py", "--shape=vit_b16 --repeats=15", 0.5),
    Step("speed/breakdown.py", "", 0.1),
    Step("speed/sweep.py", "", 0.1),
    Step("population/run.py", "", 0.1),
    Step("serving/run.py", "--shape=vit_micro", 0.3),
    Step("step_time/run.py", "--cifar10={data}/cifar10.npz --glue={data}/glue", 0.3),
    Step("rank_schedule/run.py", "", 0.2),
    Step("pinwheel/run.py", "", 0.3),
    Step("gradient_share/run.py", "--source={data}/glue/MRPC", 0.1),
    Step("gradient_share/run.py", "--source={data}/glue/MRPC --position=adapter", 0.1),
    Step("vit_families/run.py", "--dataset=digits --methods=head,circulant", 0.1),
    Step("vit_families/run.py", "--dataset=cifar10 --source={data}/cifar10.npz", 1.5),
    Step("glue_methods/run.py", "--data={data}/glue --tasks=mrpc --seeds=3 --methods={own}", 6.0),
    Step("glue_methods/run.py", "--data={data}/glue --tasks=cola,sst2 --methods={own}", 6.0),
    Step("glue_methods/run.py", "--data={data}/glue --tasks=mrpc --untuned --methods={related}", 1.2),
    Step("weight_movement/run.py", "--cifar10={data}/cifar10.npz --glue={data}/glue", 0.7),
    Step("approximation/run.py", "", 0.5),
    Step("pareto/run.py", "--source={data}/cifar10.npz", 2.0),
)
OWN = (
    "head,low_rank r=1,circulant,toeplitz,kronecker,low_displacement_rank r=1,low_rank r=8,adapter circulant,"
    "adapter kronecker,adapter low_displacement_rank r=1,bottleneck 16,bottleneck 64,full"
)
RELATED = (
    "c3a,melora r=1,lora_xs r=16,vera,adalora r=1,dora_dynamic r=1,lora2,lorta r=8,svft,aurora r=16,"
    "low_rank r=1 with magnitude,hadamard_adapter,loko low_rank r=1"
)
"""The methods of `glue_methods` by how they were measured: tuned on all tasks, or at the middle rate on MRPC."""
DATA = ("cifar10.npz", "glue/CoLA", "glue/MRPC", "glue/SST-2")


def command(step: Step, data: str) -> list[str]:
    """What is run, from the project's root."""
    words = [word.format(data=data, own=OWN, related=RELATED) for word in step.arguments.split()]
    return [sys.executable, f"experiments/{step.script}", *words]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="the folder that holds cifar10.npz and glue")
    parser.add_argument("--only", help="folders under experiments/, comma-separated; all by default")
    parser.add_argument("--list", action="store_true", help="show the commands and their hours, run nothing")
    arguments = parser.parse_args()
    folders = list(dict.fromkeys(step.script.split("/")[0] for step in STEPS))
    chosen = arguments.only.split(",") if arguments.only else folders
    if unknown := [name for name in chosen if name not in folders]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(folders)}")
    steps = [step for step in STEPS if step.script.split("/")[0] in chosen]
    if arguments.list:
        for step in steps:
            print(f"{step.hours:4.1f} h  python {shlex.join(command(step, 'DIR')[1:])}")
        print(f"{sum(step.hours for step in steps):4.1f} h  altogether")
        return 0
    data = pathlib.Path(arguments.data or "nowhere").resolve()
    missing = [name for name in DATA if not (data / name).exists()]
    if missing and any("{data}" in step.arguments for step in steps):
        parser.error(f"--data={arguments.data!r} holds no {missing[0]}; expected a folder with {', '.join(DATA)}")
    words = [command(step, str(data)) for step in steps]
    words += [[sys.executable, "experiments/pareto/run.py", "--figure"], [sys.executable, "scripts/write_tables.py"]]
    failed = []
    for each in words:
        print(shlex.join(each[1:]), flush=True)
        if subprocess.run(each, cwd=ROOT, check=False).returncode:
            failed.append(shlex.join(each[1:]))
    for told in failed:
        print(f"failed: {told}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
