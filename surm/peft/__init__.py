"""Where and how a trained update enters a model.

`spec` says what is wanted, `select` and `placement` find the places, `passed_over` what else patterns match,
`linear_maps` how a layer is a matrix; `layers` and `adapters` hold what is put there, `surgery` puts it there and takes
it away again, `counts` tells how much that is, `store` keeps the trained part on disk, `serving` answers by many
adapters at once. `several` puts adapters together, `arithmetic` adds them up, `warm_start` starts them near a matrix,
`bases` compares what they stand on. `rank_budget` and `penalty` are what some families ask of a training. `trees` does
the same for parameter trees of other frameworks, `kernels` says how matrices lie in them.
"""

from surm.matrices import FAMILIES
from surm.peft.counts import ParameterCount, count_parameters, table
from surm.peft.kernels import KernelLayout
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
    "save_adapter",
    "serve_batch",
    "stack_adapters",
    "table",
    "unmerge",
    "with_path",
]
