"""Sweeps: lists of overrides that a config's `sweep()` returns, and where their runs are trained."""

from surm.sweeps.overrides import Overrides, flags, product, zipped

__all__ = ["Overrides", "flags", "product", "zipped"]
