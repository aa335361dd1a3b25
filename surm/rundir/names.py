"""What a run's folder is called: by the keys that it sets."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from surm import config as configs

_LONGEST = 100  # characters of a name; file systems take 255 bytes


def name(overrides: Mapping[str, Any]) -> str:
    """The name of a run, for its folder: it depends on its overrides alone, not on their order or on other runs.

    A value with characters that need care loses them, a long name is cut, and a hash makes such a name unique.

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
    """A dotted key without what comes before its last dot, unless another key of a config ends alike."""
    end = key.rpartition(".")[2]
    alike = [other for other in configs.KEYS if other.rpartition(".")[2] == end]
    return end if alike == [key] else key


def digest(value: object) -> str:
    """Six characters that tell one value from another."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:6]
