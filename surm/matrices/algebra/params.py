"""The type of a family's parameters, and the checks of shapes and options that families share.

A family's parameters are a flat dictionary of arrays. Its options (a rank, a block size, one vector or two) can be
read from the keys and shapes of that dictionary, so nothing else has to be stored.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Params = dict[str, Float[Array, "..."]]


def working_dtype(*arrays: Float[Array, "..."]) -> jnp.dtype:
    """The arrays' common floating type, float32 at least: FFTs and SVDs refuse bfloat16.

    Args:
      *arrays: the arrays that meet in one computation.

    Returns:
      float64 if one of them is float64, otherwise float32.

    Examples:
      >>> import jax.numpy as jnp
      >>> working_dtype(jnp.zeros(2, jnp.bfloat16)).name
      'float32'
    """
    return jnp.result_type(jnp.float32, *(array.dtype for array in arrays))


def check_sizes(n_out: int, n_in: int) -> None:
    """Refuse a matrix without rows or columns.

    Args:
      n_out: rows.
      n_in: columns.

    Raises:
      ValueError: if one of them is below 1.
    """
    if n_out < 1 or n_in < 1:
        raise ValueError(f"n_out and n_in must be at least 1; given n_out={n_out}, n_in={n_in}")


def check_positive(name: str, value: int) -> None:
    """Refuse a rank, a number of terms or a block size below 1.

    Args:
      name: the name of the value.
      value: the value.

    Raises:
      ValueError: if it is below 1.
    """
    if value < 1:
        raise ValueError(f"{name} must be at least 1; given {name}={value}")


def check_divides(name: str, value: int, n_out: int, n_in: int) -> None:
    """Refuse a rank or a block size that does not divide both sides of the matrix.

    Args:
      name: the name of the value.
      value: the value.
      n_out: rows.
      n_in: columns.

    Raises:
      ValueError: if it is below 1 or leaves a remainder.
    """
    check_positive(name, value)
    if n_out % value or n_in % value:
        both = [divisor for divisor in range(1, min(n_out, n_in) + 1) if n_out % divisor == n_in % divisor == 0]
        given, shown = f"{name}={value}, n_out={n_out}, n_in={n_in}", ", ".join(map(str, both[:16]))
        raise ValueError(f"{name} must divide n_out and n_in, as {shown} do; given {given}")


def check_keys(params: Params, *forms: tuple[str, ...]) -> tuple[str, ...]:
    """Determine from the names of the parameters which of a family's forms they have.

    Args:
      params: the parameters.
      *forms: for each form of the family, the names of its parameters in sorted order.

    Returns:
      The form whose names are exactly those of `params`.

    Raises:
      ValueError: if there is no such form.

    Examples:
      >>> import jax.numpy as jnp
      >>> check_keys({"c": jnp.zeros(3)}, ("a", "b"), ("c",))
      ('c',)
    """
    given = tuple(sorted(params))
    if given not in forms:
        expected = " or ".join(str(form) for form in forms)
        raise ValueError(f"given parameters named {given}; expected {expected}")
    return given


def check_shape(name: str, array: jax.typing.ArrayLike, expected: tuple[int, ...], why: str) -> None:
    """Refuse an array whose shape does not fit the matrix.

    Args:
      name: the name of the array.
      array: the array.
      expected: the shape it must have.
      why: the origin of that shape, for the message.

    Raises:
      ValueError: if the shapes differ.
    """
    if array.shape != expected:
        raise ValueError(f"{name} has shape {array.shape}; expected {expected} for {why}")


def check_shapes(params: Params, expected: Mapping[str, tuple[int, ...]], why: str) -> None:
    """Refuse parameters whose shapes do not fit the matrix; the error names the first one.

    Args:
      params: the parameters.
      expected: the shape that each must have, in the order of checking.
      why: the origin of those shapes, for the message.

    Raises:
      ValueError: if one differs.
    """
    for name, shape in expected.items():
        check_shape(name, params[name], shape, why)


def check_ndim(name: str, array: jax.Array, axes: str) -> None:
    """Refuse an array whose number of axes is not the one that the family expects.

    Args:
      name: the name of the array.
      array: the array.
      axes: the names of the axes it must have, separated by blanks.

    Raises:
      ValueError: if their number differs.
    """
    if array.ndim != len(axes.split()):
        raise ValueError(f"{name} has shape {array.shape}; expected the axes ({axes})")


def input_size(x: Float[Array, "..."]) -> int:
    """The length n_in of the vectors along x's last axis.

    Args:
      x: a batch of vectors.

    Returns:
      The size of the last axis.

    Raises:
      ValueError: if x has no axis, or its last axis is empty.
    """
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x has shape {x.shape}; expected (..., n_in) with n_in at least 1")
    return x.shape[-1]
