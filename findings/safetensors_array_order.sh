#!/usr/bin/env bash
# safetensors 0.8.0 (numpy 2.3.5): an array that is not in C order is written scrambled, without a word.
#
# `safetensors.numpy.save` takes a transposed view, an array in Fortran's order or every second entry, writes the memory
# as it lies under the right shape, and what is read back holds other numbers. 0.7.0 wrote the same arrays as they are.
# The docstring asks for contiguous tensors in both, but nothing checks; and an array whose layout on its device is
# column-major (JAX can be asked for that, and chooses it by itself with automatic layouts) comes to NumPy in such an
# order without anybody having transposed it.
#
# Seen:
#   0.7.0  transposed: as given       Fortran's order: as given      every second: as given
#   0.8.0  transposed: scrambled      Fortran's order: scrambled     every second: scrambled
#
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/run.py" <<'PYTHON'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load, save

numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
given = {"transposed": numbers.T, "Fortran's order": np.asfortranarray(numbers), "every second": numbers[:, ::2]}
same = {name: bool((load(save({"a": array}))["a"] == array).all()) for name, array in given.items()}
print(safetensors.__version__, " ".join(f"{name}: {'as given' if ok else 'scrambled'}" for name, ok in same.items()))
expected = safetensors.__version__ == "0.7.0"
sys.exit(any(ok != expected for ok in same.values()))
PYTHON
for version in 0.7.0 0.8.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install -q --disable-pip-version-check "safetensors==$version" numpy==2.3.5
  "$folder/$version/bin/python" "$folder/run.py"
done
