#!/usr/bin/env bash
# jax 0.10.2 on a CPU with AVX512-BF16: a product in bfloat16 is fast only if its result is asked for in float32.
#
# x @ w of two bfloat16 arrays is expected to be no slower than the same product with a float32 result, which writes
# twice the bytes. XLA's CPU compiler does the reverse: for a bfloat16 result it first converts both factors to float32
# and multiplies those; with preferred_element_type=float32 it multiplies the bfloat16 numbers as they are. Casting that
# result to bfloat16 keeps the fast product.
#
# Seen, for 512x576 times 576x1536: both factors converted in the first program, none in the second, which took 0.49 of
# the first one's time (float32 throughout: 0.92). The times are printed, and only the programs are compared.
#
# Exits 0 while that is so, 1 when it has changed, 2 on a CPU without these instructions.
set -euo pipefail
grep -q avx512_bf16 /proc/cpuinfo || exit 2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import re
import sys
import time

import jax
import jax.numpy as jnp

x, w = jnp.ones((512, 576), jnp.bfloat16), jnp.ones((576, 1536), jnp.bfloat16)


def narrow(x, w):
    return x @ w


def wide(x, w):
    return jnp.matmul(x, w, preferred_element_type=jnp.float32).astype(jnp.bfloat16)


def converted(function):
    text = jax.jit(function).lower(x, w).compile().as_text()
    return len(re.findall(r"f32\[(?:512,576|576,1536)\]\{1,0\} convert\(", text))


def seconds(function):
    compiled, found = jax.jit(function), []
    for _ in range(30):
        began = time.perf_counter()
        compiled(x, w).block_until_ready()
        found.append(time.perf_counter() - began)
    return min(found)


factors = {function.__name__: converted(function) for function in (narrow, wide)}
print("factors converted to float32:", factors)
print(f"time of wide over narrow: {seconds(wide) / seconds(narrow):.2f}")
sys.exit(factors != {"narrow": 2, "wide": 0})
PYTHON
