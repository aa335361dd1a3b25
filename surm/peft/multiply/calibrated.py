"""The measurements of a run's own matrices on the device at hand, by which `auto` chooses before anything else.

`surm calibrate` writes them into a file for each kind of device in the cache folder (`surm.files.cache`):

    platform    its name, as `jax.default_backend` gives it
    device      the kind of device, from `surm.matrices.algebra.platforms.kind_of`
    versions    of surm, jax and jaxlib
    points      the measurements, in the form of measured/*.json; `seconds` may lack paths that were not measured, and
                `failed`, where it is there, says why the device refused some

They hold for the same kind of device with the same versions. A run takes those that were there when it began, also
where it is continued later (`using`), so that its program stays the same. Elsewhere the device's file counts, but not
in several processes: each would read that of its own machine, and all must run the same program.
"""

import contextlib
import contextvars
import functools
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jaxlib
from etils import epath

from surm import files
from surm.errors import InputError
from surm.version import __version__

Calibration = Mapping[str, Any]
"""The contents of a file; see the module."""

_FURTHEST = 2.0
"""The factor by which the number of vectors may differ from that of a measurement."""
_REMEDY = "; remove the file, and `surm calibrate` measures again"
_FIELDS = {"platform": str, "device": str, "versions": dict, "points": list}
_OF_POINT = {"family": str, "dtype": str, "n_out": int, "n_in": int, "rows": int, "parameters": dict, "seconds": dict}


class Matrix(NamedTuple):
    """A trained matrix as `surm.peft.multiply.paths.quickest` is asked for its path; see there for the fields."""

    family: str
    n_out: int
    n_in: int
    rows: int
    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    dtype: str
    fusible: bool


_NOW: contextvars.ContextVar[Calibration | None] = contextvars.ContextVar("calibration")
_ASKED: contextvars.ContextVar[dict[Matrix, str] | None] = contextvars.ContextVar("asked", default=None)
_QUIET: contextvars.ContextVar[bool] = contextvars.ContextVar("quiet", default=False)


@contextlib.contextmanager
def _set(variable: contextvars.ContextVar[Any], value: Any) -> Iterator[None]:
    """A context in which a variable has a value."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextlib.contextmanager
def using(calibration: Calibration | None) -> Iterator[None]:
    """A context in which `auto` goes by the given measurements, not by the device's file; by none if None is given."""
    with _set(_NOW, calibration):
        yield


@contextlib.contextmanager
def asked() -> Iterator[dict[Matrix, str]]:
    """A context that lists the matrices for which `auto` chooses a path in it, in order, each with its path."""
    found: dict[Matrix, str] = {}
    with _set(_ASKED, found):
        yield found


def note(matrix: Matrix, path: str) -> None:
    """Adds a matrix with its path to what `asked` lists, if it does."""
    if (found := _ASKED.get()) is not None:
        found[matrix] = path


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """A context in which nothing is said of matrices that are not measured, as `surm calibrate` is about to do that."""
    with _set(_QUIET, True):
        yield


def quiet() -> bool:
    """Whether the code runs in `quietly`."""
    return _QUIET.get()


def times(matrix: Matrix, platform: str, device: str) -> Mapping[str, float]:
    """The measured seconds of each path of a matrix.

    Args:
      matrix: the matrix. Family, sizes, shapes of parameters and dtype must be those of a measurement; the number of
        vectors may differ by a factor of 2, and the nearest measured one counts.
      platform: the name of the platform.
      device: the kind of device.

    Returns:
      The seconds by path; empty if there is no such measurement.

    Raises:
      InputError: if the device's file is damaged.
    """
    fitting = [point for point in _points(platform, device) if same(point, matrix) and _apart(point, matrix) <= 1]
    return min(fitting, key=lambda point: _apart(point, matrix))["seconds"] if fitting else {}


def same(point: Mapping[str, Any], matrix: Matrix) -> bool:
    """Whether a point is of a matrix, for whatever number of vectors."""
    sizes = {name: list(shape) for name, shape in matrix.parameters}
    own = (matrix.family, matrix.n_out, matrix.n_in, matrix.dtype, sizes)
    return (point["family"], point["n_out"], point["n_in"], point["dtype"], point["parameters"]) == own


def _apart(point: Mapping[str, Any], matrix: Matrix) -> float:
    """The distance between two numbers of vectors; 1 is the furthest that is taken."""
    return abs(math.log(point["rows"] / max(matrix.rows, 1), _FURTHEST))


def _points(platform: str, device: str) -> Sequence[Mapping[str, Any]]:
    found = now(platform, device)
    return found["points"] if found is not None and found["platform"] == platform else ()


