"""What XLA's compilers say of every family's product on hardware that is not there: a described TPU v5e and H200.

    pip install -e . 'jax[tpu]==0.10.2' nvidia-cuda-nvcc-cu12==12.9.86
    pip install --no-deps jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2
    python experiments/compiled/run.py
    python experiments/compiled/run.py --paths=branch,branch_dft,branch_dense --surm=/tmp/surm-0.1.0 --label=0.1.0 \
        --together=1 --limit=120
    python experiments/compiled/run.py --table

One linear layer with its update, bfloat16, 8,192 tokens × 768: the output, and the gradients of the input and of the
update's parameters. Each is compiled in processes of its own, which end after --limit seconds. Compile times are
medians of --repeats, in seconds that processors were at work, so that other work on the machine counts little. Bytes
and optimal seconds are the TPU compiler's own estimate (it takes away a second for every operation that it has no
estimate for, as FFTs); that for GPUs has none. No autotuning, cuBLAS for all products. Two CPU cores: half an hour,
with the FFTs of 0.1.0 two hours.

--surm names a folder with another version of this project, as `git worktree add /tmp/surm-0.1.0 80ee3ca` makes one.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.compiled.product import Product
from experiments.shared import command, results, tables
from surm import files, matrices

HERE = pathlib.Path(__file__).parent
RESULTS = results.of(__file__)
FAMILIES = (
    "low_rank", "circulant", "skew_circulant", "toeplitz", "kronecker", "low_displacement_rank", "block_circulant",
    "monarch", "diagonal_circulant", "c3a", "melora", "lora_xs", "vera", "adalora", "dora_dynamic", "lora2", "lorta",
    "aurora", "svft",
)  # fmt: skip
BASELINE = "low_rank"
HARDWARE = ("v5e", "h200")
ROWS = 8192
TPU = {"TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_SKIP_MDS_QUERY": "1"}


def environment(surm: str) -> dict[str, str]:
    """The environment of a process that compiles."""
    import nvidia.cuda_nvcc

    (cuda,) = nvidia.cuda_nvcc.__path__
    options = (f"--xla_gpu_cuda_data_dir={cuda}", "--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false")
    own = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(options), "PYTHONPATH": surm, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return {**os.environ, **TPU, **own}


def in_a_process(products: Sequence[Product], arguments: argparse.Namespace) -> list[list[Any]]:
    """What a process of its own says of the products that it compiled before its time was over."""
    words = [sys.executable, str(HERE / "product.py"), json.dumps([*map(dataclasses.asdict, products)])]
    limit = lambda: resource.setrlimit(resource.RLIMIT_CPU, (arguments.limit, arguments.limit + 5))  # noqa: E731
    given = {"env": environment(arguments.surm), "preexec_fn": limit}
    done = subprocess.run(words, capture_output=True, text=True, check=False, **given)
    if done.returncode > 0:
        done.check_returncode()
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[{")]


def row(product: Product, lines: Sequence[Any], limit: int) -> dict[str, Any]:
    """What processes said of one product, with the median of the seconds."""
    own = [line for line in lines if line[0] == dataclasses.asdict(product)]
    if not own:
        return {**dataclasses.asdict(product), "given_up_after_seconds": limit}
    seconds = [line[1] for line in own]
    return {**own[0][0], **own[0][2], "compile_seconds": statistics.median(seconds), "compiled": len(own)}


def named(row: Mapping[str, Any]) -> str:
    """The name of a row in the results."""
    return f"{row['family']} {row['path']}" + (f" {row['rows']}" if row["rows"] != ROWS else "")


def versions() -> dict[str, str]:
    """Those of the compilers."""
    names = ("jax", "jaxlib", "flax", "libtpu", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12")
    return {name: importlib.metadata.version(name) for name in names} | {"processors": str(os.cpu_count())}


def compile_all(arguments: argparse.Namespace) -> None:
    """Every product that was asked for; each hardware's file is written anew after each process."""
    n_out, n_in = map(int, arguments.shape.split("x"))
    order = lambda row: (row["rows"], FAMILIES.index(row["family"]), row["path"])  # noqa: E731
    for hardware in arguments.hardware:
        asked = [
            Product(hardware, family, path, n_out, n_in, int(rows))
            for rows in arguments.rows.split(",")
            for family in arguments.families
            for path in (["auto"] if family == BASELINE else arguments.paths.split(","))
            if not path.endswith("_dft") or matrices.FAMILIES[family].convolutional
        ]
        file = RESULTS / f"{hardware}_{arguments.shape}_{arguments.label}.json"
        for first in range(0, len(asked), arguments.together):
            products = asked[first : first + arguments.together]
            lines = [line for _ in range(arguments.repeats) for line in in_a_process(products, arguments)]
            rows = [row(product, lines, arguments.limit) for product in products]
            made = {named(row): {"surm": arguments.label, "versions": versions()} for row in rows}
            results.put(file, "rows", rows, made, named, order)
            print(*map(json.dumps, rows), sep="\n", flush=True)


