"""`surm calibrate`: the paths of a run's own matrices are timed on this device, and `path="auto"` chooses by that.

A run records the measurements that it began with in its folder. A continued run chooses by those alone, whatever has
been measured since: another path has the same result only up to rounding. Of several processes the first one reads
them for all, since all must run the same program.
"""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax import nnx

from surm.errors import InputError, one_line
from surm.machine import processes
from surm.machine.memory import keep_freed_memory
from surm.machine.notes import say
from surm.matrices import FAMILIES
from surm.matrices.algebra.platforms import kind_of, platform_of
from surm.peft import surgery
from surm.peft.multiply import calibrated, paths
from surm.peft.multiply.calibrated import Calibration, Matrix
from surm.peft.multiply.timing import FLOOR, Contest, Point, paths_of
from surm.report import run_folder
from surm.rundir.workdir import Workdir

LEAST_ROUNDS, MOST_ROUNDS = 3, 21
_NOTHING = object()  # None is the layer without an update
_WITHOUT, _ROUND = "without update", "a round"

_Form = tuple[str, int, int, tuple[tuple[str, tuple[int, ...]], ...]]
"""Family, n_out, n_in and the shapes of the parameters."""


def used(folder: Workdir, model: nnx.Module, *, begun: bool) -> contextlib.AbstractContextManager[None]:
    """The context of a run, in which all processes go by the measurements that `of_run` gives the first one."""
    return calibrated.using(processes.from_first(lambda: of_run(folder, model, begun=begun)))


def of_device() -> Calibration | None:
    """The measurements of its device that the first process has; None if there are none."""
    return processes.from_first(lambda: calibrated.here(platform_of(), kind_of()))


def of_run(folder: Workdir, model: nnx.Module, *, begun: bool) -> Calibration | None:
    """The measurements that a run goes by; those of a new run are recorded in its folder.

    Args:
      folder: the run's folder, which is claimed.
      model: the run's model.
      begun: whether the run continues from a checkpoint.

    Returns:
      The measurements of those of the model's matrices for which `auto` chooses a path; None if there are none.

    Raises:
      InputError: if the record, or the device's file, is damaged.
    """
    record = folder.path / run_folder.CALIBRATION
    if begun:
        return calibrated.read(record, run_folder.REMEDY)
    platform, device, forms = platform_of(), kind_of(), _forms(model)
    found = calibrated.here(platform, device) if forms else None
    there = [point for point in found["points"] if _form_of(point) in forms] if found else []
    own = [point for point in there if point["dtype"] in _dtypes(model)]
    if not own:
        if record.exists():  # of an earlier start without a checkpoint
            record.unlink()
        return None
    say(f"path='auto' goes by what surm calibrate has measured ({calibrated.file_of(platform, device)})")
    folder.write_json(run_folder.CALIBRATION, {**found, "points": own})
    return {**found, "points": own}


def _forms(model: nnx.Module) -> dict[_Form, Mapping[str, Any]]:
    """The options of the matrices for which `auto` chooses, by what distinguishes these in measurements."""
    specs, found = surgery.specs(model, surgery.spec_of(model)), {}
    for path, delta in surgery.structured_matrices(model).items():
        own = {name: variable.shape[len(delta.stack) :] for name, variable in delta.parameters.items()}
        form = delta.family, delta.n_out, delta.n_in, tuple(sorted(own.items()))
        if specs[path].path == "auto":
            found.setdefault(form, specs[path].structure)
    return found


def _dtypes(model: nnx.Module) -> set[str]:
    """The dtypes of the adapted layers, in which `auto` is asked."""
    layers = [layer.base for layer in surgery.layers_by_path(model).values()]
    return {jnp.dtype(base.dtype or base.kernel.dtype).name for base in layers}


def _form_of(point: Mapping[str, Any]) -> _Form:
    shapes = tuple((name, tuple(shape)) for name, shape in sorted(point["parameters"].items()))
    return point["family"], point["n_out"], point["n_in"], shapes


