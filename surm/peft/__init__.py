"""Where and how a trained update enters a model.

`spec` says what is wanted, `select` finds the places, `layers` holds what is put there, `surgery` puts it there and
takes it away again, `store` keeps the trained part on disk, `serving` answers by many adapters at once.
"""

from surm.peft.layers import AdapterParam, Trainable
from surm.peft.serving import serve_batch, stack_adapters
from surm.peft.spec import METHODS, PeftSpec
from surm.peft.store import load_adapter, save_adapter
from surm.peft.surgery import (
    ParameterCount,
    attach,
    count_parameters,
    detach,
    disabled,
    merge,
    table,
    unmerge,
    with_path,
)

__all__ = [
    "METHODS",
    "AdapterParam",
    "ParameterCount",
    "PeftSpec",
    "Trainable",
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
