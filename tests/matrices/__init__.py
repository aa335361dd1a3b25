"""Tests of `surm.matrices`."""
