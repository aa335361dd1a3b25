"""Starts a run from an existing adapter, of another run or of Hugging Face PEFT (`config.init_adapter`).

The trained arrays are copied unchanged, so they must have the same meaning in both: the same layers, families and
options. Options that only act in training, such as dropout, may differ. If the classes differ, the head starts afresh.
Each such difference is reported in a line.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from surm import files
from surm.config import Plan
from surm.errors import InputError, few, pasted, quoted
from surm.exchange import import_peft, peft_folder
from surm.machine.notes import say
from surm.models import hub
from surm.models.weights import open_weights
from surm.peft import select, store, surgery, variables
from surm.peft.spec import PeftSpec

HEAD = "head."
"""The prefix of the paths of the head."""

Model = nnx.Module


class Given(NamedTuple):
    """The adapter that a run starts from.

    Attributes:
      model: the base model with that adapter.
      arrays: its trained arrays, by path.
      of_peft: whether Hugging Face PEFT wrote it, so that its spec was inferred from PEFT's config.
      check: raises InputError if the frozen arrays that a family computes from the base weights differ in the model
        that it is called with.
    """

    model: Model
    arrays: Mapping[str, jax.Array | np.ndarray]
    of_peft: bool = False
    check: Callable[[Model], None] = lambda model: None


def from_adapter(
    plan: Plan,
    model: Model,
    base: Model,
    base_with: Callable[[int], Model],
    *,
    names: Sequence[str] = (),
    quiet: bool = False,
) -> Model:
    """Fills a model's fresh adapter with the trained arrays of the adapter that `config.init_adapter` names.

    Args:
      plan: the run's plan; `init_adapter` of its config names a folder that `surm.save_adapter` wrote, the folder of a
        run, or a folder of Hugging Face PEFT.
      model: the model with the adapter of `config.peft`.
      base: the same model without an adapter.
      base_with: returns that base with a head of a given number of outputs.
      names: the names of the classes; empty if they are not known.
      quiet: whether nothing is reported.

    Returns:
      A model with the copied arrays.

    Raises:
      InputError: if there is no such adapter, it belongs to another base, or it does not have the spec of
        `config.peft`; the message names the keys that differ.
    """
    folder = _folder(plan.config.init_adapter)
    given = _of_peft(folder, base, base_with) if _is_pefts(folder) else _of_surm(folder, base)
    _check_meaning(plan, given, model)
    graphdef, expected, frozen = surgery.split(model)
    taken = {path: given.arrays[path] for path in expected if path in given.arrays}
    anew = [path for path, array in taken.items() if path.startswith(HEAD) and array.shape != expected[path].shape]
    if renamed := _renamed(folder, names):
        anew = [path for path in taken if path.startswith(HEAD)]
    _check_arrays(plan, given, taken, expected, anew)
    for line in () if quiet else _told(given, expected, anew, renamed, plan.spec):
        say(f"config.init_adapter={plan.config.init_adapter!r}: {line}")
    arrays = {path: jnp.asarray(array, expected[path].dtype) for path, array in taken.items() if path not in anew}
    started = surgery.join(graphdef, {**expected, **arrays}, frozen)
    given.check(started)
    return started


def _folder(name: str) -> epath.Path:
    """The folder of an adapter: the named one, the one of a run, or one of PEFT's below the named one or on the hub."""
    path = files.path(name)
    for folder in (path, path / "adapter"):
        if (folder / store.CONFIG).is_file():
            return folder
    elsewhere = path.is_dir() and any((folder / store.CONFIG).is_file() for folder in path.iterdir())
    if elsewhere or name.startswith(hub.PREFIX):
        return peft_folder.find(name).folder
    if (path / "members").is_dir():
        members = sorted(one.name for one in (path / "members").iterdir())
        raise InputError(
            f"config.init_adapter={name!r} is a population; expected one of its members, such as "
            f"{str(path / 'members' / members[0])!r}"
        )
    if _is_weights(path):
        raise InputError(
            f"config.init_adapter={name!r} holds a model's weights and no adapter; config.model.weights takes those"
        )
    if (path / "config.json").is_file():
        raise InputError(f"config.init_adapter={name!r} is a run that has not finished: its adapter comes at the end")
    what = f"holds no {store.CONFIG}" if path.is_dir() else "is a file" if path.exists() else "is no folder"
    raise InputError(f"config.init_adapter={name!r} {what}; expected a finished run's folder, or an adapter's")


