"""How far a fine-tune moves the weights, and how similar its features are to those of full fine-tuning.

    python experiments/weight_movement/run.py --cifar10=cifar10.npz --glue=glue
    python experiments/weight_movement/run.py --figure

Trains methods on CIFAR-10 (shipped backbone) and MRPC (MiniLM) as `vit_families` and `glue_methods` do, with one seed
at the rate that they chose (full fine-tuning on CIFAR-10 at 1.6e-4). Each run has a folder under `--workdir` and is not
trained again. For the query, key and value kernel W of every block, merged, a result has 1 - cos(W + ΔW, W), entries as
one vector, and the relative size ‖ΔW‖_F / ‖W‖_F; for every block's output, mean over tokens, on the first 512 test
examples (MRPC has 408), the linear CKA (Kornblith et al. 2019) with the output of full fine-tuning, by the unbiased
estimate of HSIC (Song et al. 2012), which gives 0 for unrelated features. "before" is the pretrained model. Two CPU
cores: forty minutes.
"""

import pathlib
import statistics
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx
from jaxtyping import Float
from matplotlib.figure import Figure

import surm
from experiments.glue_methods import run as glue
from experiments.shared import command, methods, recipes, results, tables
from experiments.vit_families import run as vit
from surm.machine import memory
from surm.models import bert
from surm.peft.together import warm_start
from surm.report import figures
from surm.training import preparation
from surm.training.runs import LoadedRun, load_run

RESULTS = results.of(__file__)
METHODS = ("circulant", "toeplitz", "kronecker", "low_displacement_rank r=1", "low_rank r=1", "low_rank r=8", "full")
TARGETS = r"blocks\.\d+\.attention\.(query|key|value)"
EXAMPLES = 512
TITLES = {"cifar10": "CIFAR-10, vit_micro", "mrpc": "MRPC, MiniLM"}


def flags(task: str, method: str, source: pathlib.Path) -> list[str]:
    """Those of `python -m surm.train` for a method at the rate that its experiment chose."""
    chosen = (vit if task == "cifar10" else glue).RESULTS / f"{task}_{methods.file_name(method)}.json"
    untuned = (task, method) == ("cifar10", "full")
    rate = {"optim.learning_rate": 1.6e-4 if untuned else results.read(chosen)["learning_rate"]}
    return recipes.flags(task, recipes.changes(task, method, source) | rate)


def trained(task: str, method: str, source: pathlib.Path, workdir: pathlib.Path) -> LoadedRun:
    """The run of a method, trained if it is not there; InputError if another run is there."""
    folder = workdir / task / methods.file_name(method)
    recipes.trained(flags(task, method, source), folder)
    with recipes.at_root():
        return load_run(str(folder))


def prepared(config: ml_collections.ConfigDict) -> preparation.Run:
    """The data and the pretrained model of a run's config, with nothing but its head to train."""
    config = config.copy_and_resolve_references()
    config.peft.method, config.optim.learning_rate = "head", None
    return recipes.prepared(config)


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


def measure(task: str, names: list[str], source: pathlib.Path, workdir: pathlib.Path) -> dict[str, Any]:
    """All methods on one task, and full fine-tuning, which they are compared with."""
    runs = {method: trained(task, method, source, workdir) for method in dict.fromkeys(("full", *names))}
    run = prepared(runs["full"].config)
    before, full = surm.detach(run.model), features(run, runs["full"].model)

    def cka(model: nnx.Module) -> list[float]:
        return [linear_cka(*pair) for pair in zip(features(run, model), full, strict=True)]

    rows = {"before": {"cka": cka(before)}}
    for method, found in runs.items():
        merged = surm.merge(found.model)
        told = {name: found.result[name] for name in ("adapter_parameters", "learning_rate", "eval")}
        rows[method] = {**told, "layers": moved(merged, before), "cka": cka(merged)}
        print(f"{task}, {method}: moved, size and CKA {', '.join(_means(rows[method]))}", flush=True)
    return {"task": task, "rows": rows}


def committed() -> dict[str, dict[str, Any]]:
    """The rows of every task."""
    return {task: results.read(RESULTS / f"{task}.json")["rows"] for task in TITLES}


def table() -> str:
    """Means over layers and blocks as Markdown: a row for each method."""
    tasks = committed()
    heads = [head for task in tasks for head in (f"{TITLES[task]}: moved", "size", "CKA")]
    names = dict.fromkeys(name for rows in tasks.values() for name in rows)
    cells = {name: [cell for rows in tasks.values() for cell in _means(rows.get(name, {}))] for name in names}
    return tables.markdown(("method", *heads), [(name, *cells[name]) for name in names])


def _means(row: dict[str, Any]) -> list[str]:
    """Movement and size over the layers, CKA over the blocks; empty where a row has none."""
    layers = row.get("layers", {}).values()
    columns = [layer["movement"] for layer in layers], [layer["size"] for layer in layers], row.get("cka", [])
    return [f"{statistics.fmean(values):.3f}" if values else "" for values in columns]


def draw() -> None:
    """For every task, how far the blocks' kernels moved, and how like full fine-tuning's their outputs are."""
    tasks = committed()
    figure = Figure(figsize=(5.5 * len(tasks), 6.5), layout="constrained")
    axes = figure.subplots(2, len(tasks), squeeze=False)
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


def by_block(layers: dict[str, dict[str, float]]) -> list[float]:
    """The movement of every block, mean over its kernels."""
    blocks: dict[int, list[float]] = {}
    for path, layer in layers.items():
        blocks.setdefault(int(path.split(".")[1]), []).append(layer["movement"])
    return [statistics.fmean(blocks[block]) for block in sorted(blocks)]


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--cifar10", type=command.existing, help="a .npz of CIFAR-10; without it its result stays")
    parser.add_argument("--glue", type=command.existing, help="the folder that holds MRPC; without it its result stays")
    command.several(parser, "--methods", METHODS)
    parser.add_argument("--workdir", type=pathlib.Path, default=results.ROOT / "runs" / "weight_movement")
    command.instead(parser, "--figure", draw, "train nothing")
    arguments = parser.parse_args()
    if not (arguments.cifar10 or arguments.glue):
        parser.error("expected --cifar10, --glue or both")
    memory.keep_freed_memory()
    for task, flag in (("cifar10", "cifar10"), ("mrpc", "glue")):
        if source := getattr(arguments, flag):
            result = measure(task, arguments.methods, source, arguments.workdir.resolve())
            shown = (f"--{flag}={source.name}", f"--methods={','.join(arguments.methods)}")
            results.write(RESULTS / f"{task}.json", {"command": results.own_command(*shown), **result})
    draw()


if __name__ == "__main__":
    command.run(main)
