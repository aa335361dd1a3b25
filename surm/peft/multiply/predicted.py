"""The times of the paths of a matrix, from measurements of one family in one dtype in the form of measured/*.json."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Point = Mapping[str, Any]
Shapes = Mapping[str, Sequence[int]]


def seconds(points: Sequence[Point], n_out: int, n_in: int, rows: int, parameters: Shapes) -> dict[str, float]:
    """The seconds of every path.

    If matrices of this shape were measured, the times of that with the nearest parameters count: by their names, then
    by the logarithms of their sizes, which tell a rank or a block size. Times are interpolated linearly between the
    measured numbers of vectors, and beyond the largest. Otherwise each path follows the law

        log t = c₀ + c₁ log(n_out n_in) + c₂ |log(n_out / n_in)| + c₃ log rows

    whose numbers are fitted by least squares, with the nearest parameters of every shape. If too few shapes were
    measured for that, the nearest shape counts, and of two equally near ones the first.

    Args:
      points: the measurements.
      n_out: rows of the matrix.
      n_in: columns of the matrix.
      rows: the number of vectors in the batch of one device.
      parameters: the shapes of the matrix's parameters.

    Returns:
      The seconds by path.
    """
    own = [point for point in points if (point["n_out"], point["n_in"]) == (n_out, n_in)]
    if own or (fitted := _fitted(_alike(points, parameters), n_out, n_in, rows)) is None:
        return _interpolated(own or points, n_out, n_in, rows, parameters)
    return fitted


def _interpolated(points: Sequence[Point], n_out: int, n_in: int, rows: int, parameters: Shapes) -> dict[str, float]:
    """The times of the nearest matrix."""

    def distance(point: Point) -> tuple[bool, float, float]:
        shape = math.log(point["n_out"] / n_out) ** 2 + math.log(point["n_in"] / n_in) ** 2
        other_names, apart = _apart(point, parameters)
        return other_names, shape, apart

    nearest = _matrix(min(points, key=distance))
    of_nearest = {point["rows"]: point["seconds"] for point in points if _matrix(point) == nearest}
    measured = [(rows, of_nearest[rows]) for rows in sorted(of_nearest)]
    return {path: _at(rows, measured, path) for path in measured[0][1]}


def _alike(points: Sequence[Point], parameters: Shapes) -> list[Point]:
    """Of every shape the points of the matrix with the nearest parameters."""
    found: list[Point] = []
    for shape in dict.fromkeys(map(_shape, points)):
        of_shape = [point for point in points if _shape(point) == shape]
        nearest = min(of_shape, key=lambda point: _apart(point, parameters))["parameters"]
        found += [point for point in of_shape if point["parameters"] == nearest]
    return found


def _fitted(points: Sequence[Point], n_out: int, n_in: int, rows: int) -> dict[str, float] | None:
    """The times by the law of `seconds`; None if the points do not determine it."""
    terms = np.array([_terms(point["n_out"], point["n_in"], point["rows"]) for point in points])
    names = [*points[0]["seconds"]]
    times = np.log([[point["seconds"][name] for name in names] for point in points])
    numbers, _, rank, _ = np.linalg.lstsq(terms, times)
    if rank < terms.shape[1]:
        return None
    return dict(zip(names, np.exp(_terms(n_out, n_in, rows) @ numbers).tolist(), strict=True))


def _terms(n_out: int, n_in: int, rows: int) -> np.ndarray:
    return np.array([1, math.log(n_out * n_in), abs(math.log(n_out / n_in)), math.log(max(rows, 1))])


def _apart(point: Point, parameters: Shapes) -> tuple[bool, float]:
    """How far parameters are from those of a point: by their names, then by their sizes."""
    pairs = zip(sizes(parameters), sizes(point["parameters"]), strict=False)
    return {*point["parameters"]} != {*parameters}, sum(abs(math.log(size / other)) for size, other in pairs)


def _matrix(point: Point) -> tuple[int, int, Shapes]:
    """The key of a measured matrix."""
    return *_shape(point), point["parameters"]


def _shape(point: Point) -> tuple[int, int]:
    return point["n_out"], point["n_in"]


def sizes(parameters: Shapes) -> list[int]:
    """The lengths of all axes, by the parameters' names.

    Args:
      parameters: the shapes of parameters.

    Returns:
      The lengths.

    Examples:
      >>> sizes({"b": (6, 1), "a": (1, 4)})
      [1, 4, 6, 1]
    """
    return [size for name in sorted(parameters) for size in parameters[name]]


def _at(rows: int, measured: list[tuple[int, Mapping[str, float]]], path: str) -> float:
    """Interpolates the seconds for a number of vectors; below the smallest measured number its time counts."""
    if len(measured) == 1 or rows <= measured[0][0]:
        return measured[0][1][path]
    index = next((index for index, (other, _) in enumerate(measured) if other >= rows), len(measured) - 1)
    (fewer, before), (more, after) = measured[index - 1 : index + 1]
    return before[path] + (after[path] - before[path]) / (more - fewer) * (rows - fewer)
