"""Models of a finished run at an earlier step, from the checkpoints that it kept."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from etils import epath
from flax import nnx

from surm.errors import InputError
from surm.machine.notes import say
from surm.peft import store, surgery
from surm.rundir import checkpoint, checkpoint_files
from surm.tasks.metric import of_result
from surm.training.step import answering

BEST = "best"


def at_step(
    path: epath.Path,
    model: nnx.Module,
    step: int | str,
    result: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]] = (),
) -> nnx.Module:
    """Returns a run's model as it was after a step.

    Args:
      path: the run's folder.
      model: the model with the run's final adapter.
      step: number of finished training steps, or `best`. If the run chose its best step itself, that is the best one;
        otherwise it is the kept step with the best main metric, the earlier one of equals.
      result: the contents of its `result.json`.
      lines: the lines of its `metrics.jsonl`, which also hold metrics of steps that were evaluated after they were
        saved.

    Returns:
      The model with the trained arrays of that step (their moving average if the run keeps one), in evaluation mode.

    Raises:
      InputError: if no checkpoint of that step is kept (the message lists the steps that are), or `step` is `best` and
        no kept step was evaluated.
    """
    chosen = result.get("chosen_step")
    if chosen is not None and step in (BEST, chosen):
        return model
    folder = path / "checkpoints"
    names = [one.name.removesuffix(checkpoint_files.SUFFIX) for one in folder.iterdir()] if folder.is_dir() else []
    if not any(name.isdecimal() for name in names):
        raise InputError(f"{str(path)!r} keeps no checkpoint{_of_population(path)}, only its final adapter")
    with checkpoint.Checkpoints(folder, keep=sys.maxsize) as saved:
        number = _best(path, saved.measured(), result, lines) if step == BEST else step
        if number not in (steps := sorted(saved.measured())):
            raise InputError(
                f"{str(path)!r} keeps no checkpoint of step {number}, but of {', '.join(map(str, steps))}"
                f"{chosen is not None and f' and the chosen one, {chosen}' or ''}; config.keep_checkpoints and "
                "config.keep_best_checkpoints say how many a run keeps"
            )
        arrays = answering(saved.state(number))
    graphdef, expected, frozen = surgery.split(model)
    store.check_arrays(str(folder / str(number)), arrays, expected)
    return surgery.join(graphdef, {name: jnp.asarray(arrays[name]) for name in expected}, frozen)


def _best(
    path: epath.Path,
    measured: Mapping[int, float | None],
    result: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
) -> int:
    split, metric = result["config"]["data"]["eval_split"], of_result(result, result.get("metric", ""))
    logged = {line["step"]: metric.goodness(line["values"][metric.name]) for line in lines
              if line["split"] == split and metric.name in line["values"]}  # fmt: skip
    found = {step: logged.get(step) if value is None else value for step, value in measured.items()}
    known = {step: value for step, value in found.items() if value is not None}
    if not known:
        raise InputError(
            f"{str(path)!r} keeps checkpoints of the steps {', '.join(map(str, measured))}, none of which was measured "
            f"on the {split} split, so none is known to be the best; name one of them, or train with "
            "config.eval_every_steps and config.keep_best_checkpoints, which keeps the best"
        )
    best = max(known, key=lambda step: (known[step], -step))
    say(f"the best of the steps kept, {', '.join(map(str, known))}, on the {split} split is {best}")
    return best


def _of_population(path: epath.Path) -> str:
    return " (those of a population are of all its members together)" if path.parent.name == "members" else ""
