"""What a step frees the next one gets: counted in page faults, in a process of its own."""

import subprocess
import sys

import pytest

from surm.machine.memory import keep_freed_memory, return_freed_memory

STEPS = """
import resource, statistics, sys
from surm.machine.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: (jnp.sin(x) @ jnp.cos(x)).sum())
x = jnp.ones((1024, 1024))
counts = []
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(statistics.median(counts[10:])))
"""


def faults(mode: str) -> int:
    """Of the middle step: now and then the heap grows once more, when blocks fall otherwise."""
    command = [sys.executable, "-c", STEPS, mode]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux")
def test_steps_get_their_memory_from_the_step_before():
    if faults("let go") < 1000:
        pytest.skip("this C library keeps freed memory by itself")
    assert faults("keep") < 100


FREED = """
import gc, pathlib, resource
import numpy as np
from surm.machine import memory
assert memory.keep_freed_memory()
held = lambda: int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20  # MiB
large, after = np.ones(25_000_000), np.ones(1000)
before = held()
del large
gc.collect()
kept = held()
assert memory.return_freed_memory()
print(before, kept, held())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux")
def test_what_is_kept_is_returned_when_asked_for():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True)
    if "assert memory.keep_freed_memory()" in done.stderr:
        pytest.skip("another C library")
    before, kept, after = map(int, done.stdout.split())
    assert kept > before - 20 and after < before - 150  # of 190 MiB


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory() and not return_freed_memory()
