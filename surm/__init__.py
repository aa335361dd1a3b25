"""surm: parameter-efficient fine-tuning with structured, unrestricted-rank matrices, in JAX and Flax.

A config names data, a model and an adapter; training fits the adapter; a checkpoint and a report come out.

`surm.matrices` holds the families as pure functions, `surm.peft` puts them into NNX models, `surm.models` has Vision
Transformers and BERT and reads published weights, `python -m surm.train` runs a config, `surm.load_run` opens what it
left. Names are imported lazily, so code that only reads results does not import jax.

Source: "Structured Unrestricted-Rank Matrices for Parameter Efficient Fine-tuning", arXiv 2406.17740.
"""

import importlib
from typing import TYPE_CHECKING, Any

from surm.errors import InputError
from surm.version import __version__

if TYPE_CHECKING:
    from surm import exchange, matrices, models, peft
    from surm.exchange import export_merged, export_peft, import_peft, save_model, to_low_rank
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
        with_base_dtype,
        with_path,
    )
    from surm.peft.together.arithmetic import add, average
    from surm.peft.together.several import activate, adapters, combine
    from surm.peft.together.warm_start import difference, kernel_gradients, warm_start
    from surm.training.runs import load_run

_NAMES = {
    "surm.exchange": ("export_merged", "export_peft", "import_peft", "save_model", "to_low_rank"),
    "surm.peft": (
        "KernelLayout", "METHODS", "ParameterCount", "PeftSpec", "Trainable", "adapt_params", "attach",
        "count_parameters", "detach", "disabled", "load_adapter", "merge", "save_adapter", "serve_batch",
        "stack_adapters", "unmerge", "with_base_dtype", "with_path",
    ),
    "surm.peft.together.arithmetic": ("add", "average"),
    "surm.peft.together.several": ("activate", "adapters", "combine"),
    "surm.peft.together.warm_start": ("difference", "kernel_gradients", "warm_start"),
    "surm.training.runs": ("load_run",),
}  # fmt: skip
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
_MODULES = ("exchange", "matrices", "models", "peft")

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
    "exchange",
    "export_merged",
    "export_peft",
    "import_peft",
    "kernel_gradients",
    "load_adapter",
    "load_run",
    "matrices",
    "merge",
    "models",
    "peft",
    "save_adapter",
    "save_model",
    "serve_batch",
    "stack_adapters",
    "to_low_rank",
    "unmerge",
    "warm_start",
    "with_base_dtype",
    "with_path",
]


def __getattr__(name: str) -> Any:
    """A name of the list above, imported from its home and kept."""
    if name in _MODULES:
        return importlib.import_module(f"surm.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'surm' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """What there is, asked for or not."""
    return sorted({*globals(), *__all__})
