"""How near each family comes to a matrix: the error of its nearest member against the trained parameters.

    python experiments/approximation/run.py --targets=random,weights
    python experiments/approximation/run.py --targets=updates --runs=runs/weight_movement
    python experiments/approximation/run.py --figure

The error is ‖M - member‖_F / ‖M‖_F of what `project` finds: the nearest member where a closed form is known, a local
optimum of alternating least squares for W(G,H), two Toeplitz factors, LoRTA and VeRA. The groups of targets:

    random    n×n for n = 64, 100, 144, ten draws each: Wishart BBᵀ with Gaussian B; the same with uniform B ≥ 0, whose
              mean is far from zero; Gaussian; rank 4, and displacement rank 2, plus a tenth of noise
    weights   query and value in every second block of the pretrained vit_micro (192×192) and MiniLM (384×384)
    updates   what full fine-tuning on CIFAR-10 and MRPC added to them, from the runs of `weight_movement`

AdaLoRA, DoRA with dynamic rank, LoRA² and Aurora are as near as low rank of their rank, C3A as block circulant. W(G,H)
is left out where r·n is above 576, because a matrix takes minutes there. LoRA-XS, SVFT and VeRA need a weight that is
updated: a Gaussian one for random targets, the pretrained one for updates. Two CPU cores: half an hour.
"""

import functools
import pathlib
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from matplotlib.figure import Figure

import surm
from experiments.shared import command, recipes, results, tables
from experiments.shared.members import nearest_error
from surm import matrices
from surm.peft import select
from surm.peft.together import warm_start
from surm.report import figures
from surm.training import preparation

RESULTS = results.of(__file__)
TASKS, GROUPS = ("cifar10", "mrpc"), ("random", "weights", "updates")
SIZES, DRAWS, NOISE = (64, 100, 144), 10, 0.1
TARGETS = r"blocks\.[135]\.attention\.(query|value)"

FAMILIES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "low rank": [("low_rank", {"rank": rank}) for rank in (1, 2, 4, 8, 16)],
    "circulant": [("circulant", {"hadamard": False})],
    "skew-circulant": [("skew_circulant", {"hadamard": False})],
    "block circulant": [("block_circulant", {"block_size": "n/2"}), ("block_circulant", {"block_size": "n/4"})],
    "Toeplitz, symmetric": [("toeplitz", {"factors": 1})],
    "Toeplitz": [("toeplitz", {"factors": 1, "symmetric": False})],
    "Toeplitz, two symmetric factors": [("toeplitz", {})],
    "Kronecker": [("kronecker", {"terms": terms}) for terms in (1, 2, 4, 8)],
    "W(G,H)": [("low_displacement_rank", {"rank": rank}) for rank in (1, 2, 4)],
    "MELoRA": [("melora", {"rank": 1})],
    "LoRTA": [("lorta", {"rank": 8, "heads": 4})],
    "LoRA-XS": [("lora_xs", {"rank": 16})],
    "SVFT": [("svft", {})],
    "VeRA": [("vera", {})],
}
"""The members that are measured, by the name of their line in the figure."""
MEMBERS = [(line, family, options) for line, members in FAMILIES.items() for family, options in members]

NAMES = {
    "wishart": "Wishart BBᵀ",
    "noncentred": "BBᵀ, B uniform",
    "gaussian": "Gaussian",
    "rank4": "rank 4 and noise",
    "displacement2": "displacement rank 2 and noise",
    "weights_vit": "weights of vit_micro",
    "weights_minilm": "weights of MiniLM",
    "updates_cifar10": "ΔW of vit_micro on CIFAR-10",
    "updates_mrpc": "ΔW of MiniLM on MRPC",
}


class Target(NamedTuple):
    """Matrices of one kind and size, and the weights that they would be added to; None where that makes no sense."""

    name: str
    matrices: Float[Array, "draws n n"]
    bases: Float[Array, "draws n n"] | None


def random_targets() -> Iterator[Target]:
    """Ten draws of every kind and size."""
    for n in SIZES:
        keys = jax.random.split(jax.random.key(n), 6)
        normal, noise, base = (jax.random.normal(key, (DRAWS, n, n)) for key in keys[:3])
        uniform = jax.random.uniform(keys[3], (DRAWS, n, n))
        left, right = jax.random.normal(keys[4], (2, DRAWS, n, 4))
        g, h = jax.random.normal(keys[5], (2, DRAWS, 2, n))
        yield Target("wishart", normal @ normal.mT, base)
        yield Target("noncentred", uniform @ uniform.mT, base)
        yield Target("gaussian", normal, base)
        yield Target("rank4", left @ right.mT / 2 + NOISE * noise, base)
        displaced = jax.vmap(functools.partial(_displaced, n))(g, h)
        yield Target("displacement2", displaced + NOISE * noise, base)


def _displaced(n: int, g: Float[Array, "2 n"], h: Float[Array, "2 n"]) -> Float[Array, "n n"]:
    """A member of W(G,H) with entries of variance about 1."""
    return matrices.FAMILIES["low_displacement_rank"].to_dense({"g": g, "h": h}, n, n) / (2 * n) ** 0.5


def pretrained() -> Iterator[Target]:
    """The pretrained kernels, n_out×n_in."""
    for name, task in (("vit", "digits"), ("minilm", "mrpc")):
        config = recipes.config(recipes.flags(task, {}))
        with recipes.at_root():
            weights = preparation.weights_of(config)
            model = preparation.base_model(config, weights, "image" if name == "vit" else "text", 2)
        kernels = warm_start.weights(model)
        chosen = select.matching((TARGETS,), kernels, "linear layer")
        yield Target(f"weights_{name}", jnp.stack([kernels[path] for path in chosen]), None)


