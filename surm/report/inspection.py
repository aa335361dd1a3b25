"""Describes a run or an adapter in a few lines: family, targets, counts, base, metric.

    surm inspect runs/digits
    surm inspect runs/digits/adapter

Reads JSON and the headers of safetensors files only, so it needs neither jax nor weights.
"""

import math
import os
from typing import Any

import safetensors
from etils import epath

from surm import files
from surm.errors import InputError
from surm.report import collect, run_folder

WITH_FAMILY = ("update", "adapter", "loko")
"""The methods that have a family; for all others a config's family means nothing."""
_BOLD, _PLAIN = "\033[1m", "\033[0m"


def shown(folder: str | os.PathLike, *, colour: bool = False) -> str:
    """Describes a folder in lines of text.

    Args:
      folder: the folder of a run, finished or not, or of an adapter of surm or of Hugging Face PEFT.
      colour: whether names are written in bold, for a terminal.

    Returns:
      The folder's path, followed by names and values in two columns.

    Raises:
      InputError: if the folder is not one of these, or a file in it is damaged.
    """
    path = files.path(folder)
    facts = facts_of(path)
    width = max(map(len, facts))
    start, end = (_BOLD, _PLAIN) if colour else ("", "")
    return "\n".join([f"{start}{path}{end}", *(f"  {start}{name:<{width}}{end}  {facts[name]}" for name in facts)])


def facts_of(path: epath.Path) -> dict[str, str]:
    """The facts about a folder, by name, in order.

    Args:
      path: the folder of a run or an adapter.

    Returns:
      One text for each fact.

    Raises:
      InputError: as in `shown`.
    """
    if not path.is_dir():
        raise InputError(f"there is no folder {str(path)!r}; expected that of a run or of an adapter")
    if (path / "result.json").is_file():
        return _of_result(_result(path / "result.json"))
    if (path / "adapter_config.json").is_file():
        return _of_adapter(path, files.read_object(path / "adapter_config.json"))
    if run_folder.state_of(path) == "unfinished":
        return _of_unfinished(path, files.read_object(path / "config.json"))
    raise InputError(f"{str(path)!r} holds neither result.json nor adapter_config.json, so it is no run and no adapter")


def _result(file: epath.Path) -> dict[str, Any]:
    """The facts about a finished run; parts of its result may be missing, except the metrics."""
    result = files.read_object(file)
    measured = result.get("eval")
    if not isinstance(measured, dict) or not collect.all_numbers(measured):
        expected = "expected numbers; it is not the result of a run, or an older version wrote it"
        raise InputError(f"{str(file)!r} has {measured!r} as 'eval', {expected}")
    return result


def _of_result(result: dict[str, Any]) -> dict[str, str]:
    layers, optim = _part(result, "layers"), _part(_part(result, "config"), "optim")
    seconds = f", {result['seconds']:.0f} s" if isinstance(result.get("seconds"), int | float) else ""
    counts = [result.get(f"{name}_parameters") for name in ("trainable", "total", "adapter")]
    steps = f"{result.get('steps')} of {optim.get('batch_size')} examples{seconds}"
    rates = f"{result.get('learning_rate')}"
    if None in counts or counts[0] != counts[2]:  # something besides the adapter has trained
        rates += f", head {optim.get('head_learning_rate')}"
    return _told(
        what="a finished population" if "population" in result else "a finished run",
        **_of_config(_part(result, "config"), result.get("family")),
        layers=f"{len(layers)}, such as {next(iter(layers))}" if layers else "",
        held_out=", ".join(f"{name} {value:.4f}" for name, value in _part(result, "eval").items()),
        chosen=_chosen(result),
        mistaken=_mistaken(result),
        trained="" if None in counts else "{:,} of {:,} parameters, {:,} of them the adapter's".format(*counts),
        rates=rates if "learning_rate" in result else "",
        steps=steps if "steps" in result else "",
        made_with=", ".join(f"{name} {value}" for name, value in _part(result, "versions").items()),
    )


def _chosen(result: dict[str, Any]) -> str:
    """The step that was measured, if the best one was chosen."""
    values = ", ".join(f"{name} {value:.4f}" for name, value in _part(result, "validation").items())
    return f"step {result.get('chosen_step')}, the best on the validation split: {values}" if values else ""


def _mistaken(result: dict[str, Any], most: int = 4) -> str:
    """The most frequent mistakes in the confusion matrix."""
    counts = result.get("confusion") or []
    names = result.get("classes") or range(len(counts))
    wrong = [
        (count, f"{names[true]} as {names[taken]}: {count}")
        for true, row in enumerate(counts[: len(names)])
        for taken, count in enumerate(row[: len(names)])
        if count and true != taken  # compared by index, because two classes may have the same name
    ]
    return ", ".join(text for _, text in sorted(wrong, key=lambda one: -one[0])[:most])


def _of_unfinished(path: epath.Path, config: dict[str, Any]) -> dict[str, str]:
    steps = max((line["step"] for line in run_folder.metrics(path / run_folder.METRICS)), default=0)
    return _told(what=f"a run that {collect.UNFINISHED}", **_of_config(config, None), logged=f"{steps} steps")


def _of_config(config: dict[str, Any], family: str | None) -> dict[str, str]:
    """The facts about method, base and data in a config."""
    peft = _part(config, "peft")
    has_family = peft.get("method") in WITH_FAMILY
    method = (peft.get("method"), family or (has_family and peft.get("family")), peft.get("options"))
    return {
        "method": " ".join(str(word) for word in method if word),
        "targets": str(peft.get("targets") or ""),
        "base": str(_part(config, "model").get("weights") or "random weights"),
        "data": str(_part(config, "data").get("source") or ""),
    }


def _part(data: dict[str, Any], name: str) -> dict[str, Any]:
    """An object inside an object; empty if there is none."""
    part = data.get(name)
    return part if isinstance(part, dict) else {}


def _told(**facts: str) -> dict[str, str]:
    """The facts that have a value, under readable names."""
    return {name.replace("_", " "): text for name, text in facts.items() if text}


def _of_adapter(path: epath.Path, config: dict[str, Any]) -> dict[str, str]:
    shapes = _shapes(path / "adapter_model.safetensors")
    count = sum(math.prod(shape) for shape in shapes.values())
    arrays = f"{len(shapes)}, {count:,} numbers, such as {next(iter(sorted(shapes)), 'none')}"
    if "peft_type" in config:
        return {
            "what": f"an adapter of Hugging Face PEFT: {config['peft_type']} (surm.import_peft reads LORA, C3A, LOKR)",
            "base": str(config.get("base_model_name_or_path")),
            "targets": str(config.get("target_modules")),
            "arrays": arrays,
        }
    spec, base = _part(config, "spec"), _part(config, "base")
    idle = () if spec.get("method") in WITH_FAMILY else ("family",)
    told = {
        name: value for name, value in spec.items() if value not in ("", [], {}, None, False, 0.0) and name not in idle
    }
    return {
        "what": f"an adapter of surm {config.get('surm_version', '')}",
        **{name: str(value) for name, value in told.items()},
        "base": f"{base.get('name') or 'unnamed'} (sha256 {str(base.get('sha256'))[:12]}…)",
        "arrays": arrays,
    }


def _shapes(file: epath.Path) -> dict[str, list[int]]:
    """The shapes of a safetensors file's arrays, none of which is read."""
    try:
        if not file.exists():
            raise FileNotFoundError("there is no such file")
        with safetensors.safe_open(files.local(file), framework="numpy") as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118  not a dict
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{str(file)!r} is missing or damaged: {error}") from error
