"""How far a fine-tune moves the weights, and how like full fine-tuning what comes of it is.

    python experiments/weight_movement/run.py --cifar10=cifar10.npz --glue=glue
    python experiments/weight_movement/run.py --figure

Trains methods on CIFAR-10 (shipped backbone) and MRPC (MiniLM) as `vit_families` and `glue_methods` do, one seed at the
rate they chose (full fine-tuning on CIFAR-10 at 1.6e-4), each in a folder under `--workdir` that is not trained again.
For the query, key and value kernel W of every block, merged: 1 - cos(W + ΔW, W), entries as one vector, and the
relative size ‖ΔW‖_F / ‖W‖_F; and the linear CKA (Kornblith et al. 2019) of every block's output, mean over tokens, on
the first 512 test examples (MRPC has 408), with what full fine-tuning has there; by the unbiased estimate of HSIC (Song
et al. 2012), so that unrelated features have 0. "before" is the pretrained model. Two CPU cores: forty minutes.
"""

import argparse
import contextlib
import json
import pathlib
import runpy
import shlex
import statistics
import sys
from typing import Any

import jax
import matplotlib
import ml_collections
import numpy as np
from flax import nnx
from jaxtyping import Float

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import surm
from surm import files, train
from surm.cli import command_line
from surm.errors import InputError
from surm.files import read_object
from surm.machine import memory
from surm.models import bert
from surm.peft.together import warm_start
from surm.report import figures
from surm.rundir.log import NonFiniteError
from surm.training import preparation
from surm.training.result import versions
from surm.training.runs import LoadedRun, load_run

ROOT = pathlib.Path(__file__).parent.parent.parent
RESULTS = pathlib.Path(__file__).parent / "results"
METHODS = ("circulant", "toeplitz", "kronecker", "low_displacement_rank r=1", "low_rank r=1", "low_rank r=8", "full")
TARGETS = r"blocks\.\d+\.attention\.(query|key|value)"
EXAMPLES = 512

vit = runpy.run_path(str(ROOT / "experiments" / "vit_families" / "run.py"))
glue = runpy.run_path(str(ROOT / "experiments" / "glue_methods" / "run.py"))
TITLES = {"cifar10": "CIFAR-10, vit_micro", "mrpc": "MRPC, MiniLM"}


def flags(task: str, method: str, source: pathlib.Path) -> list[str]:
    """Those of `python -m surm.train` for a method at the rate that its experiment chose."""
    name = vit["file_name"](method)
    if task == "cifar10":
        recipe = vit["DATASETS"]["cifar10"]
        methods = vit["METHODS"] | {"full": {"peft.method": "full"}}
        chosen = ROOT / "experiments" / "vit_families" / "results" / f"cifar10_{name}.json"
        rate = 1.6e-4 if method == "full" else json.loads(chosen.read_text())["learning_rate"]
        changes = {**recipe["final"], "data.source": source, **methods[method], "optim.learning_rate": rate}
        return vit["flags"](recipe["config"], changes)
    recipe = glue["TASKS"]["mrpc"]
    chosen = ROOT / "experiments" / "glue_methods" / "results" / f"mrpc_{name}.json"
    changes = {"data.source": source / recipe["folder"], "data.lengths": recipe["lengths"], **recipe["run"]}
    changes |= glue["FIXED"] | glue["METHODS"][method]
    return glue["flags"](changes | {"optim.learning_rate": json.loads(chosen.read_text())["learning_rate"]})


def trained(task: str, method: str, source: pathlib.Path, workdir: pathlib.Path) -> LoadedRun:
    """The run of a method, trained if it is not there; InputError if what is there is another."""
    folder = workdir / task / vit["file_name"](method)
    with contextlib.chdir(ROOT):
        config = command_line.parse(["run", *flags(task, method, source), f"--workdir={folder}"]).config
        train.run(config, str(folder))
        return load_run(str(folder))