def page() -> str:
    """README.md: a table for each result, and the commands that made it."""
    words = __doc__.split("\n\n")
    parts = ["# What XLA's compilers say of hardware that is not there", words[2], CAPTION]
    for file in sorted(RESULTS.glob("*.json")):
        result = results.read(file)
        commands = dict.fromkeys(f"`{one['command']}`" for one in result["made"].values())
        with_default = RESULTS / f"{file.stem.rsplit('_', 1)[0]}_now.json"
        known = [*result["rows"], *(results.read(with_default)["rows"] if with_default.is_file() else [])]
        baselines = {row["rows"]: row for row in reversed(known) if row["family"] == BASELINE}
        rows = [cells(row, baselines[row["rows"]]) for row in result["rows"]]
        table = tables.markdown(COLUMNS, rows, names=2, rule=tables.SPACED)
        parts += [f"## {file.stem.replace('_', ', ')}", "\n".join(commands), table]
    return "\n\n".join(parts) + "\n"


CAPTION = (
    "× is over LoRA r=8, which `low_rank` is by its default; a dash stands where the compiler does not say. Written by "
    "`python experiments/compiled/run.py --table`."
)
COLUMNS = (
    "family", "path", "tokens", "FFTs", "gathers, scatters", "compile s", "×", "GB", "×", "optimal ms", "temporary MiB",
    "×",
)  # fmt: skip


def cells(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> tuple[str, ...]:
    """One line of a table."""
    tokens = f"{row['rows']:,}"
    if "given_up_after_seconds" in row:
        return row["family"], row["path"], tokens, "", "", f"over {row['given_up_after_seconds']}", *["-"] * 6
    operations = row["operations"]

    def shown(key: str, unit: float, digits: int = 2) -> str:
        return "-" if row[key] is None else f"{row[key] / unit:.{digits}f}"

    def over(key: str) -> str:
        return f"{row[key] / baseline[key]:.2f}" if row[key] and baseline[key] else "-"

    return (
        row["family"], row["path"], tokens, str(operations["fft"]), str(operations["gather"] + operations["scatter"]),
        shown("compile_seconds", 1), over("compile_seconds"), shown("bytes", 1e9), over("bytes"),
        shown("optimal_seconds", 1e-3), shown("temporary_bytes", 2**20, 1), over("temporary_bytes"),
    )  # fmt: skip


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__)
    command.several(parser, "--hardware", HARDWARE)
    command.several(parser, "--families", FAMILIES)
    parser.add_argument("--paths", default="auto", help="comma-separated")
    parser.add_argument("--shape", default="768x768", help="n_out x n_in")
    parser.add_argument("--rows", default=str(ROWS), help="comma-separated numbers of tokens")
    parser.add_argument("--repeats", type=command.count, default=3)
    told = "products in one process, which may share kernels"
    parser.add_argument("--together", type=command.count, default=1, help=told)
    parser.add_argument("--limit", type=command.count, default=1800, help="seconds of processors for a process")
    parser.add_argument("--surm", default=str(results.ROOT), help="the folder of the version that is compiled")
    parser.add_argument("--label", default="now", help="what that version is called")
    write_page = lambda: files.replace(HERE / "README.md", page())  # noqa: E731
    command.instead(parser, "--table", write_page, "write README.md from what is there")
    compile_all(parser.parse_args())


if __name__ == "__main__":
    command.run(main)
