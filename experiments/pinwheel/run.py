"""The paper's synthetic study: a pinwheel of five spokes, learned by a small net with one structured layer.

    python experiments/pinwheel/run.py
    python experiments/pinwheel/run.py --figure

The net: 2 → 64 with relu, then a 64×64 member of a family, whose first five outputs are the logits. All families have
2n = 128 trained parameters (a Toeplitz matrix of one factor 127) and nothing frozen beneath; "dense" is a free matrix
of 4,096. The bottom layer is frozen at its random values, or trained, or (`deep`) trained with a relu and a trained top
layer behind the member. Ten seeds, each with its own points and initial values, times six learning rates are one
program: 2,000 steps of Adam with 256 of 2,000 points. The rate with the lowest mean log-loss on 2,000 points kept apart
is chosen; log-loss and accuracy are shown on another 2,000. The noise and the net's details are ours. Two CPU cores:
half an hour.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from experiments.shared import command, results, tables
from surm import matrices
from surm.report import figures

RESULTS = results.of(__file__)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "low_rank r=1": ("low_rank", {"rank": 1}),
    "melora r=1": ("melora", {"rank": 1}),
    "kronecker": ("kronecker", {"rank": 8}),
    "circulant": ("circulant", {}),
    "skew_circulant": ("skew_circulant", {}),
    "block_circulant": ("block_circulant", {"block_size": 32}),
    "toeplitz": ("toeplitz", {}),
    "toeplitz, any": ("toeplitz", {"factors": 1, "symmetric": False}),
    "low_displacement_rank r=1": ("low_displacement_rank", {"rank": 1}),
}
NAMES = (*FAMILIES, "dense")
WIDTH, SPOKES, POINTS, BATCH, STEPS, EVERY, SEEDS = 64, 5, 2000, 256, 2000, 50, 10
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SETTINGS = {
    "frozen": "bottom layer frozen",
    "trained": "bottom layer trained",
    "deep": "bottom layer trained, and a top layer behind",
}

Points = tuple[Float[Array, "points 2"], Int[Array, " points"]]
Net = dict[str, Any]


def pinwheel(key: jax.Array) -> Points:
    """Points of five spokes that turn with their distance, and the spokes' numbers.

    A point lies (1 + 0.3 ε₁, 0.2 ε₂) along and across its spoke, which is then turned by 2π k/5 + 0.25 exp(length),
    as in the figures of Johnson et al., Composing graphical models with neural networks (2016).
    """
    noise = jax.random.normal(key, (POINTS, 2))
    along, across = 1 + 0.3 * noise[:, 0], 0.2 * noise[:, 1]
    spoke = jnp.arange(POINTS) % SPOKES
    angle = 2 * jnp.pi * spoke / SPOKES + 0.25 * jnp.exp(along)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return 2 * jnp.stack([cos * along - sin * across, sin * along + cos * across], axis=1), spoke


def middle(name: str, key: jax.Array) -> tuple[dict[str, Array], Callable[..., Array]]:
    """A random member with ‖M‖_F = √n, as a dense matrix with entries of variance 1/n has, and its product."""
    init, rest = jax.random.split(key)
    if name == "dense":
        kernel = jax.random.normal(init, (WIDTH, WIDTH)) / WIDTH**0.5
        return {"kernel": kernel}, lambda params, x: x @ params["kernel"].T
    family, options = FAMILIES[name]
    module = matrices.FAMILIES[family]
    params = module.init(init, WIDTH, WIDTH, **options)
    params = {
        leaf: jnp.where((value == 0).all(), jax.random.normal(jax.random.fold_in(rest, number), value.shape), value)
        for number, (leaf, value) in enumerate(params.items())
    }
    norm = jnp.linalg.norm(module.to_dense(params, WIDTH, WIDTH))
    params = {leaf: value * (WIDTH**0.5 / norm) ** (1 / len(params)) for leaf, value in params.items()}
    return params, lambda params, x: module.matvec(params, x, WIDTH)


def scores(product: Callable[..., Array], net: Net, points: Points) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The mean cross-entropy in nats, and the share of points whose spoke is the most likely."""
    x, spoke = points
    logits = product(net["middle"], jax.nn.relu(x @ net["bottom"]["kernel"] + net["bottom"]["bias"]))
    if "top" in net:
        logits = jax.nn.relu(logits) @ net["top"]["kernel"] + net["top"]["bias"]
    logits = logits[:, :SPOKES]
    log_loss = optax.softmax_cross_entropy_with_integer_labels(logits, spoke).mean()
    return log_loss, (logits.argmax(axis=1) == spoke).mean()