def prepared(config: ml_collections.ConfigDict) -> preparation.Run:
    """The data and the pretrained model of a run's config, with nothing but its head to train."""
    config = config.copy_and_resolve_references()
    config.peft.method, config.optim.learning_rate = "head", None
    with contextlib.chdir(ROOT):
        return preparation.prepare(config)


def moved(after: nnx.Module, before: nnx.Module) -> dict[str, dict[str, float]]:
    """By layer, 1 - cos(W + ΔW, W) and ‖ΔW‖ / ‖W‖."""
    found, weights = {}, warm_start.weights(before)
    for path, delta in surm.difference(after, before, targets=TARGETS).items():
        weight = np.asarray(weights[path], np.float64).ravel()
        delta = np.asarray(delta, np.float64).ravel()
        cosine = weight @ (weight + delta) / (np.linalg.norm(weight) * np.linalg.norm(weight + delta))
        found[path] = {"movement": 1 - cosine, "size": np.linalg.norm(delta) / np.linalg.norm(weight)}
    return found


def features(run: preparation.Run, model: nnx.Module) -> list[Float[np.ndarray, "examples width"]]:
    """The outputs of all blocks for the first test examples, means over tokens."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def pooled(state, batch):
        inputs = run.inputs(batch)
        states = nnx.merge(graphdef, state).hidden_states(**inputs)[1:]
        return [bert.mean_of_tokens(tokens, inputs.get("mask")) for tokens in states]

    batches = run.evaluation_batches[""]()
    found = [[np.asarray(block)[batch["mask"]] for block in pooled(state, batch)] for batch in batches]
    return [np.concatenate(block)[:EXAMPLES] for block in zip(*found, strict=True)]


def linear_cka(one: Float[np.ndarray, "examples width"], other: Float[np.ndarray, "examples width"]) -> float:
    """HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)), K = X Xᵀ, L = Y Yᵀ: 1 for the same up to rotation, shift and scale."""
    k, m = (np.asarray(each, np.float64) @ np.asarray(each, np.float64).T for each in (one, other))
    return hsic(k, m) / (hsic(k, k) * hsic(m, m)) ** 0.5


def hsic(k: Float[np.ndarray, "n n"], m: Float[np.ndarray, "n n"]) -> float:
    """The unbiased estimate from two kernels (Song et al. 2012, eq. 5), times n (n - 3)."""
    n = len(k)
    k, m = (each - np.diag(np.diag(each)) for each in (k, m))
    products = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(axis=0) @ m.sum(axis=1))
    return float(np.vdot(k, m) + products)


def measure(task: str, methods: list[str], source: pathlib.Path, workdir: pathlib.Path) -> dict[str, Any]:
    """All methods on one task; full fine-tuning first, which the others are compared with."""
    runs = {method: trained(task, method, source, workdir) for method in ("full", *methods)}
    run = prepared(runs["full"].config)
    before = surm.detach(run.model)
    full = features(run, runs["full"].model)
    rows = {"before": {"cka": [linear_cka(*pair) for pair in zip(features(run, before), full, strict=True)]}}
    for method, found in runs.items():
        merged = surm.merge(found.model)
        rows[method] = {
            "adapter_parameters": found.result["adapter_parameters"],
            "learning_rate": found.result["learning_rate"],
            "eval": found.result["eval"],
            "layers": moved(merged, before),
            "cka": [linear_cka(*pair) for pair in zip(features(run, merged), full, strict=True)],
        }
        layers = rows[method]["layers"].values()
        movement = statistics.fmean(layer["movement"] for layer in layers)
        print(f"{task}, {method}: moved {movement:.4f}, CKA {statistics.fmean(rows[method]['cka']):.4f}", flush=True)
    return {"task": task, "rows": rows, "versions": versions()}


def committed() -> dict[str, dict[str, Any]]:
    """The rows of every task that was measured."""
    found = {task: RESULTS / f"{task}.json" for task in TITLES}
    return {task: read_object(file)["rows"] for task, file in found.items() if file.is_file()}


def table() -> str:
    """Means over layers and blocks as Markdown: a row a method."""
    tasks = committed()
    heads = [f"{TITLES[task]}: moved | size | CKA" for task in tasks]
    rows = [f"| method | {' | '.join(heads)} |", "|---|" + "---:|---:|---:|" * len(tasks)]
    for method in dict.fromkeys(method for of_task in tasks.values() for method in of_task):
        rows.append(f"| {method} | " + " | ".join(_cells(of_task.get(method)) for of_task in tasks.values()) + " |")
    return "\n".join(rows)


def _cells(row: dict[str, Any] | None) -> str:
    if row is None:
        return " | | "
    layers = row.get("layers", {}).values()
    means = (
        f"{statistics.fmean(layer[name] for layer in layers):.3f}" if layers else "" for name in ("movement", "size")
    )
    return " | ".join([*means, f"{statistics.fmean(row['cka']):.3f}"])


def draw() -> None:
    """For every task, how far the blocks' kernels moved, and how like full fine-tuning's their outputs are."""
    tasks = committed()
    figure, axes = plt.subplots(2, len(tasks), figsize=(5.5 * len(tasks), 6.5), layout="constrained", squeeze=False)
    for (above, below), (task, rows) in zip(axes.T, tasks.items(), strict=True):
        for number, (method, row) in enumerate(rows.items()):
            blocks, color = range(1, len(row["cka"]) + 1), "k" if method == "before" else f"C{number}"
            below.plot(blocks, row["cka"], "o:" if method == "before" else "o-", ms=3, color=color, label=method)
            if method != "before":
                above.plot(blocks, by_block(row["layers"]), "o-", ms=3, color=color, label=method)
        above.set(title=TITLES[task], xlabel="block", ylabel="1 - cos(W + ΔW, W), mean of q, k, v", yscale="log")
        below.set(xlabel="block", ylabel="linear CKA with full fine-tuning")
        for place in (above, below):
            place.set_xticks(list(blocks))
    axes[1, 0].legend(fontsize=7)  # the colours are the same above
    figures.save(figure, RESULTS / "movement.png", [RESULTS / f"{task}.json" for task in tasks])
    plt.close(figure)


def by_block(layers: dict[str, dict[str, float]]) -> list[float]:
    """The movement of every block, mean over its kernels."""
    blocks: dict[int, list[float]] = {}
    for path, layer in layers.items():
        blocks.setdefault(int(path.split(".")[1]), []).append(layer["movement"])
    return [statistics.fmean(blocks[block]) for block in sorted(blocks)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=pathlib.Path, help="a .npz of CIFAR-10; not given, its results stay")
    parser.add_argument("--glue", type=pathlib.Path, help="the folder that holds MRPC; likewise")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated; all by default")
    parser.add_argument("--workdir", type=pathlib.Path, default=ROOT / "runs" / "weight_movement")
    parser.add_argument("--figure", action="store_true", help="train nothing")
    parser.add_argument("--table", action="store_true", help="train nothing, print means as Markdown")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    methods = arguments.methods.split(",")
    if unknown := [method for method in methods if method not in METHODS]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(METHODS)}")
    given = {task: path for task, path in (("cifar10", arguments.cifar10), ("mrpc", arguments.glue)) if path}
    if not (arguments.figure or given):
        parser.error("expected --cifar10, --glue or both")
    if missing := [str(path) for path in given.values() if not path.exists()]:
        parser.error(f"there is no {missing[0]}")
    if not (given or committed()):
        parser.error("nothing is measured yet")
    RESULTS.mkdir(exist_ok=True)
    memory.keep_freed_memory()
    for task, source in given.items() if not arguments.figure else ():
        result = measure(task, methods, source.resolve(), arguments.workdir.resolve())
        told = shlex.join(
            [f"--{'cifar10' if task == 'cifar10' else 'glue'}={source.name}", f"--methods={','.join(methods)}"]
        )
        result["command"] = f"python experiments/weight_movement/run.py {told}"
        files.replace(RESULTS / f"{task}.json", json.dumps(result, indent=2) + "\n")
    draw()


if __name__ == "__main__":
    try:
        main()
    except (InputError, NonFiniteError) as error:
        sys.exit(f"error: {error}")
