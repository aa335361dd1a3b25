"""Checks the types of the arguments of `attach`."""

from typing import Any

from flax import nnx

from surm.errors import InputError
from surm.peft import select
from surm.peft.spec import PeftSpec


def check(model: Any, spec: Any, rngs: Any) -> None:
    """Raises InputError if the arguments are not of these three types, or a part of the model has an unusable name."""
    if not (isinstance(model, nnx.Module) and isinstance(spec, PeftSpec) and isinstance(rngs, nnx.Rngs)):
        given = ", ".join(_class(one) for one in (model, spec, rngs))
        raise InputError(
            f"attach takes an nnx.Module, a PeftSpec and an nnx.Rngs, got {given}; surm.adapt_params takes the "
            "parameters of any other JAX model, surm.models those of PyTorch's ViT, BERT and RoBERTa"
        )
    for path, _ in select.walk(model):
        if path and isinstance(path[-1], str) and ("." in path[-1] or path[-1].isdecimal()):
            raise InputError(f"the model has a part named {path[-1]!r}; expected a name without dots, not a number")


def _class(one: Any) -> str:
    """The type of an argument, for messages; a class that was not called is named as such."""
    kind, which = (one, "the class ") if isinstance(one, type) else (type(one), "")
    return f"{which}{kind.__module__}.{kind.__name__}"