def train(name: str, setting: str, key: jax.Array, rate: Float[Array, ""]) -> Float[Array, "times 3"]:
    """Trains one net; every 50 steps its log-loss on the points that choose the rate, and both scores on new ones."""
    of_data, of_middle, of_bottom, of_top, of_steps = jax.random.split(key, 5)
    points, chosen_by, shown = (pinwheel(jax.random.fold_in(of_data, number)) for number in range(3))
    params, product = middle(name, of_middle)
    net = {"bottom": {"kernel": jax.random.normal(of_bottom, (2, WIDTH)), "bias": jnp.zeros(WIDTH)}, "middle": params}
    if setting == "deep":
        net["top"] = {"kernel": jax.random.normal(of_top, (WIDTH, SPOKES)) / WIDTH**0.5, "bias": jnp.zeros(SPOKES)}
    optimizer = optax.adam(optax.cosine_decay_schedule(1.0, STEPS))

    def step(state, key):
        net, moments = state
        batch = jax.tree.map(lambda array: array[jax.random.randint(key, (BATCH,), 0, POINTS)], points)
        gradients, _ = jax.grad(lambda net: scores(product, net, batch), has_aux=True)(net)
        if setting == "frozen":
            gradients["bottom"] = jax.tree.map(jnp.zeros_like, gradients["bottom"])
        updates, moments = optimizer.update(gradients, moments)
        return (optax.apply_updates(net, jax.tree.map(lambda update: rate * update, updates)), moments), None

    def stretch(state, keys):
        state, _ = jax.lax.scan(step, state, keys)
        net = state[0]
        return state, jnp.stack([scores(product, net, chosen_by)[0], *scores(product, net, shown)])

    keys = jax.random.split(of_steps, STEPS).reshape(STEPS // EVERY, EVERY)
    return jax.lax.scan(stretch, (net, optimizer.init(net)), keys)[1]


def measure(name: str, setting: str, seeds: int) -> dict[str, Any]:
    """All rates and seeds of a family at once; the curves of the best rate."""
    of_seeds = jax.vmap(lambda key, rate: train(name, setting, key, rate), in_axes=(0, None))
    program = jax.jit(jax.vmap(of_seeds, in_axes=(None, 0)))
    losses = np.asarray(program(jax.random.split(jax.random.key(0), seeds), jnp.array(RATES)))  # rate, seed, time, 3
    ends = losses[:, :, -1, 0].mean(axis=1)
    best = int(np.nanargmin(ends))
    curves = losses[best, :, :, 1]
    of_middle = jax.eval_shape(lambda: middle(name, jax.random.key(0))[0])
    return {
        "family": name,
        "setting": setting,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(of_middle)),
        "learning_rate": RATES[best],
        "tuning": {f"{rate:g}": float(end) for rate, end in zip(RATES, ends, strict=True)},
        "steps": list(range(EVERY, STEPS + 1, EVERY)),
        "log_loss": [[float(f"{value:.4g}") for value in curve] for curve in curves],
        "accuracy": float(losses[best, :, -1, 2].mean()),
        "end": {"mean": float(curves[:, -1].mean()), "std": float(curves[:, -1].std(ddof=1)) if seeds > 1 else None},
    }


def committed() -> list[dict[str, Any]]:
    """The results, one for each layer and setting."""
    return results.read(RESULTS / "pinwheel.json")["results"]


def table() -> str:
    """The log-losses at the end as Markdown."""
    cells: dict[str, list[str]] = {}
    for result in committed():
        end, accuracy = result["end"], 100 * result["accuracy"]
        row = cells.setdefault(result["family"], [result["family"], f"{result['parameters']:,}"])
        row.append(f"{end['mean']:.2f} ± {end['std']:.2f}, {accuracy:.0f} %")
    heads = ("layer", "trained in it", "bottom frozen", "bottom trained", "and a top layer")
    return tables.markdown(heads, cells.values())


def draw() -> None:
    """The points, and a panel for each setting: means over seeds with a band of one standard deviation."""
    figure = Figure(figsize=(16, 4), layout="constrained")
    left, *panels = figure.subplots(1, 4, width_ratios=(2, 3, 3, 3))
    x, spoke = pinwheel(jax.random.key(0))
    left.scatter(*x.T, c=spoke, s=2, cmap="tab10", vmax=9)
    left.set(title="the points", xlabel="x₁", ylabel="x₂", aspect="equal")
    for panel, (setting, title) in zip(panels, SETTINGS.items(), strict=True):
        for number, result in enumerate(result for result in committed() if result["setting"] == setting):
            name, curves = result["family"], np.array(result["log_loss"])
            mean, spread = curves.mean(axis=0), curves.std(axis=0, ddof=1)
            label = f"{name} ({result['parameters']:,})"
            panel.plot(result["steps"], mean, color=f"C{number}", label=label, ls=":" if name == "dense" else "-")
            panel.fill_between(result["steps"], mean - spread, mean + spread, color=f"C{number}", alpha=0.15, lw=0)
        panel.set(title=title, xlabel="step", ylabel="log-loss on new points (nats)", ylim=(0, 1.65))
    panels[0].legend(fontsize=7, ncols=2, loc="upper right")
    figures.save(figure, RESULTS / "pinwheel.png", [RESULTS / "pinwheel.json"])


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    command.instead(parser, "--figure", draw, "train nothing")
    parser.parse_args()
    found = []
    for setting, name in itertools.product(SETTINGS, NAMES):
        found.append(measure(name, setting, SEEDS))
        print(f"{setting} {name}: {found[-1]['end']} {found[-1]['tuning']}", flush=True)
    results.write(RESULTS / "pinwheel.json", {"results": found})
    draw()


if __name__ == "__main__":
    command.run(main)
