"""Names of runs' folders, made from the keys that a run sets."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from surm import config as configs

_LONGEST = 100  # characters of a name; file systems take 255 bytes


def name(overrides: Mapping[str, Any]) -> str:
    """The name of a run's folder; it depends only on the run's overrides, not on their order or on other runs.

    Unusual characters are dropped and a long name is cut; a hash then keeps the name unique.

    Examples:
      >>> name({"seed": 0, "peft.family": "circulant"}), name({"peft.dropout": 0.1}), name({})
      ('family=circulant,seed=0', 'peft.dropout=0.1', 'defaults')
      >>> name({"peft.targets": r".*\\.(query|value)"})
      'targets=._._query_value_-e494a3'
    """
    parts = sorted(f"{short(key)}={value}" for key, value in overrides.items())
    plain = [re.sub(r"[^\w.+=-]+", "_", part, flags=re.ASCII) for part in parts]
    text = ",".join(plain)[:_LONGEST] or "defaults"
    return text if text == (",".join(parts) or "defaults") else f"{text}-{digest(sorted(overrides.items()))}"


def short(key: str) -> str:
    """The last part of a dotted key, or the whole key if another key ends in the same part."""
    end = key.rpartition(".")[2]
    alike = [other for other in configs.KEYS if other.rpartition(".")[2] == end]
    return end if alike == [key] else key


def digest(value: object) -> str:
    """A hash of a value, six characters long."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:6]
