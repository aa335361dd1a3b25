"""What every family takes and refuses: the type of its parameters, and checks that say what was wrong.

A family's parameters are a flat dictionary of arrays. Its options (a rank, a block size, one vector or two)
are read back from the keys and shapes of that dictionary, so nothing else has to be stored with it.
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
      float64 where one of them is float64, float32 otherwise.

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
      name: what the value is called.
      value: the value.

    Raises:
      ValueError: if it is below 1.
    """
    if value < 1:
        raise ValueError(f"{name} must be at least 1; given {name}={value}")


def check_divides(name: str, value: int, n_out: int, n_in: int) -> None:
    """Refuse a rank or a block size that does not divide both sides of the matrix.

    Args:
      name: what the value is called.
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
    """Tell which of a family's forms the parameters are, by their names.

    Args:
      params: the parameters.
      *forms: the sorted names of each form the family knows.

    Returns:
      The form whose names are exactly those of `params`.

    Raises:
      ValueError: if none is.

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


def check_shape(name: str, array: jax.Array, expected: tuple[int, ...], why: str) -> None:
    """Refuse an array of another shape than the matrix asks for.

    Args:
      name: what the array is called.
      array: the array.
      expected: the shape it must have.
      why: where that shape comes from, for the message.

    Raises:
      ValueError: if the shapes differ.
    """
    if array.shape != expected:
        raise ValueError(f"{name} has shape {array.shape}; expected {expected} for {why}")


def check_shapes(params: Params, expected: Mapping[str, tuple[int, ...]], why: str) -> None:
    """Refuse parameters of other shapes than the matrix asks for, the first of them by name.

    Args:
      params: the parameters.
      expected: the shape that each must have, in the order to look.
      why: where those shapes come from, for the message.

    Raises:
      ValueError: if one differs.
    """
    for name, shape in expected.items():
        check_shape(name, params[name], shape, why)


def check_ndim(name: str, array: jax.Array, axes: str) -> None:
    """Refuse an array with another number of axes than the family stores.

    Args:
      name: what the array is called.
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
