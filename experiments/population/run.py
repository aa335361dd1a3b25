"""What it costs to train runs together: a population of 16 against 16 separate runs, by the real command.

    python experiments/population/run.py
    python experiments/population/run.py --sizes=1,4,16,64 --steps=60
    python experiments/population/run.py --model=smollm2 --steps=5 --turns=1

A population of the demo's config (digits, circulant, dropout), or of circulant updates of all seven maps of SmolLM2 (4
× 128 tokens), with up to four learning rates and as many seeds as its size needs (SmolLM2: weight decays, so that all
members read one batch), and a run alone take turns, each in a process of its own. `over_alone` is the population's
median step over the size times that of the run alone in the same turn, so compilation is in neither; `peak_over_alone`
is the peak memory of its process over that of the run alone. Two CPU cores: five minutes with the defaults, six with
SmolLM2.
"""

import json
import pathlib
import statistics
import tempfile

import jax

from experiments.shared import command, decoders, processes, recipes, results

RESULTS = results.of(__file__)
RATES = ("2e-3", "4e-3", "8e-3", "16e-3")


def population(model: str, size: int) -> str:
    """The value of `config.population`: up to four learning rates, and seeds or weight decays for the rest."""
    rates = min(size, len(RATES))
    if model == "smollm2":
        decays = "|".join(f"{number / 100}" for number in range(size // rates))
        return f"learning_rate={'|'.join(RATES[:rates])},weight_decay={decays}"
    return f"learning_rate={'|'.join(RATES[:rates])},seed={'|'.join(map(str, range(size // rates)))}"


def trained(model: str, steps: int, size: int) -> dict:
    """The result of a population, or, if the size is 0, of a run alone."""
    changes = {"optim.steps": steps} | ({"population": population(model, size)} if size else {})
    with tempfile.TemporaryDirectory() as scratch:
        if model == "digits":
            given = recipes.flags("digits", changes)
        else:
            changes |= {"optim.epochs": 0, "optim.batch_size": 4, "data.packing": True, "data.lengths": 128}
            changes |= {"peft.targets": decoders.MAPS}
            given = decoders.flags(decoders.texts(pathlib.Path(scratch)), changes)
        with processes.Training(given) as run:
            return run.result()


def measure(model: str, size: int, steps: int, turns: int) -> dict:
    """A population against a run alone, in turns."""
    steps_over, peaks_over, examples = [], [], []
    for _ in range(turns):
        alone, together = trained(model, steps, 0), trained(model, steps, size)
        steps_over.append(together["step_seconds_median"] / (size * alone["step_seconds_median"]))
        peaks_over.append(together["peak_bytes"] / alone["peak_bytes"])
        examples.append(size * together["config"]["optim"]["batch_size"] / together["step_seconds_median"])
    return {
        "members": size,
        "over_alone": statistics.median(steps_over),
        "over_alone_each": steps_over,
        "peak_over_alone": statistics.median(peaks_over),
        "examples_per_second": statistics.median(examples),
    }


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    told = "comma-separated numbers of members, 1, 2, 3 or multiples of 4"
    parser.add_argument("--model", choices=("digits", "smollm2"), default="digits", help="digits is the demo's")
    parser.add_argument("--sizes", type=command.counts, default=[16], help=told)
    parser.add_argument("--steps", type=command.count, default=40)
    parser.add_argument("--turns", type=command.count, default=3)
    arguments = parser.parse_args()
    if wrong := [str(size) for size in arguments.sizes if size > 4 and size % 4]:
        parser.error(f"--sizes must be of 1, 2, 3 or multiples of 4, got {', '.join(wrong)}")
    rows = [measure(arguments.model, size, arguments.steps, arguments.turns) for size in arguments.sizes]
    for row in rows:
        print(json.dumps(row))
    results.write(RESULTS / f"{arguments.model}_{jax.default_backend()}.json", {"steps": arguments.steps, "rows": rows})


if __name__ == "__main__":
    command.run(main)
