"""A run from its config to its result: it is checked, prepared, trained and written, in this order.

A run starts from the newest checkpoint in its workdir; else from `config.init_adapter`, if that is set; else from a
fresh adapter. The loop itself is in `surm.training.loop`.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from surm import config as configs
from surm.data import census
from surm.machine import mesh as meshes
from surm.machine import processes, stopping, targets
from surm.machine.notes import say
from surm.machine.processes import StopRequest
from surm.machine.targets import Target
from surm.peft import counts
from surm.peft.multiply import calibrated
from surm.rundir import checkpoint, going_on, writers
from surm.rundir.log import Log, RunLog
from surm.rundir.workdir import Workdir
from surm.tasks import choosing
from surm.training import calibration, estimate, loop, members, optim, pods, population
from surm.training import result as results
from surm.training.preparation import check_writes, prepare
from surm.training.prepared import Run
from surm.training.program import Program, of_run
from surm.training.trained import Trained


def run(
    config: ml_collections.ConfigDict | configs.Plan,
    workdir: str | os.PathLike,
    *,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains and evaluates a model, and writes the run's folder.

    Args:
      config: a configuration made from `surm.config.default()`, or its plan from `surm.config.checked`.
      workdir: the run's folder; a finished run is not repeated, an unfinished one is continued.
      overrides: the values that the command line or a sweep set, by dotted key; written into the result.

    Returns:
      The contents of `result.json`.

    Raises:
      InputError: if config, data, weights or workdir cannot be used.
      NonFiniteError: if the loss, its gradient or the update is not finite; the message names the step.
      Stopped: if SIGINT or SIGTERM asked the run to stop; a checkpoint has been written.
      OSError: if the workdir can no longer be written.
    """
    plan, workdir = configs.checked(config), os.fspath(workdir)
    config = plan.config
    processes.from_first(lambda: writers.check(config))
    processes.check_same("config", dict(configs.leaves(config)))
    every, mesh = members.listed(plan), meshes.mesh_of(config)
    folder = processes.agree(lambda: Workdir(workdir, config, writes=processes.is_first()))
    finished, longer = processes.from_first(folder.result), processes.from_first(lambda: folder.longer)
    if finished is not None and not longer:
        say(_finished(workdir, folder))
        return finished
    processes.from_first(folder.refuse_if_busy)
    for member in every if longer else []:
        processes.agree(functools.partial(going_on.check, folder.changes, member.plan, workdir))
    reached = processes.from_first(lambda: folder.newest_step)
    saved = processes.from_first(lambda: checkpoint.trained(folder.checkpoints))
    prepared = processes.agree(lambda: prepare(plan, resumed=reached is not None, saved=saved))
    if longer:
        going_on.check_length(finished, reached, prepared.total_steps, workdir)
    if finished is not None and prepared.total_steps == finished["steps"]:
        say(_finished(workdir, folder))
        return finished
    with contextlib.ExitStack() as held, stopping.requests() as stop:
        processes.from_first(lambda: held.enter_context(folder.claimed()))
        if not longer and (finished := processes.from_first(folder.result)) is not None:
            return finished  # another run has finished it meanwhile
        say(_heading(prepared, mesh, every))
        held.enter_context(calibration.used(folder, prepared.model, begun=reached is not None))
        log = members.PopulationLog(members.folders_of(folder, every)) if every else RunLog(folder)
        held.callback(log.close)
        with jax.set_mesh(mesh):
            trained = _train(prepared, folder, _program(prepared, every, mesh), log, mesh, stop)
        trained = dataclasses.replace(trained, overrides=dict(overrides or {}))
        if every:
            return processes.from_first(lambda: members.finish(prepared, folder, every, log, trained))
        return processes.from_first(lambda: results.finish(prepared, folder, trained))


def dry_run(config: ml_collections.ConfigDict | configs.Plan) -> str:
    """Prepares a run and compiles one step of it, without training or writing anything.

    A model with random weights (`config.model.weights='none'`) is only described, so its size may be any.

    Args:
      config: the run's configuration, or its plan from `surm.config.checked`.

    Returns:
      A text with the adapted layers, devices, sizes, learning rates, paths of `auto`, and the compiler's figures
      for a step.

    Raises:
      InputError: if config, data or weights cannot be used.
    """
    plan = configs.checked(config)
    prepared, every, mesh = _outlined(plan)
    with meshes.used(mesh), calibrated.using(calibration.of_device()):
        of_step = estimate.of_step(*_described(prepared, every, mesh))
        return f"{_heading(prepared, mesh, every)}\n{of_step}"


