"""How much of a pretrained model's gradient each family can follow: the share its nearest member catches.

    python experiments/gradient_share/run.py --source=MRPC
    python experiments/gradient_share/run.py --source=MRPC --position=adapter

G is the gradient of the loss with respect to the kernel of a query, key or value of MiniLM (or to the matrix S of an
adapter, at both its positions in a block), summed over 512 training examples of MRPC before anything has trained. The
share is 1 - min ‖G - M‖² / ‖G‖² over the members M of a family (`project`; for products of two factors a local
optimum). A linear family of n dimensions catches 1/n of a matrix without structure. Two CPU cores: two minutes.
"""

import pathlib
import statistics

import jax
import jax.numpy as jnp

from experiments.shared import command, recipes, results
from experiments.shared.members import nearest_error
from surm.peft import surgery
from surm.tasks import metrics
from surm.training import preparation

RESULTS = results.of(__file__)
POSITIONS = {
    "update": (
        f"--config=configs/{recipes.FILES['mrpc']},task=mrpc,method=full",
        r"--config.peft.targets='.*(query|key|value).kernel'",
    ),
    # ΔW = b·a with a the identity: the gradient of b is that of the matrix itself
    "adapter": (
        f"--config=configs/{recipes.FILES['mrpc']},task=mrpc,method=adapter,family=low_rank",
        "--config.peft.options=rank=384",
    ),
}
FAMILIES = {
    "low_rank r=1": ("low_rank", {"rank": 1}),
    "low_rank r=8": ("low_rank", {"rank": 8}),
    "circulant": ("circulant", {}),
    "toeplitz, any": ("toeplitz", {"factors": 1, "symmetric": False}),
    "kronecker": ("kronecker", {}),
    "low_displacement_rank r=1": ("low_displacement_rank", {"rank": 1}),
}
BATCHES = 8


def gradients(prepared: preparation.Run, position: str) -> dict[str, jax.Array]:
    """The gradient of the loss in every matrix of a position, out×in, summed over the first batches."""
    graphdef, trainable, frozen = surgery.split(prepared.model)
    trainable = {path: jnp.eye(*value.shape) if path.endswith(".a") else value for path, value in trainable.items()}

    def loss(trainable, batch):
        outputs = surgery.join(graphdef, trainable, frozen)(**prepared.inputs(batch))
        losses = metrics.losses(outputs, batch["label"], regression=False, label_smoothing=0.0)
        return losses.sum(where=batch["mask"])

    step, batches = jax.jit(jax.grad(loss)), prepared.training_batches(prepared.config.seed)
    total = step(trainable, next(batches))
    for _ in range(BATCHES - 1):
        total = jax.tree.map(jnp.add, total, step(trainable, next(batches)))
    if position == "adapter":
        return {path: gradient for path, gradient in total.items() if path.endswith("delta.parameters.b")}
    return {path: gradient.T for path, gradient in total.items() if path.startswith("blocks")}


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--source", type=pathlib.Path, required=True, help="the folder MRPC in GLUE's layout")
    parser.add_argument("--position", choices=POSITIONS, default="update")
    arguments = parser.parse_args()
    shown = [*POSITIONS[arguments.position], "--config.data.lengths=104", "--config.optim.batch_size=64"]
    flags = [flag.replace("'", "") for flag in shown]
    config = recipes.config([*flags, f"--config.data.source={arguments.source.resolve()}"])
    found = gradients(recipes.prepared(config), arguments.position)
    shares = {}
    for name, (family, options) in FAMILIES.items():
        shares[name] = {path: 1 - nearest_error(gradient, family, options) ** 2 for path, gradient in found.items()}
        print(f"{name}: mean {statistics.fmean(shares[name].values()):.4f}", flush=True)
    result = {
        "command": results.own_command("--source=MRPC", f"--position={arguments.position}"),
        "flags": shown,
        "examples": BATCHES * config.optim.batch_size,
        "mean": {name: statistics.fmean(values.values()) for name, values in shares.items()},
        "shares": shares,
    }
    results.write(RESULTS / f"mrpc_{arguments.position}.json", result)


if __name__ == "__main__":
    command.run(main)
