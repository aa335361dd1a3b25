"""SURM_REQUIRE_PARITY=1 turns a missing torch or transformers from a skip into a failure."""

import importlib.util
import os

import pytest

MISSING = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
if MISSING and os.environ.get("SURM_REQUIRE_PARITY") == "1":
    raise pytest.UsageError(f"parity tests need {' and '.join(MISSING)}: pip install -e .[test,parity]")
collect_ignore_glob = ["*"] if MISSING else []