def check(asked: Collection[Matrix], model: nnx.Module) -> None:
    """Raises InputError if `auto` chooses no path in a run.

    Args:
      asked: the matrices for which it was asked while the run's step was traced.
      model: the run's model.
    """
    if asked:
        return
    spec = surgery.spec_of(model)
    if not surgery.structured_matrices(model):
        raise InputError(f"config.peft.method={spec.method!r} trains no structured matrix, so there is nothing to "
                         "calibrate; expected update or adapter")  # fmt: skip
    raise InputError(f"config.peft.path={spec.path!r} names the path, so there is nothing to calibrate; expected auto")


def made(asked: Collection[Matrix], model: nnx.Module, seconds: float) -> str:
    """Measures matrices, and writes the device's file.

    Args:
      asked: the matrices for which `auto` is asked in a run.
      model: the run's model.
      seconds: the time to spend; a program that is being compiled when it is over is finished.

    Returns:
      A table of the matrices with their paths before and now.

    Raises:
      InputError: if the cache folder cannot be written, the file that is there is damaged, or the kind of device is
        unknown.
    """
    platform, device = platform_of(), kind_of()
    if platform == "cpu":
        keep_freed_memory()  # as training does
    file = calibrated.made_ready(platform, device)
    earlier, every = _earlier(file, device), _distinct(asked)
    those = "1 matrix" if len(every) == 1 else f"{len(every)} matrices"
    say(f"measuring {those} on {device} for about {seconds:g} s")
    found = measured(every, _forms(model), platform, seconds)
    points = [point for point in found.values() if len(point["seconds"]) > 1]
    there = calibrated.read(file)  # again, for another matrix may have been measured meanwhile
    head = {"platform": platform, "device": device, "versions": calibrated.versions()}
    kept = there["points"] if there and not calibrated.others(there, device) else []
    after = {**head, "points": calibrated.together(kept, points)}
    if points:
        calibrated.write(file, after)
    chosen = [choices(every, platform, device, goes_by) for goes_by in (earlier, after)]
    rows = [
        _row(matrix, before, now, found[matrix], _candidates(matrix, platform))
        for matrix, before, now in zip(every, *chosen, strict=True)
    ]
    fuller = sum(point not in after["points"] for point in points)
    ends = (
        [f"the earlier measurements of {fuller} of them stay, since they have more paths; give more --seconds"]
        if fuller
        else []
    )
    return "\n".join([*_aligned([_HEAD, *rows]), *ends, _end(file, seconds, written=bool(points))])


def _end(file: epath.Path, seconds: float, *, written: bool) -> str:
    if written:
        return f"written to {file}: path='auto' goes by it on this device"
    return f"nothing was written: no two paths of a matrix could be measured in {seconds:g} s; give more --seconds"


def _earlier(file: epath.Path, device: str) -> Calibration | None:
    """What the file holds, unless it is of another device or version, which is said."""
    found = calibrated.read(file)
    if found is None or not (other := calibrated.others(found, device)):
        return found
    say(f"{str(file)!r} was measured {other}: it is replaced, and holds this run's matrices alone afterwards")
    return None


def _distinct(asked: Collection[Matrix]) -> list[Matrix]:
    """Each matrix once; one that may be added to its kernel in some of its layers counts as such."""
    found: dict[Matrix, Matrix] = {}
    for matrix in sorted(asked, key=lambda matrix: matrix.fusible):
        found[matrix._replace(fusible=False)] = matrix
    return [*found.values()]


def choices(every: Sequence[Matrix], platform: str, device: str, goes_by: Calibration | None) -> list[str]:
    """The paths that `auto` takes for some matrices.

    Args:
      every: the matrices.
      platform: the name of the platform.
      device: the kind of device.
      goes_by: the measurements of `surm calibrate`; None for none.

    Returns:
      The path of each.
    """
    with calibrated.using(goes_by), calibrated.quietly():
        return [paths.of_matrix(one, platform, device) for one in every]


