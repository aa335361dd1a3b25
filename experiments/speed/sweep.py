"""How the bare product grows with n, 128 to 8192: every family by FFT, by DFT or thin matmuls, and the dense matrix.

    python experiments/speed/sweep.py
    python experiments/speed/sweep.py --figure

Forward and backward, with the gradients of the vectors and of the parameters, for 256 vectors in float32; dense is
x·Wᵀ with W a trained n×n matrix. All take turns at every n, in a new order each time; the median over repeats counts.
Two CPU cores: two minutes.
"""

import functools
import json
import statistics
from collections.abc import Callable

import jax
from matplotlib.figure import Figure

from experiments.shared import command, results, turns
from surm import matrices
from surm.machine.memory import keep_freed_memory
from surm.matrices.algebra import dft, fourier
from surm.peft.multiply import timing
from surm.report import figures

RESULTS = results.of(__file__)
SIZES = (128, 256, 512, 768, 1024, 2048, 4096, 8192)
ROWS = 256
FAMILIES = ("circulant", "toeplitz", "low_displacement_rank", "kronecker", "low_rank")


NAMES = ("dense", *FAMILIES, *(f"{family} dft" for family in FAMILIES if matrices.FAMILIES[family].convolutional))
"""What is measured: dense, the families, and those that convolve with the DFT in place of the FFT."""


def step(name: str, n: int) -> Callable[[], object]:
    """A compiled forward and backward pass with n×n parameters; waits for its result."""
    key, x = jax.random.key(0), jax.random.normal(jax.random.key(1), (ROWS, n))
    if name == "dense":
        kernel = {"w": jax.random.normal(key, (n, n))}
        return _once(lambda params, _, x: x @ params["w"].T, kernel, x)
    family, _, way = name.partition(" ")
    module = matrices.FAMILIES[family]
    chosen = {"convolve": dft.convolve if way == "dft" else fourier.convolve} if module.convolutional else {}
    params = jax.tree.map(lambda value: value + 0.01, module.init(key, n, n))
    return _once(lambda params, _, x: module.matvec(params, x, n, **chosen), params, x)


def _once(product: Callable[..., jax.Array], params: dict[str, jax.Array], x: jax.Array) -> Callable[[], object]:
    passes = timing.both_passes(product, params, {}, x, timing.gradient_of_answer(x, x.shape[-1]))
    return functools.partial(passes, 1)


def measure(n: int, repeats: int) -> dict[str, float]:
    """Median seconds of everything at one n."""
    seconds = turns.timed({name: step(name, n) for name in NAMES}, repeats)
    return {name: statistics.median(times) for name, times in seconds.items()}


def draw() -> None:
    """The times over n, both logarithmic."""
    result = results.read(RESULTS / "sweep.json")
    sizes = [point["n"] for point in result["points"]]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in result["points"][0]["seconds"]:
        times = [1e3 * point["seconds"][name] for point in result["points"]]
        style = {"color": "black", "linewidth": 2} if name == "dense" else {"linestyle": "--" if "dft" in name else "-"}
        axes.plot(sizes, times, marker="o", markersize=3, label=name, **style)
    axes.set(xscale="log", yscale="log", xlabel="n", ylabel="forward and backward, ms", xticks=sizes, xticklabels=sizes)
    axes.set_title(f"{ROWS} vectors, float32, {result['versions']['machine']}", fontsize=9)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figures.save(figure, RESULTS / "sweep.png", [RESULTS / "sweep.json"])


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--repeats", type=command.count, default=9)
    command.instead(parser, "--figure", draw, "time nothing")
    arguments = parser.parse_args()
    keep_freed_memory()
    points = []
    for n in SIZES:
        points.append({"n": n, "seconds": measure(n, arguments.repeats)})
        print(json.dumps(points[-1]), flush=True)
    results.write(RESULTS / "sweep.json", {"rows": ROWS, "points": points})
    draw()


if __name__ == "__main__":
    command.run(main)
