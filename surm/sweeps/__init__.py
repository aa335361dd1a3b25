"""Sweeps: the lists of overrides that a config's `sweep()` returns, and the launchers that train their runs."""

from surm.sweeps.overrides import Overrides, flags, product, zipped

__all__ = ["Overrides", "flags", "product", "zipped"]
