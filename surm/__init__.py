"""surm: parameter-efficient fine-tuning with structured, unrestricted-rank matrices, in JAX and Flax.

A config names data, a model and an adapter; training fits the adapter; a checkpoint and a report come out.

`surm.matrices` holds the families as pure functions, `surm.peft` puts them into NNX models, `surm.models` has Vision
Transformers and reads published weights, and `python -m surm.train` runs a config.

Source: "Structured Unrestricted-Rank Matrices for Parameter Efficient Fine-tuning", arXiv 2406.17740.
"""

from surm.errors import InputError
from surm.peft import (
    ParameterCount,
    PeftSpec,
    Trainable,
    attach,
    count_parameters,
    detach,
    disabled,
    load_adapter,
    merge,
    save_adapter,
    unmerge,
)
from surm.version import __version__

__all__ = [
    "InputError",
    "ParameterCount",
    "PeftSpec",
    "Trainable",
    "__version__",
    "attach",
    "count_parameters",
    "detach",
    "disabled",
    "load_adapter",
    "merge",
    "save_adapter",
    "unmerge",
]
