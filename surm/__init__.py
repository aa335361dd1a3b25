"""surm: parameter-efficient fine-tuning with structured, unrestricted-rank matrices, in JAX and Flax.

A config names data, a model and an adapter; training fits the adapter; a checkpoint and a report come out.

`surm.matrices` holds the families as pure functions, `surm.peft` puts them into NNX models, `surm.models` has Vision
Transformers and BERT and reads published weights, `python -m surm.train` runs a config, `surm.load_run` opens what it
left.

Source: "Structured Unrestricted-Rank Matrices for Parameter Efficient Fine-tuning", arXiv 2406.17740.
"""

import os
from typing import TYPE_CHECKING

from surm.errors import InputError
from surm.exchange import export_merged, export_peft, import_peft, to_low_rank
from surm.peft import (
    METHODS,
    KernelLayout,
    ParameterCount,
    PeftSpec,
    Trainable,
    adapt_params,
    attach,
    count_parameters,
    detach,
    disabled,
    load_adapter,
    merge,
    save_adapter,
    serve_batch,
    stack_adapters,
    unmerge,
    with_path,
)
from surm.peft.arithmetic import add, average
from surm.peft.several import activate, adapters, combine
from surm.peft.warm_start import difference, kernel_gradients, warm_start
from surm.version import __version__

if TYPE_CHECKING:
    from surm.runs import LoadedRun

__all__ = [
    "InputError",
    "KernelLayout",
    "METHODS",
    "ParameterCount",
    "PeftSpec",
    "Trainable",
    "__version__",
    "activate",
    "adapt_params",
    "adapters",
    "add",
    "attach",
    "average",
    "combine",
    "count_parameters",
    "detach",
    "difference",
    "disabled",
    "export_merged",
    "export_peft",
    "import_peft",
    "kernel_gradients",
    "load_adapter",
    "load_run",
    "merge",
    "save_adapter",
    "serve_batch",
    "stack_adapters",
    "to_low_rank",
    "unmerge",
    "warm_start",
    "with_path",
]


def load_run(folder: str | os.PathLike) -> "LoadedRun":
    """Opens the folder of a finished run; see `surm.runs.load_run`."""
    from surm import runs  # what reads data is only imported by those who need it

    return runs.load_run(folder)