def _candidates(matrix: Matrix, platform: str) -> list[str]:
    """The paths to be measured: the one that `auto` would take by itself first, then its nearest rivals."""
    with calibrated.quietly():
        ranked = paths.ranked(matrix, platform)
    ranked += [path for path in paths.allowed(matrix.family, fusible=matrix.fusible) if path not in ranked]
    if platform == "tpu" and FAMILIES[matrix.family].transforms:  # FFTs would be compiled for minutes
        return [path for path in ranked if path not in ("branch", "fused")]
    return ranked


def measured(
    every: Sequence[Matrix], options: Mapping[_Form, Mapping[str, Any]], platform: str, seconds: float
) -> dict[Matrix, dict[str, Any]]:
    """Times the paths of matrices, as many as can be compiled in the given time and as the device can run.

    Args:
      every: the matrices.
      options: the options of each, by its form.
      platform: the name of this platform.
      seconds: the time to spend.

    Returns:
      For each matrix a point in the form of measured/*.json, with the paths that could be measured; `failed` has the
      errors of others, by their names, if there are any.
    """
    until, planned, last = time.perf_counter() + seconds, 0.0, dict.fromkeys(every, 0.0)
    contests = {matrix: Contest(_point(matrix, options)) for matrix in every}
    failed: dict[Matrix, dict[str, str]] = {matrix: {} for matrix in every}
    names = [_measurable(contests[matrix].point, _candidates(matrix, platform)) for matrix in every]
    for turn in itertools.zip_longest(*names, fillvalue=_NOTHING):
        for matrix, path in zip(every, turn, strict=True):
            began = time.perf_counter()
            if path is not _NOTHING and began + planned + last[matrix] <= until:  # the next one may take as long
                enter = functools.partial(contests[matrix].enter, path)
                planned += LEAST_ROUNDS * (_tried(enter, path or _WITHOUT, failed[matrix]) or 0.0)
                last[matrix] = time.perf_counter() - began
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() > until:
            break
        for matrix, contest in contests.items():
            if _ROUND not in failed[matrix]:
                _tried(contest.round, _ROUND, failed[matrix])
    return {
        matrix: contest.measured() | ({"failed": failed[matrix]} if failed[matrix] else {})
        for matrix, contest in contests.items()
    }


def _tried(act: Callable[[], float | None], name: str, failed: dict[str, str]) -> float | None:
    """Calls a function; if the device refuses, most often for want of memory, this is noted and the rest goes on."""
    try:
        return act()
    except jax.errors.JaxRuntimeError as error:
        failed[name] = one_line(error)
        return None


def _point(matrix: Matrix, options: Mapping[_Form, Mapping[str, Any]]) -> Point:
    own = options[matrix.family, matrix.n_out, matrix.n_in, matrix.parameters]
    return Point(matrix.family, own, matrix.n_out, matrix.n_in, matrix.rows, matrix.dtype)


def _measurable(point: Point, candidates: Sequence[str]) -> list[str | None]:
    there = paths_of(point)
    return [*(path for path in candidates if path in there), FLOOR]


_HEAD = ("matrix", "vectors", "dtype", "before", "now", "milliseconds")


def _row(matrix: Matrix, before: str, now: str, point: Mapping[str, Any], candidates: Sequence[str]) -> tuple[str, ...]:
    """The cells of a matrix's row."""
    times = {path: point["seconds"][path] for path in candidates if path in point["seconds"]}
    if point["floor_seconds"]:
        times[_WITHOUT] = point["floor_seconds"]
    told = [f"{name} {1e3 * seconds:.3g}" for name, seconds in times.items()]
    failed = point.get("failed", {})
    for error in dict.fromkeys(failed.values()):
        told.append(f"{' and '.join(name for name in failed if failed[name] == error)} failed ({error})")
    late = [path for path in candidates if path not in times and path not in failed and _ROUND not in failed]
    cells = ", ".join([*told, *([f"not in time: {' '.join(late)}"] if late else [])])
    return f"{matrix.family} {matrix.n_out}×{matrix.n_in}", f"{matrix.rows:,}", matrix.dtype, before, now, cells


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