def now(platform: str, device: str) -> Calibration | None:
    """The measurements by which `auto` goes: those of `using`, or else of `here`; None in several processes."""
    try:
        return _NOW.get()
    except LookupError:
        return here(platform, device) if jax.process_count() == 1 else None


def here(platform: str, device: str) -> Calibration | None:
    """The measurements in the device's file.

    Args:
      platform: the name of the platform.
      device: the kind of device.

    Returns:
      The contents of the file; None if there is none, or if it is of another device or version, which is logged once.

    Raises:
      InputError: if the file is damaged.
    """
    file = file_of(platform, device)
    found = _unchanged(str(file), *_state(file)) if file.is_file() else None
    if found is None or not (other := others(found, device)):
        return found
    _say_other(str(file), other)
    return None


def _state(file: epath.Path) -> tuple[int, int, int]:
    """What changes if a file is replaced."""
    now = os.stat(file)
    return now.st_ino, now.st_mtime_ns, now.st_size


@functools.lru_cache(maxsize=4)
def _unchanged(file: str, *state: int) -> Calibration | None:
    """`read`, once for each state of a file: outside of `jax.jit`, every call of a layer asks for it."""
    del state
    return read(epath.Path(file))


def file_of(platform: str, device: str) -> epath.Path:
    """The file of a kind of device."""
    return files.cache() / "calibrated" / f"{re.sub(r'[^A-Za-z0-9]+', '_', f'{platform} {device}').strip('_')}.json"


def others(found: Calibration, device: str) -> str:
    """Says on which other device, or with which other versions, measurements were made; empty if they hold here."""
    if found["device"] != device:
        return f"on {found['device']!r}"
    own, before = versions(), found["versions"]
    other = [f"{name} {before.get(name)}" for name in own if before.get(name) != own[name]]
    return f"with {', '.join(other)}" if other else ""


def versions() -> dict[str, str]:
    """The versions with which measurements are made."""
    return {"surm": __version__, "jax": jax.__version__, "jaxlib": jaxlib.__version__}


def read(file: epath.Path, remedy: str = _REMEDY) -> Calibration | None:
    """The measurements in a file; None if it does not exist, InputError with the remedy if it is damaged."""
    if (found := files.json_object(file, remedy)) is None:
        return None
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(found.get(name), kind)]
    if wrong or not all(map(_is_point, found["points"])):
        raise InputError(
            f"{str(file)!r} is damaged ({wrong[0] if wrong else 'a field of a point'} is missing or wrong){remedy}"
        )
    return found


def _is_point(point: Any) -> bool:
    if not isinstance(point, dict) or not all(isinstance(point.get(name), kind) for name, kind in _OF_POINT.items()):
        return False
    shapes, times = point["parameters"].values(), point["seconds"].values()
    if not all(isinstance(shape, list) for shape in shapes):
        return False
    counts = [point["n_out"], point["n_in"], point["rows"], *(size for shape in shapes for size in shape)]
    return all(type(count) is int and count > 0 for count in counts) and all(map(_is_time, times))


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def made_ready(platform: str, device: str) -> epath.Path:
    """The file of a kind of device, in a folder that can be written; InputError if it cannot, or the kind is empty."""
    if not device:
        raise InputError(f"the {platform} does not say what kind of device it is, so its measurements could not be "
                         "found again; expected a device_kind in jax.devices()")  # fmt: skip
    file = file_of(platform, device)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=str(file.parent)):  # without a name that others might see
            pass
    except OSError as error:
        raise InputError(f"the cache folder {str(files.cache())!r} cannot be written ({error.strerror or error}); "
                         "let SURM_CACHE name another") from error  # fmt: skip
    return file


def together(earlier: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Earlier and new points; of the same matrix the new one, unless the earlier one has more paths.

    Their times are not put together, because only those of one measurement can be compared.
    """
    found = [*earlier]
    for point in new:
        tried = {*point["seconds"], *point.get("failed", ())}
        before = [one for one in found if all(one[name] == point[name] for name in _OF_POINT if name != "seconds")]
        if all(one["seconds"].keys() <= tried for one in before):
            found = [*(one for one in found if one not in before), point]
    return found


def write(file: epath.Path, calibration: Calibration) -> None:
    """Writes measurements, a point a line; an existing file is replaced in one step."""
    lines = ",\n".join(map(json.dumps, calibration["points"]))
    head = json.dumps({name: value for name, value in calibration.items() if name != "points"})
    files.replace(file, f'{head.removesuffix("}")}, "points": [\n{lines}\n]}}\n')


@functools.cache
def _say_other(file: str, other: str) -> None:
    logging.getLogger(__name__).info(
        "path='auto' does not use %s, which was measured %s; `surm calibrate` measures anew", file, other
    )
