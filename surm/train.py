"""Trains what a config names: `python -m surm.train --config=configs/vit_digits.py --workdir=runs/digits`.

A run starts from its own workdir if that holds a checkpoint, else from `config.init_adapter` if that is set, else
fresh; the loop itself is in `surm.loop`.
"""

import os
import platform
import resource
import signal
import statistics
import sys
from collections.abc import Mapping
from typing import Any

import flax
import jax
import ml_collections
import numpy as np
import optax
from absl import logging

import surm
from surm import checkpoint, command_line, memory, optim, report, stopping
from surm import config as configs
from surm.errors import InputError
from surm.loop import Loop
from surm.peft import store, surgery
from surm.preparation import Run, prepare
from surm.progress import NonFiniteError
from surm.stopping import Stopped
from surm.workdir import Workdir


def run(
    config: ml_collections.ConfigDict, workdir: str, *, overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Trains, evaluates and writes a run's folder.

    Args:
      config: as `surm.config.default()`, with other values.
      workdir: the run's folder; a finished run is not repeated, an unfinished one is continued.
      overrides: what the command line or a sweep set in the config's file, by dotted key; written into the result.

    Returns:
      What `result.json` holds.

    Raises:
      InputError: if config, data, weights or workdir cannot be used.
      NonFiniteError: if the loss stops being a number; the message names the step.
      Stopped: if SIGINT or SIGTERM asked the run to stop; a checkpoint has been written.
      OSError: if the workdir cannot be written any more.
    """
    configs.check(config)
    folder = Workdir(workdir, config)
    if (finished := folder.result()) is not None:
        print(f"{workdir} holds the finished run of this config; remove it to train again")
        return finished
    prepared = prepare(config, resumed=folder.has_checkpoint)
    with folder.claimed(), stopping.requests() as stop:
        if (finished := folder.result()) is not None:  # by a run that was at work while this one prepared
            return finished
        print(surgery.table(prepared.model), flush=True)
        print(optim.summary(config.optim, configs.spec(config)), flush=True)
        trainable, measured = _train(prepared, folder, stop)
        return _finish(prepared, folder, trainable, {**measured, "overrides": dict(overrides or {})})


def _finish(prepared: Run, folder: Workdir, trainable: dict[str, jax.Array], measured: dict) -> dict[str, Any]:
    """Writes the adapter, the curves and, last, the result."""
    config = prepared.config
    graphdef, _, frozen = surgery.split(prepared.model)
    trained = surgery.join(graphdef, trainable, frozen)
    store.save_adapter(folder.adapter, trained, base_name=config.model.weights)
    report.draw_curves(folder.metrics(), folder.path / "curves.png", folder.path.name, metric=prepared.data.metrics[0])
    result = _result(prepared, measured)
    folder.write_json("result.json", result)
    return result


def _train(prepared: Run, folder: Workdir, stop: list[int]) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Trains, from the newest checkpoint if there is one; the trained arrays, and what was measured."""
    with checkpoint.Checkpoints(folder.checkpoints, prepared.config.keep_checkpoints) as saved:
        loop = Loop(prepared, folder, saved)
        steps = loop.train(stop)
        evaluated = loop.evaluate(prepared.total_steps)
    return loop.state["trainable"], {"eval": evaluated, "seconds": loop.seconds, "steps": steps}


def _result(prepared: Run, measured: dict[str, Any]) -> dict[str, Any]:
    config, data, count = prepared.config, prepared.data, surgery.count_parameters(prepared.model)
    steady = measured["steps"][2:] or measured["steps"]  # the first two wait for the compiler
    return {
        "eval": measured["eval"],
        "metric": data.metrics[0],
        "kind": data.kind,
        "num_outputs": data.num_classes,
        "num_texts": len(data.train[0]["texts"]) if data.kind == "text" else 0,
        "classes": list(data.class_names),
        "family": config.peft.family if config.peft.method in ("update", "adapter") else None,
        "method": config.peft.method,
        "adapter_parameters": count.adapter,
        "trainable_parameters": count.trainable,
        "total_parameters": count.total,
        "steps": prepared.total_steps,
        "learning_rate": optim.learning_rate(config.optim, configs.spec(config)),
        "seconds": measured["seconds"],
        "step_seconds_median": statistics.median(steady) if steady else None,
        "peak_bytes": _peak_bytes(),
        "seed": config.seed,
        "versions": versions(),
        "overrides": measured["overrides"],
        "config": config.to_dict(),
    }  # fmt: skip


def versions() -> dict[str, str]:
    """What a result was measured with: packages, device and machine."""
    return {
        "surm": surm.__version__, "jax": jax.__version__, "flax": flax.__version__,
        "optax": optax.__version__, "numpy": np.__version__, "python": platform.python_version(),
        "device": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
    }  # fmt: skip


def _peak_bytes() -> int:
    """The device's peak memory where it tells, else this process's."""
    of_device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    unit = 1 if sys.platform == "darwin" else 1024
    return of_device or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(argv: list[str] | None = None) -> int:
    """The command line: one clear line, and status 2 for unusable input or a workdir that cannot be written, 3 for a
    non-finite loss, 128 + the signal's number for a run that was asked to stop.

    Args:
      argv: as `sys.argv`.

    Returns:
      The exit status.
    """
    logging.set_verbosity(logging.FATAL)  # what goes wrong is raised, and said in one line
    command_line.tolerate_any_encoding()
    try:
        flags = command_line.parse(sys.argv if argv is None else argv)
        if jax.default_backend() == "cpu":
            memory.keep_freed_memory()
        result = run(flags.config, flags.workdir, overrides=flags.overrides)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(f"error: {error}; checkpoints written before are kept; try a lower learning rate or "
              "config.optim.gradient_clip in another workdir", file=sys.stderr)  # fmt: skip
        return 3
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    print(report.summary(result, flags.workdir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
