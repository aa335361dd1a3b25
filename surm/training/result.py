"""What a finished run leaves: its adapter, its curves and, last, its result."""

import os
import pathlib
import platform
import re
import resource
import statistics
import sys
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from surm import config as configs
from surm import report
from surm.peft import counts, store, surgery
from surm.peft.schedules import rank_budget
from surm.rundir import named_paths
from surm.rundir.workdir import Workdir
from surm.training import optim
from surm.training.prepared import Run
from surm.version import __version__

OPTIONAL = ("members", "active_ranks", "chosen_step", "validation")
"""What only some results hold."""


def finish(
    prepared: Run, folder: Workdir, trainable: dict[str, np.ndarray], measured: dict[str, Any]
) -> dict[str, Any]:
    """Writes the adapter, the curves and, last, the result.

    Args:
      prepared: the run.
      folder: where it belongs.
      trainable: the trained arrays.
      measured: `eval`, `confusion` (or None), `seconds`, `steps` (seconds of each), `overrides`; of a population's
        member `members`; where the best step is chosen `chosen_step`, `validation` and `steps_taken`.

    Returns:
      What `result.json` holds; where a budget decides on ranks, `active_ranks` by layer among it.
    """
    graphdef, _, frozen = surgery.split(prepared.model)
    trained = surgery.join(graphdef, jax.tree.map(jnp.asarray, trainable), frozen)
    store.save_adapter(folder.adapter, trained, base_name=prepared.config.model.weights)
    report.draw_curves(
        folder.metrics(), folder.path / "curves.png", folder.path.name, metric=prepared.task.metrics[0].name
    )
    if budgets := rank_budget.budgets_of(prepared.model, prepared.total_steps):
        ranks = rank_budget.active_ranks(trainable, budgets)
        measured = measured | {"active_ranks": {layer: int(rank) for layer, rank in ranks.items()}}
    found = result(prepared, measured)
    folder.write_json("result.json", found)
    return found


def result(prepared: Run, measured: dict[str, Any]) -> dict[str, Any]:
    """What `result.json` holds."""
    config, data, task = prepared.config, prepared.data, prepared.task
    count = counts.count_parameters(prepared.model)
    spec = configs.spec(config)
    matrices, of_layer = surgery.structured_matrices(prepared.model), optim.layer_rates(config.optim, prepared.model)
    rates = {*of_layer.values()} or {optim.learning_rate(config.optim, spec)}
    full_names = named_paths.written_out(config)
    seconds = measured["steps"][2:] or measured["steps"]  # the first two wait for the compiler
    return {
        "eval": measured["eval"],
        "metric": task.metrics[0].name,
        "metrics": {
            metric.name + ending: metric.to_json() for ending in prepared.held_out for metric in task.metrics
        },
        "task": task.name,
        "kind": data.kind,
        "num_outputs": task.outputs,
        "num_texts": len(data.train[0]["texts"]) if data.kind == "text" else 0,
        "classes": list(data.class_names),
        **({"confusion": np.asarray(measured["confusion"]).tolist()} if measured.get("confusion") is not None else {}),
        "processor": prepared.processor.to_json() if prepared.processor else None,
        "family": "+".join(dict.fromkeys(delta.family for delta in matrices.values())) or None,
        "method": config.peft.method,
        "adapter_parameters": count.adapter,
        "trainable_parameters": count.trainable,
        "total_parameters": count.total,
        "steps": measured.get("steps_taken", prepared.total_steps),
        "learning_rate": rates.pop() if len(rates) == 1 else None,
        "layers": {path: {"family": delta.family, "learning_rate": of_layer[path]} for path, delta in matrices.items()},
        "seconds": measured["seconds"],
        "step_seconds_median": statistics.median(seconds) if seconds else None,
        "peak_bytes": _peak_bytes(),
        "seed": config.seed,
        "versions": versions(),
        "overrides": measured["overrides"],
        "config": config.to_dict(),
    } | {name: measured[name] for name in OPTIONAL if name in measured} | full_names  # fmt: skip


def versions() -> dict[str, str]:
    """What a result was measured with: packages, device and machine."""
    return {
        "surm": __version__, "jax": jax.__version__, "flax": flax.__version__,
        "optax": optax.__version__, "numpy": np.__version__, "python": platform.python_version(),
        "device": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, {_processor()}",
    }  # fmt: skip


def _processor() -> str:
    """What the processor calls itself, where the system tells."""
    told = pathlib.Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", told.read_text(), re.MULTILINE) if told.is_file() else []
    return names[0] if names else platform.processor() or "processor unknown"


def _peak_bytes() -> int:
    """The device's peak memory where it tells, else this process's."""
    of_device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    unit = 1 if sys.platform == "darwin" else 1024
    return of_device or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