def on_target(config: ml_collections.ConfigDict | configs.Plan, target: Target) -> pods.Step:
    """Prepares a run and compiles one step of it for hardware that need not be there; nothing is trained or written.

    Call `surm.machine.targets.only_described` before JAX computes anything.

    Args:
      config: the run's configuration, or its plan from `surm.config.checked`.
      target: from `surm.machine.targets.parse`.

    Returns:
      The figures of a step.

    Raises:
      InputError: if config, data or weights cannot be used, do not fit the target's devices, or the compiler for the
        target is not installed or refuses it.
    """
    plan = configs.checked(config)
    prepared, every, mesh = _outlined(plan, targets.devices_of(target))
    with meshes.used(mesh), calibrated.using(None):
        return pods.step_of(target, prepared, *_described(prepared, every, mesh), mesh)


def calibrate(config: ml_collections.ConfigDict | configs.Plan, seconds: float = 10.0) -> str:
    """Times the paths of all matrices that a run trains, and writes them into the device's file of calibrations.

    Of several processes the first measures, on one of its devices.

    Args:
      config: the run's configuration, or its plan from `surm.config.checked`.
      seconds: the time for measuring, compilation included.

    Returns:
      A table with the path of every matrix before and now, and the time of every path.

    Raises:
      InputError: if config, data or weights cannot be used, `auto` has nothing to choose in the run, the cache folder
        cannot be written, or the file is damaged.
    """
    plan = configs.checked(config)
    processes.check_same("config", dict(configs.leaves(plan.config)))  # and connects them, before one measures for long
    prepared, every, mesh = processes.agree(lambda: _outlined(plan))
    with meshes.used(mesh), calibrated.using(None), calibrated.quietly(), calibrated.asked() as asked:
        program, state, frozen = _described(prepared, every, mesh)
        program.trace(state, frozen, next(program.batches))
    calibration.check(asked, prepared.model)
    return processes.from_first(lambda: calibration.made(asked, prepared.model, seconds))


def _outlined(
    plan: configs.Plan, described: Sequence[jax.Device] = ()
) -> tuple[Run, Sequence[members.Member], jax.sharding.Mesh]:
    """The prepared run with shapes in place of random weights, its members, and the mesh."""
    writers.check(plan.config)
    every, mesh = members.listed(plan), meshes.mesh_of(plan.config, described)
    check_writes(plan.config, meshes.hosts_of([*mesh.devices.flat]))
    return prepare(plan, outlined=not every), every, mesh


def _described(prepared: Run, every: Sequence[members.Member], mesh: jax.sharding.Mesh) -> tuple[Program, Any, Any]:
    """The program of a run, and the shapes and places of its state and of the frozen part of its model."""
    program, config = _program(prepared, every, mesh), prepared.config
    state, frozen = estimate.shapes(prepared, averaged=bool(config.optim.ema_decay))
    state = jax.eval_shape(program.packing.pack, state)
    state = program.initial() if every else meshes.put_everywhere(mesh, state)
    return program, state, meshes.put_base(mesh, frozen, sharded=config.mesh.shard_base)


def _heading(prepared: Run, mesh: jax.sharding.Mesh, every: Sequence[members.Member]) -> str:
    """The text that a run prints when it starts."""
    config = prepared.config
    rates = [] if every else [optim.summary(config.optim, prepared.model)]
    labels, odd = census.heading(prepared.data), choosing.remarks(config, prepared.total_steps)
    return "\n".join([*labels, counts.table(prepared.model), estimate.headline(prepared, mesh, every), *rates, *odd])


def _program(prepared: Run, every: Sequence[members.Member], mesh: jax.sharding.Mesh) -> Program:
    """The program of a population, or of a single run if there are no members."""
    return population.program(prepared, every, mesh) if every else of_run(prepared, mesh)


def _train(
    prepared: Run, folder: Workdir, program: Program, log: Log, mesh: jax.sharding.Mesh, stop: list[int]
) -> Trained:
    """Trains, from the newest checkpoint if there is one; returns the final state and its metrics."""
    keep, keep_best = prepared.config.keep_checkpoints, prepared.config.keep_best_checkpoints
    of_first = (
        checkpoint.Checkpoints(folder.checkpoints, keep, keep_best) if folder.writes else contextlib.nullcontext()
    )
    with of_first as saved:
        running = loop.Loop(prepared, folder, saved, program, log, mesh)
        folder.accept()
        steps = running.train(StopRequest(stop, mesh))
        return running.end(steps)


def _finished(workdir: str, folder: Workdir) -> str:
    """The message if the run has already finished."""
    but = f" (except for {'; '.join(map(str, folder.changes))}; nothing was read again)" if folder.changes else ""
    return f"{workdir} holds the finished run of this config{but}; remove it to train again"
