"""The files that a finished run writes: its adapter, its curves and, last, its result."""

import os
import platform
import resource
import statistics
import sys
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from surm import report
from surm.matrices.algebra.platforms import kind_of, platform_of, processor
from surm.peft import counts, store, surgery
from surm.peft.multiply import calibrated
from surm.peft.schedules import rank_budget
from surm.rundir import named_paths
from surm.rundir.workdir import Workdir
from surm.training import optim
from surm.training.prepared import Run
from surm.training.step import answering
from surm.training.trained import Trained
from surm.version import __version__


def finish(prepared: Run, folder: Workdir, trained: Trained, *, members: int | None = None) -> dict[str, Any]:
    """Writes the adapter, the curves and, last, the result.

    Args:
      prepared: the prepared run.
      folder: the run's folder.
      trained: the trained state and its metrics.
      members: number of members, if the run is a member of a population.

    Returns:
      The contents of `result.json`.
    """
    trainable = answering(trained.state)
    graphdef, _, frozen = surgery.split(prepared.model)
    model = surgery.join(graphdef, jax.tree.map(jnp.asarray, trainable), frozen)
    store.save_adapter(folder.adapter, model, base_name=prepared.config.model.weights)
    report.draw_curves(
        folder.metrics(), folder.path / "curves.png", folder.path.name, metric=prepared.task.metrics[0].name
    )
    found = result(prepared, trained) | _optional(prepared, trained, members)
    found |= named_paths.written_out(prepared.config)
    folder.write_json("result.json", found)
    return found


def _optional(prepared: Run, trained: Trained, members: int | None) -> dict[str, Any]:
    """The entries that only some results have.

    These are `members`, the number of members of a population; `active_ranks` by layer, if a rank budget switches
    components off; `chosen_step` and `validation`, if the run chose its best step; `calibrated`, the device and the
    versions with which `surm calibrate` measured, if the run went by that.
    """
    found = {} if members is None else {"members": members}
    if budgets := rank_budget.budgets_of(prepared.model, prepared.total_steps):
        ranks = rank_budget.active_ranks(answering(trained.state), budgets)
        found["active_ranks"] = {layer: int(rank) for layer, rank in ranks.items()}
    if chosen := trained.chosen:
        found |= {"chosen_step": chosen.step, "validation": chosen.validation}
    if measured := calibrated.now(platform_of(), kind_of()):
        found["calibrated"] = {name: measured[name] for name in ("device", "versions")}
    return found


def result(prepared: Run, trained: Trained) -> dict[str, Any]:
    """The entries that every `result.json` has."""
    config, data, task = prepared.config, prepared.data, prepared.task
    count = counts.count_parameters(prepared.model)
    matrices, of_layer = surgery.structured_matrices(prepared.model), optim.layer_rates(config.optim, prepared.model)
    rates = {*of_layer.values()} or {optim.learning_rate(config.optim, prepared.plan.spec)}
    seconds = trained.step_seconds[2:] or trained.step_seconds  # the first two wait for the compiler
    return {
        "eval": trained.eval,
        "metric": task.metrics[0].name,
        "metrics": {metric.name + ending: metric.to_json() for ending in prepared.held_out for metric in task.metrics},
        "task": task.name,
        "kind": data.kind,
        "num_outputs": task.outputs,
        "num_texts": len(data.train[0]["texts"]) if data.kind == "text" else 0,
        "classes": list(data.class_names),
        **({"confusion": np.asarray(trained.confusion).tolist()} if trained.confusion is not None else {}),
        "processor": prepared.processor.to_json() if prepared.processor else None,
        "family": "+".join(dict.fromkeys(delta.family for delta in matrices.values())) or None,
        "method": config.peft.method,
        "adapter_parameters": count.adapter,
        "trainable_parameters": count.trainable,
        "total_parameters": count.total,
        "steps": trained.chosen.steps_taken if trained.chosen else prepared.total_steps,
        "learning_rate": rates.pop() if len(rates) == 1 else None,
        "layers": {path: {"family": delta.family, "learning_rate": of_layer[path]} for path, delta in matrices.items()},
        "seconds": trained.seconds,
        "step_seconds_median": statistics.median(seconds) if seconds else None,
        "peak_bytes": _peak_bytes(),
        "seed": config.seed,
        "versions": versions(),
        "overrides": dict(trained.overrides),
        "config": config.to_dict(),
    }


def versions() -> dict[str, str]:
    """The versions of packages, the devices and the machine that produced a result."""
    return {
        "surm": __version__, "jax": jax.__version__, "flax": flax.__version__,
        "optax": optax.__version__, "numpy": np.__version__, "python": platform.python_version(),
        "device": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, {processor()}",
    }  # fmt: skip


def _peak_bytes() -> int:
    """The device's peak memory if the device reports it, else that of this process."""
    of_device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    unit = 1 if sys.platform == "darwin" else 1024
    return of_device or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
