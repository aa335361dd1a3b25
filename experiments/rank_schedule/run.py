"""How the families with a rank budget come down to it: the components that are on at every step, and where they end.

    python experiments/rank_schedule/run.py
    python experiments/rank_schedule/run.py --figure

Trains the demo (configs/vit_digits.py) once with each family, with eight components in every layer, half of which may
stay on average. Between two prunings, as in the papers, switched-off components may come back, so the figure shows what
is left after each pruning. Two CPU cores: eight minutes.
"""

import pathlib
import tempfile
from typing import Any

from matplotlib.figure import Figure

from experiments.shared import command, recipes, results
from surm.report import figures, run_folder

RESULTS = results.of(__file__)
FAMILIES = ("adalora", "dora_dynamic", "lora2")
EVERY_STEPS = 5
OPTIONS = f"rank=4,initial_rank=8,every_steps={EVERY_STEPS}"


def measure(family: str) -> dict[str, Any]:
    """Trains one family; the components at every step, those of every layer at the end, and the accuracy."""
    changes = {"peft.family": family, "peft.options": OPTIONS, "log_every_steps": 1, "optim.learning_rate": 1e-2}
    flags = recipes.flags("digits", changes)
    with tempfile.TemporaryDirectory() as workdir:
        result = recipes.trained(flags, pathlib.Path(workdir))
        lines = run_folder.metrics(pathlib.Path(workdir, run_folder.METRICS))
        active = {line["step"]: line["values"]["active_rank"] for line in lines if line["split"] == "train"}
    return {
        "family": family,
        "command": recipes.command(flags),
        "eval": result["eval"],
        "steps": [*active],
        "active_rank": [int(rank) for rank in active.values()],
        "active_ranks": result["active_ranks"],
    }


def after_prunings(result: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Steps one pruning apart, and the fewest components that are on until the next.

    The first step is left out, because its rate is 0 and so are all gates.
    """
    steps, ranks = result["steps"][1:], result["active_rank"][1:]
    starts = range(0, len(steps), EVERY_STEPS)
    return [steps[i] for i in starts], [min(ranks[i : i + EVERY_STEPS]) for i in starts]


def draw() -> None:
    """The schedules on the left, the layers' ranks at the end on the right."""
    sources = [RESULTS / f"{family}.json" for family in FAMILIES]
    found = [results.read(file) for file in sources]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    for number, result in enumerate(found):
        left.plot(*after_prunings(result), label=result["family"], linewidth=4 - 1.5 * number, zorder=number)
        ranks = result["active_ranks"]
        places = [place + 0.25 * (number - 1) for place in range(len(ranks))]
        right.bar(places, ranks.values(), width=0.25, label=result["family"])
    left.set(xlabel="step", ylabel="components that are on", title="in the whole model", ylim=(0, None))
    names = [name.removeprefix("blocks.").replace(".attention", "") for name in found[0]["active_ranks"]]
    right.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    right.set(ylabel="components at the end", title="in each layer (4 on average)")
    left.legend()
    figures.save(figure, RESULTS / "schedule.png", sources)


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    command.instead(parser, "--figure", draw, "train nothing")
    parser.parse_args()
    for family in FAMILIES:
        result = measure(family)
        results.write(RESULTS / f"{family}.json", result)
        print(f"{family}: {result['eval']}, {sum(result['active_ranks'].values())} components at the end")
    draw()


if __name__ == "__main__":
    command.run(main)
