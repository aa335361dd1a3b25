"""What many tests share: a small ViT with random weights, and a config that trains it in a second."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

# Tests with a mesh start their own process with more devices; the rest must not depend on the machine's.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from flax import nnx

from surm.machine import notes
from surm.models import vit

# Many runs compile the same programs: what this process or one that it starts has compiled serves the next.
COMPILED = tempfile.mkdtemp(prefix="surm_compiled_")
atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)
os.environ |= {"JAX_COMPILATION_CACHE_DIR": COMPILED, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}
jax.config.update("jax_compilation_cache_dir", COMPILED)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

SMALL = vit.ViTConfig(image_size=16, patch_size=8, width=12, depth=2, heads=3, mlp_width=24, epsilon=1e-6)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs first: a worker that began a file of them last would be the only one at work in the end."""
    items.sort(key=lambda item: item.path.parent.name != "tests")


@pytest.fixture(autouse=True)
def said() -> Iterator[None]:
    """What the library says is shown, as it is by commands."""
    with notes.shown(alone=False):  # pytest's own handlers see it, too
        yield


@pytest.fixture
def small_vit() -> vit.ViT:
    return vit.ViT(SMALL, 5, rngs=nnx.Rngs(0))


@pytest.fixture(scope="session")
def images() -> jax.Array:
    return jax.random.normal(jax.random.key(7), (3, 16, 16, 3))