def updates(runs: pathlib.Path) -> Iterator[Target]:
    """What full fine-tuning added to the same kernels, and those before."""
    for task in TASKS:
        run = surm.load_run(str(runs / task / "full"))
        before = recipes.prepared(run.config).model
        deltas = surm.difference(run.model, before, targets=TARGETS)
        kernels = warm_start.weights(before)
        bases = jnp.stack([kernels[path] for path in deltas])
        yield Target(f"updates_{task}", jnp.stack([*deltas.values()]), bases)


def errors(target: Target, family: str, options: dict[str, Any]) -> list[float]:
    """The relative error of every draw."""
    bases = [None] * len(target.matrices) if target.bases is None else target.bases
    return [nearest_error(matrix, family, options, base) for matrix, base in zip(target.matrices, bases, strict=True)]


def resolved(options: dict[str, Any], n: int) -> dict[str, Any]:
    """Options for one size: "n/2" becomes a number."""
    return {key: n // int(value[2:]) if isinstance(value, str) else value for key, value in options.items()}


def measure(target: Target) -> Iterator[dict[str, Any]]:
    """One row for every family and its options."""
    n = target.matrices.shape[-1]
    for line, family, options in MEMBERS:
        has_no_base = matrices.FAMILIES[family].fixed and target.bases is None
        if has_no_base or (family == "low_displacement_rank" and options["rank"] * n > 576):
            continue
        given = resolved(options, n)
        of_draws = errors(target, family, given)
        yield {
            "target": target.name,
            "n": n,
            "line": line,
            "family": family,
            "options": given,
            "parameters": matrices.FAMILIES[family].num_params(n, n, **given),
            "mean": statistics.fmean(of_draws),
            "std": statistics.stdev(of_draws),
            "errors": [round(error, 5) for error in of_draws],
        }


def committed() -> list[dict[str, Any]]:
    """The rows of every group."""
    return [row for group in GROUPS for row in results.read(RESULTS / f"{group}.json")["rows"]]


def largest(rows: list[dict[str, Any]], target: str) -> list[dict[str, Any]]:
    """A target's rows of the largest size that was measured."""
    of_target = [row for row in rows if row["target"] == target]
    n = max(row["n"] for row in of_target)
    return [row for row in of_target if row["n"] == n]


def table() -> str:
    """The errors as Markdown: a row for each family and its options, a column for each target of the largest size."""
    measured, rows = committed(), []
    of_targets = [largest(measured, name) for name in NAMES]
    for line, _, options in MEMBERS:
        found = [_found(of_target, line, options) for of_target in of_targets]
        told = [f"{key}={value}" for key, value in options.items() if key in ("rank", "terms", "block_size")]
        size = f"{found[0]['parameters'] / found[0]['n']:.3g}"
        rows.append((" ".join([line, *told]), size, *(f"{row['mean']:.3f}" if row else "" for row in found)))
    return tables.markdown(("member", "parameters over n", *NAMES.values()), rows)


def _found(rows: list[dict[str, Any]], line: str, options: dict[str, Any]) -> dict[str, Any] | None:
    return next((row for row in rows if row["line"] == line and row["options"] == resolved(options, row["n"])), None)


def draw() -> None:
    """A panel for each target: error against parameters over n, a line for each family."""
    rows, figure = committed(), Figure(figsize=(13, 10.2), layout="constrained")
    for place, (target, title) in zip(figure.subplots(3, 3).flat, NAMES.items(), strict=True):
        of_target = largest(rows, target)
        n = of_target[0]["n"]
        for number, line in enumerate(FAMILIES):
            if found := [row for row in of_target if row["line"] == line]:
                xs, ys = [row["parameters"] / n for row in found], [row["mean"] for row in found]
                style = {"color": f"C{number % 10}", "marker": "o" if number < 10 else "s", "ms": 4}
                place.errorbar(xs, ys, yerr=[row["std"] for row in found], label=line, lw=1, **style)
        place.set(title=f"{title} ({n}×{n})", xscale="log", ylim=(0, 1.05))
        place.set(xlabel="trained parameters over n", ylabel="relative error")
        place.set_xticks(ticks := [1, 2, 4, 8, 16, 32], labels=ticks)
        place.minorticks_off()
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=7, fontsize=8)
    figures.save(figure, RESULTS / "approximation.png", [RESULTS / f"{group}.json" for group in GROUPS])


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    command.several(parser, "--targets", GROUPS, "groups")
    parser.add_argument("--runs", type=pathlib.Path, default=results.ROOT / "runs" / "weight_movement")
    command.instead(parser, "--figure", draw, "compute nothing")
    arguments = parser.parse_args()
    groups = {"random": random_targets, "weights": pretrained, "updates": lambda: updates(arguments.runs.resolve())}
    full = [arguments.runs / task / "full" / "result.json" for task in TASKS]
    if "updates" in arguments.targets and (missing := [path for path in full if not path.is_file()]):
        parser.error(f"there is no {missing[0]}: run experiments/weight_movement/run.py, or leave out updates")
    for group in arguments.targets:
        rows = []
        for row in (row for target in groups[group]() for row in measure(target)):
            rows.append(row)
            print(f"{row['target']} {row['n']} {row['line']} {row['options']}: {row['mean']:.4f}", flush=True)
        found = {"command": results.own_command(f"--targets={group}"), "rows": rows}
        results.write(RESULTS / f"{group}.json", found)
    draw()


if __name__ == "__main__":
    command.run(main)
