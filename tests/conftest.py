"""What many tests share: a small ViT with random weights, and how programs are compiled."""

import dataclasses
import gc
import math
import os
import pathlib
import shutil
from collections.abc import Iterator

# Tests with a mesh start their own process with more devices; the rest must not depend on the machine's.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["SURM_CACHE"] = "/dev/null/none"  # calibrations of this machine must not decide; nothing can be written

# Most of the time would go into LLVM's passes over programs that run a few times. XLA's own passes, which decide what
# is computed and kept, are as shipped. `make slow` and `make parity` set this variable and compile as users do.
if not os.environ.get("SURM_TESTS_AS_SHIPPED"):
    quick = [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",  # the emitters through MLIR take twice as long for the same loops
        "--xla_cpu_parallel_codegen_split_count=1",  # two workers keep two cores busy
    ]
    os.environ.setdefault("XLA_FLAGS", " ".join(quick))

import jax
import pytest
from flax import nnx

from surm.machine import notes
from surm.models import vit
from tests import durations

# Many runs compile the same programs: what pytest, a worker of it or a process that it starts has compiled serves all,
# and the next `make test` too. JAX finds a program by its content, the compiler's version and the flags.
COMPILED = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "compiled"
MOST_BYTES = 2**30  # programs of earlier code pile up
if "SURM_TESTS_COMPILED" not in os.environ:
    os.environ["SURM_TESTS_COMPILED"] = str(COMPILED)
    if sum(file.stat().st_size for file in COMPILED.glob("*")) > MOST_BYTES:
        shutil.rmtree(COMPILED)
FROM_SECONDS = 0.1  # what compiles faster costs as much to keep and to read
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["SURM_TESTS_COMPILED"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(FROM_SECONDS)
jax.config.update("jax_compilation_cache_dir", os.environ["SURM_TESTS_COMPILED"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", FROM_SECONDS)

gc.set_threshold(200_000, 20, 100)  # traces leave much behind, of which nearly all goes by its counts

SMALL = vit.ViTConfig(image_size=16, patch_size=8, width=12, depth=2, heads=3, mlp_width=24, epsilon=1e-6)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: who began one last would be the only worker left in the end.

    The files of a folder stay together, since tests/matrices frees what it has compiled when it is left.
    """
    order, root = durations.order(), pathlib.Path(__file__).parents[1]
    of_file = {item.path: order.get(item.path.relative_to(root).as_posix(), math.inf) for item in items}
    of_folder: dict[pathlib.Path, float] = {}
    for file, place in of_file.items():
        of_folder[file.parent] = min(place, of_folder.get(file.parent, math.inf))
    items.sort(key=lambda item: (of_folder[item.path.parent], of_file[item.path]))


@pytest.fixture(autouse=True)
def said() -> Iterator[None]:
    """What the library says is shown, as it is by commands."""
    with notes.shown(alone=False):  # pytest's own handlers see it, too
        yield


@pytest.fixture
def small_vit() -> vit.ViT:
    return vit.ViT(SMALL, 5, rngs=nnx.Rngs(0))


@pytest.fixture
def one_block() -> vit.ViT:
    """Of half the depth, so that its programs compile in half the time."""
    return vit.ViT(dataclasses.replace(SMALL, depth=1), 5, rngs=nnx.Rngs(0))


@pytest.fixture(scope="session")
def images() -> jax.Array:
    return jax.random.normal(jax.random.key(7), (3, 16, 16, 3))