def _is_weights(path: epath.Path) -> bool:
    """Whether a path holds a whole model: a file of arrays, a folder with such files, or the config.json of a model."""
    if not path.is_dir():
        return path.is_file() and path.suffix in _ARRAYS
    if any(one.name.endswith(_ARRAYS) or one.name.endswith(".index.json") for one in path.iterdir()):
        return True
    file = path / "config.json"
    return file.is_file() and any(field in (files.json_object(file) or {}) for field in ("model_type", "architectures"))


_ARRAYS = (".safetensors", ".bin", ".msgpack", ".h5")


def _is_pefts(folder: epath.Path) -> bool:
    config = files.read_object(folder / store.CONFIG)
    return "peft_type" in config and config.get("format") != store.FORMAT


def _of_surm(folder: epath.Path, base: Model) -> Given:
    saved = store.read_adapter(folder)
    model = store.attached(saved, base)
    own = {path for path, array in surgery.split(model)[1].items() if not path.startswith(HEAD)}
    store.check_arrays(
        str(folder),
        {path: array for path, array in saved.arrays.items() if not path.startswith(HEAD)},
        {path: array for path, array in surgery.split(model)[1].items() if path in own},
    )
    return Given(model, saved.arrays, check=lambda started: store.check_made(saved, started))


def _of_peft(folder: epath.Path, base: Model, base_with: Callable[[int], Model]) -> Given:
    outputs = _outputs(folder)
    if outputs is not None and outputs != base.head.bias[...].shape[0]:
        base = base_with(outputs)
    model = import_peft(folder, base)
    return Given(model, surgery.split(model)[1], of_peft=True)


def _outputs(folder: epath.Path) -> int | None:
    """The number of outputs of the head that PEFT saved; None if it saved none."""
    file = folder / store.WEIGHTS
    if not file.is_file():
        return None
    found = [
        array.shape[0]
        for name, array in open_weights(str(files.local(file))).arrays.items()
        if re.search(r"(^|\.)(classifier|score)(\.out_proj)?(\.modules_to_save)?(\.default)?\.bias$", name)
        and ".dense." not in name
    ]
    return found[0] if found else None


def _check_meaning(plan: Plan, given: Given, model: Model) -> None:
    """Raises InputError if the trained arrays of a layer would have another meaning with the config's spec."""
    where, spec, before = plan.config.init_adapter, plan.spec, surgery.spec_of(given.model)
    there, here = (
        {path: _meaning(own) for path, own in surgery.specs(one, of).items()}
        for one, of in ((given.model, before), (model, spec))
    )
    if there == here and spec.position == before.position:
        return
    was, now = before.to_json(), spec.to_json()
    if given.of_peft:
        values = ", ".join(_keys(was, [name for name in was if was[name] != now[name] and name not in _FREE]))
        raise InputError(
            f"config.init_adapter={where!r} holds another adapter than config.peft describes; set {values}"
        )
    differing = [name for name in now if was[name] != now[name] and name not in _FREE]
    other = [f"{name} {quoted(was[name])}, now {quoted(now[name])}" for name in differing]
    raise InputError(
        f"config.init_adapter={where!r} was trained with another config.peft: {', '.join(other)}; set "
        "those as they were (dropout and classes may differ)"
    )


_FREE = ("dropout", "train")


def _meaning(spec: PeftSpec) -> tuple[Any, ...]:
    """The fields of a spec that decide how the trained arrays of a layer act."""
    structured = spec.position in ("update", "adapter")
    options = spec.structure if structured else spec.options
    return (
        spec.position,
        spec.family if structured else None,
        options,
        spec.scale,
        spec.magnitude,
        spec.activation if spec.position in ("adapter", "bottleneck") else None,
    )


