"""Types of variables, which tell trained variables from those kept frozen beside the base."""

from flax import nnx


class Trainable(nnx.Param):
    """A parameter that trains; everything else in a model with an adapter is frozen."""


class AdapterParam(Trainable):
    """A trained parameter that belongs to the method itself, rather than to the task's head."""


class FixedParam(nnx.Variable):
    """An array of a method that never trains; it is recomputed from the base and the spec, and is not stored."""


class BaseArray(nnx.Variable):
    """A frozen array of a merged layer, kept so that unmerging restores its bits."""
