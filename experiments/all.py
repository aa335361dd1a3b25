"""Runs every experiment again, one after another, and writes the tables.

    python experiments/all.py --data=DIR                       # or make experiments DATA=DIR
    python experiments/all.py --data=DIR --only=pinwheel,speed
    python experiments/all.py --list

DIR holds cifar10.npz (x_train, y_train, x_val, y_val, x_test, y_test), glue/ with GLUE's own CoLA, MRPC and SST-2, and
text2sql/ and boolq/ with the questions that written_answers names.
The hours are those of two CPU cores. The speed comparisons need the extra `peers` (PyTorch, PEFT, transformers),
`compiled`, `pods` and `smollm2_parity` what their scripts name, and `gpu` a GPU. Runs in a folder under runs/ go on
where they were stopped and are not trained again when they are done; remove runs/ to train them again. Results are
replaced one by one; `paths` writes what `path="auto"` goes by into the package itself.
"""

import pathlib
import re
import shlex
import subprocess
import sys
from typing import NamedTuple

from experiments.glue_methods.run import OWN, RELATED
from experiments.shared import command
from experiments.shared.results import ROOT


class Step(NamedTuple):
    """One command: a script under experiments/, its arguments, and how long it takes."""

    script: str
    arguments: str
    hours: float

    @property
    def folder(self) -> str:
        """The experiment's."""
        return self.script.split("/")[0]


STEPS = (
    Step("start_up/run.py", "", 0.1),
    Step("image_folder/run.py", "--data={data}/cifar10.npz", 0.3),
    Step("paths/run.py", "", 1.5),
    Step("calibration/run.py", "", 0.1),
    Step("gpu/run.py", "", 0.2),
    Step("compiled/run.py", "", 0.5),
    Step("half_kernels/run.py", "", 0.2),
    Step("pods/run.py", "", 0.7),
    Step("speed/run.py", "--shape=bert_base --repeats=21", 0.5),
    Step("speed/run.py", "--shape=vit_b16 --repeats=15", 0.5),
    Step("speed/breakdown.py", "", 0.1),
    Step("speed/sweep.py", "", 0.1),
    Step("population/run.py", "", 0.1),
    Step("population/run.py", "--model=smollm2 --steps=5 --turns=1", 0.1),
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
    Step("smollm2_parity/run.py", "", 0.1),
    Step("small_memory/run.py", "", 0.4),
    Step("orders/run.py", "", 0.1),
    Step("decoder_speed/run.py", "", 0.3),
    Step("written_answers/run.py", "--data={data} --tasks=geography", 2.5),
    Step("written_answers/run.py", "--data={data} --tasks=restaurants --seeds=3", 4.5),
    Step("written_answers/run.py", "--data={data} --tasks=boolq --methods=untrained,circulant,kronecker", 1.0),
    Step("pareto/run.py", "--source={data}/cifar10.npz", 2.0),
)
DATA = ("cifar10.npz", "glue/CoLA", "glue/MRPC", "glue/SST-2", "text2sql/geography", "text2sql/restaurants", "boolq")


def words_of(step: Step, data: str) -> list[str]:
    """The command that is run, from the clone's root."""
    given = {"data": data, "own": ",".join(OWN), "related": ",".join(RELATED)}
    words = [word.format(**given) for word in step.arguments.split()]
    return [sys.executable, f"experiments/{step.script}", *words]


def _read_by(step: Step) -> set[str]:
    """The files and folders at the top of DIR that a step reads."""
    if step.folder == "written_answers":
        return {"boolq" if "boolq" in step.arguments else "text2sql"}
    return set(re.findall(r"{data}/([\w.]+)", step.arguments))


def main() -> int:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--data", help="the folder that holds cifar10.npz, glue, text2sql and boolq")
    command.several(parser, "--only", dict.fromkeys(step.folder for step in STEPS), "folders under experiments/")
    parser.add_argument("--list", action="store_true", help="show the commands and their hours, run nothing")
    arguments = parser.parse_args()
    steps = [step for step in STEPS if step.folder in arguments.only]
    if arguments.list:
        for step in steps:
            print(f"{step.hours:4.1f} h  python {shlex.join(words_of(step, 'DIR')[1:])}")
        print(f"{sum(step.hours for step in steps):4.1f} h  altogether")
        return 0
    data = pathlib.Path(arguments.data or "nowhere").resolve()
    needed = [name for name in DATA if any(name.split("/")[0] in _read_by(step) for step in steps)]
    missing = [name for name in needed if not (data / name).exists()]
    if missing:
        parser.error(f"--data={arguments.data!r} holds no {missing[0]}; expected a folder with {', '.join(needed)}")
    every = [words_of(step, str(data)) for step in steps]
    every += [[sys.executable, "experiments/pareto/run.py", "--figure"], [sys.executable, "scripts/write_tables.py"]]
    failed = []
    for words in every:
        print(shlex.join(words[1:]), flush=True)
        if subprocess.run(words, cwd=ROOT, check=False).returncode:
            failed.append(shlex.join(words[1:]))
    for told in failed:
        print(f"failed: {told}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    command.run(main)
