"""The methods that experiments compare, by name: the keys of a config that each one sets."""

from typing import Any

import surm


def _update(family: str, options: str = "", **more: Any) -> dict[str, Any]:
    chosen = {"peft.family": family} | ({"peft.options": options} if options else {})
    return chosen | {f"peft.{key}": value for key, value in more.items()}


UPDATES: dict[str, dict[str, Any]] = {
    "circulant": _update("circulant"),
    "toeplitz": _update("toeplitz"),
    "kronecker": _update("kronecker"),
    "low_displacement_rank r=1": _update("low_displacement_rank", "rank=1"),
    "low_rank r=1": _update("low_rank", "rank=1"),
    "low_rank r=8": _update("low_rank", "rank=8"),
    "c3a": _update("c3a"),
    "melora r=1": _update("melora"),
    "lora_xs r=16": _update("lora_xs"),
    "vera": _update("vera"),
    "adalora r=1": _update("adalora", "rank=1"),
    "dora_dynamic r=1": _update("dora_dynamic", "rank=1"),
    "lora2": _update("lora2"),
    "lorta r=8": _update("lorta", "rank=8"),
    "svft": _update("svft"),
    "aurora r=16": _update("aurora", "rank=16"),
    "low_rank r=1 with magnitude": _update("low_rank", "rank=1", magnitude=True),
    "circulant with magnitude": _update("circulant", magnitude=True),
    "kronecker three terms": _update("kronecker", "terms=3"),
}
FOR_MATRIX_UNITS: dict[str, dict[str, Any]] = {
    "monarch": _update("monarch"),
    "diagonal_circulant": _update("diagonal_circulant"),
}
"""Updates that were made for accelerators; their accuracy has not been compared."""
METHODS: dict[str, dict[str, Any]] = {
    "head": {"peft.method": "head"},
    **UPDATES,
    "hadamard_adapter": {"peft.method": "hadamard_adapter"},
    "loko low_rank r=1": {"peft.method": "loko", **UPDATES["low_rank r=1"]},
    **{
        f"adapter {name}": {"peft.method": "adapter", **UPDATES[name]}
        for name in ("circulant", "kronecker", "low_displacement_rank r=1")
    },
    **{f"bottleneck {size}": {"peft.method": "bottleneck", "peft.options": f"size={size}"} for size in (16, 64)},
    "full": {"peft.method": "full"},
}
OF_MODEL: dict[str, dict[str, dict[str, Any]]] = {
    "vit_micro": {
        "lorta r=8": {"peft.options": "rank=8,heads=3"},
        "hadamard_adapter": {"peft.options": r"norm='.*\.norm2'"},
    },
    "minilm": {
        "lorta r=8": {"peft.options": "rank=8,heads=12"},
        "hadamard_adapter": {"peft.options": r"norm='.*\.norm1'"},
        "loko low_rank r=1": {"optim.weight_decay": 0.0, "optim.head_weight_decay": 0.0},  # which a filter has not
    },
}
"""What a method sets beside that where it adapts one of the models."""
TIMED = ("circulant", "toeplitz", "kronecker", "low_displacement_rank r=1", "low_rank r=8")
"""The updates whose speed is measured."""
ON_ACCELERATORS = (*TIMED, *FOR_MATRIX_UNITS)
"""Those whose speed is measured on GPUs."""


def changes(method: str, model: str) -> dict[str, Any]:
    """The keys of a config that a method sets on a model, `vit_micro` or `minilm`, without its learning rate."""
    return METHODS[method] | OF_MODEL[model].get(method, {})


def rate_key(method: str) -> str:
    """The key of the learning rate that is tuned for a method."""
    return "optim.head_learning_rate" if method == "head" else "optim.learning_rate"


def keys_of(update: str) -> dict[str, Any]:
    """The keys of a config that an update sets."""
    return {**UPDATES, **FOR_MATRIX_UNITS}[update]


def spec(update: str, **more: Any) -> surm.PeftSpec:
    """An update as what `surm.attach` takes."""
    return surm.PeftSpec(**{key.removeprefix("peft."): value for key, value in keys_of(update).items()}, **more)


def file_name(method: str) -> str:
    """A method's name as a part of a file's: without spaces and equals signs."""
    return method.replace(" r=", "_r").replace(" ", "_")
