"""Where and how a trained update enters a model.

`spec` says what is wanted: which method, which family, which layers. `select` finds layers by patterns, `placement`
wraps them, `passed_over` names what else a pattern matches, and `linear_maps` says which matrix a layer is. `layers`
and `adapters` hold the updates, `surgery` attaches, merges and detaches them, `counts` counts their parameters, and
`store` saves the trained part. `trees` does the same for parameter trees of other frameworks, and `kernels` says how
matrices lie in them. `multiply` chooses the fastest way to multiply. `together` holds everything about several
adapters: combining, adding, serving, warm starts. `schedules` holds what some families do while a model trains: they
keep to a budget of ranks, or add a penalty to the loss.
"""

from surm.matrices import FAMILIES
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
    "with_path",
]
