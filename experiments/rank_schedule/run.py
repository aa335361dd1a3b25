"""How the families with a rank budget come down to it: the components that are on at every step, and where they end.

    python experiments/rank_schedule/run.py

Trains the demo (configs/vit_digits.py) once with each family, eight components a layer of which four are to be left,
and draws what metrics.jsonl and result.json say. Two CPU cores: eight minutes.
"""

import contextlib
import json
import pathlib
import tempfile
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from surm import command_line, files, train
from surm.result import versions

ROOT = pathlib.Path(__file__).parent.parent.parent
RESULTS = pathlib.Path(__file__).parent / "results"
FAMILIES = ("adalora", "dora_dynamic", "lora2")
OPTIONS = "rank=4,initial_rank=8,every_steps=5"


def measure(family: str) -> dict[str, Any]:
    """Trains one family; the components at every step, those of every layer at the end, and the accuracy."""
    flags = ["--config=configs/vit_digits.py", f"--config.peft.family={family}", f"--config.peft.options={OPTIONS}"]
    flags += ["--config.log_every_steps=1", "--config.optim.learning_rate=1e-2"]
    with tempfile.TemporaryDirectory() as workdir, contextlib.chdir(ROOT):
        result = train.run(command_line.parse(["run", *flags, f"--workdir={workdir}"]).config, workdir)
        lines = map(json.loads, (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines())
        active = {line["step"]: line["values"]["active_rank"] for line in lines if line["split"] == "train"}
    return {
        "family": family,
        "command": " ".join(["python -m surm.train --workdir=DIR", *flags]),
        "eval": result["eval"],
        "steps": [*active],
        "active_rank": [int(rank) for rank in active.values()],
        "active_ranks": result["active_ranks"],
        "versions": versions(),
    }


def draw(results: list[dict[str, Any]], file: pathlib.Path) -> None:
    """The schedules on the left, the layers' ranks at the end on the right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=(2, 3), layout="constrained")
    for number, result in enumerate(results):
        left.plot(result["steps"], result["active_rank"], label=result["family"])
        ranks = result["active_ranks"]
        places = [place + 0.25 * (number - 1) for place in range(len(ranks))]
        right.bar(places, ranks.values(), width=0.25, label=result["family"])
    left.set(xlabel="step", ylabel="components that are on", title="in the whole model", ylim=(0, None))
    names = [name.removeprefix("blocks.").replace(".attention", "") for name in results[0]["active_ranks"]]
    right.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    right.set(ylabel="components at the end", title="in each layer (4 on average)")
    left.legend()
    figure.savefig(file, dpi=150)


def main() -> None:
    """Trains, writes a JSON a family, draws."""
    RESULTS.mkdir(exist_ok=True)
    results = [measure(family) for family in FAMILIES]
    for result in results:
        files.replace(RESULTS / f"{result['family']}.json", json.dumps(result, indent=2) + "\n")
        print(f"{result['family']}: {result['eval']}, {sum(result['active_ranks'].values())} components at the end")
    draw(results, RESULTS / "schedule.png")


if __name__ == "__main__":
    main()
