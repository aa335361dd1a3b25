"""Trains what a config names: `python -m surm.train --config=configs/vit_digits.py --workdir=runs/digits`.

A run starts from its own workdir if that holds a checkpoint, else from `config.init_adapter` if that is set, else
fresh.
"""

import json
import os
import sys

import jax

from surm import config as configs
from surm import report
from surm.cli import command_line
from surm.machine import memory, processes, stopping, targets
from surm.machine.status import status_of
from surm.machine.stopping import Stopped
from surm.rundir.log import NonFiniteError
from surm.training import pods
from surm.training.run import dry_run, on_target, run


def main(argv: list[str] | None = None) -> int:
    """The command line: one clear line, and status 2 for unusable input or a workdir that cannot be written, 3 for a
    non-finite loss, 4 where another process of the run was lost, 128 + the signal's number for a run that was asked to
    stop.

    Args:
      argv: as `sys.argv`.

    Returns:
      The exit status.
    """
    given = sys.argv if argv is None else argv
    return processes.ending(lambda: status_of(lambda: _command(given)))


def _command(argv: list[str]) -> int:
    line = command_line.parse(argv)
    target = targets.asked(line.options, line.switches)
    plan = configs.checked(line.config)
    if target:
        targets.only_described()
        step = on_target(plan, target)
        print(json.dumps(pods.as_json(step)) if line.switches["json"] else pods.text(step))
        return 0
    processes.join(line.options, distributed=line.switches["distributed"])
    with processes.one_voice():
        return _act(line, plan)


def _act(line: command_line.CommandLine, plan: configs.Plan) -> int:
    if jax.default_backend() == "cpu":
        memory.keep_freed_memory()
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        # Where a cache is kept (JAX_COMPILATION_CACHE_DIR): the many small programs together take as long as the step.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if line.switches["dry_run"]:
        print(dry_run(plan))
        return 0
    try:
        result = run(plan, line.workdir, overrides=line.overrides)
    except NonFiniteError as error:
        processes.all_there()
        print(f"error: {error}; checkpoints written before are kept; try a lower learning rate or "
              "config.optim.gradient_clip in another workdir", file=sys.stderr)  # fmt: skip
        return 3
    except Stopped as stopped:
        processes.all_there()
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        return 128 + stopped.signal
    print((report.of_population if "population" in result else report.summary)(result, line.workdir))
    return 0


if __name__ == "__main__":
    with stopping.at_once():
        sys.exit(main())
