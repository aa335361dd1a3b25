"""Attaches structured updates and adapters to a model, and merges, saves and combines them.

`spec` defines the `PeftSpec`, which names method, family and layers. `select` finds layers by patterns, `placement`
wraps them, `passed_over` reports other modules that a pattern matches, and `linear_maps` reads a layer as a matrix.
`layers` and `adapters` define the wrapped layers, `surgery` attaches, merges and detaches them, `counts` counts their
parameters, and `store` saves the trained arrays. `trees` does the same for parameter trees of other frameworks, and
`kernels` describes how matrices lie in their arrays. `base_dtype` stores frozen matrices in fewer bits. `multiply`
chooses the fastest way to multiply. `together` deals with several adapters: combining, adding, serving, warm starts.
`schedules` applies rank budgets and penalties while a model trains.
"""

from surm.matrices import FAMILIES
from surm.peft.base_dtype import with_base_dtype
from surm.peft.counts import ParameterCount, count_parameters, table
from surm.peft.kernels import KernelLayout
from surm.peft.schedules import penalty, rank_budget
from surm.peft.spec import METHODS as _METHODS
from surm.peft.spec import PeftSpec
from surm.peft.store import load_adapter, save_adapter
from surm.peft.surgery import attach, detach, disabled, merge, unmerge, with_path
from surm.peft.together.serving import serve_batch, stack_adapters
from surm.peft.trees import adapt_params
from surm.peft.variables import AdapterParam, Trainable

METHODS: dict[str, str] = {**dict.fromkeys(_METHODS, "peft.method"), **dict.fromkeys(FAMILIES, "peft.family")}
"""Every method and every family of an update, by name, with the key of a config that names it."""

__all__ = [
    "METHODS",
    "AdapterParam",
    "KernelLayout",
    "ParameterCount",
    "PeftSpec",
    "Trainable",
    "adapt_params",
    "attach",
    "count_parameters",
    "detach",
    "disabled",
    "load_adapter",
    "merge",
    "penalty",
    "rank_budget",
    "save_adapter",
    "serve_batch",
    "stack_adapters",
    "table",
    "unmerge",
    "with_base_dtype",
    "with_path",
]