def _keys(values: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    """Fields of a spec in the form `config.peft.KEY=VALUE`."""
    for name in names:
        value = values[name]
        if isinstance(value, list):
            value = value[0] if len(value) == 1 else "|".join(f"({pattern})" for pattern in value)
        elif name == "rules":
            value = "; ".join(f"{pattern} => {_rule(change)}" for pattern, change in value.items())
        elif isinstance(value, Mapping):
            value = ",".join(f"{key}={own}" for key, own in value.items())
        yield f"config.peft.{name}={quoted(value)}"


def _rule(change: Mapping[str, Any] | None) -> str:
    if change is None:
        return "off"
    flat = {name: value for name, value in change.items() if name != "options"} | dict(change.get("options") or {})
    return ", ".join(f"{name}={value}" for name, value in flat.items())


def _check_arrays(
    plan: Plan,
    given: Given,
    taken: Mapping[str, Any],
    expected: Mapping[str, jax.Array],
    anew: Sequence[str],
) -> None:
    """Raises InputError if a trained array has no place in the model, or has another shape there."""
    name, trains = plan.config.init_adapter, plan.config.peft.train
    if lost := sorted(given.arrays.keys() - expected.keys()):
        raise InputError(
            f"config.init_adapter={name!r} holds trained values of {few(lost, 4)}, which config.peft.train="
            f"{quoted(trains)} does not train; set config.peft.train={pasted(_train(plan.spec, given, lost))}"
        )
    adapter = {select.dotted(path) for path, _ in nnx.to_flat_state(nnx.state(given.model, variables.AdapterParam))}
    own = {path for path in adapter if not path.startswith(HEAD)}
    fit = {path: array for path, array in taken.items() if path not in anew}
    store.check_arrays(name, fit, {path: expected[path] for path in {*own, *fit} if path in expected})


def _train(spec: PeftSpec, given: Given, lost: Sequence[str]) -> str:
    """The value that `config.peft.train` needs: its own patterns, and the given adapter's patterns of lost arrays."""
    places = [path.replace(".base.", ".") for path in lost]  # patterns match paths of the model without adapters
    patterns = [pattern for pattern in surgery.spec_of(given.model).train if _touches(pattern, places)]
    return "|".join(dict.fromkeys((*spec.train, *patterns)))


def _touches(pattern: str, paths: Iterable[str]) -> bool:
    """Whether a pattern matches a variable, or a module that contains it."""
    match = select.compiled(pattern).fullmatch
    return any(match(part) for path in paths for part in itertools.accumulate(path.split("."), "{}.{}".format))


def _renamed(folder: epath.Path, names: Sequence[str]) -> str:
    """The first classes of the run that trained an adapter, if they are known and differ from `names`; else empty."""
    if not names:
        return ""
    before = (files.json_object(folder.parent / "result.json") or {}).get("classes") or []
    return ", ".join(map(str, before[:6])) if before and [*map(str, before)] != [*map(str, names)] else ""


def _told(
    given: Given, expected: Mapping[str, jax.Array], anew: Sequence[str], renamed: str, spec: PeftSpec
) -> Iterator[str]:
    """One line for each difference between the given adapter and the model's."""
    before = surgery.spec_of(given.model)
    if not given.of_peft and before.dropout != spec.dropout:
        yield f"dropout {before.dropout:g} → {spec.dropout:g}"
    if anew and renamed:
        yield f"the update is taken over, the head starts afresh: its classes were {renamed}"
    elif anew:
        was, now = (arrays[anew[0]].shape[-1] for arrays in (given.arrays, expected))
        yield f"the update is taken over, the head starts afresh: it had {was} outputs, now it has {now}"
    if fresh := [path for path in expected if path not in given.arrays]:
        more = f" and {len(fresh) - 4} more" if len(fresh) > 4 else ""
        yield f"it holds no {', '.join(fresh[:4])}{more}: they start with the values of the model"
