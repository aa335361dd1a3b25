"""Hardware that is only described: a name such as `tpu:v5e:4x4`, and the devices for which XLA's compilers take it.

Nothing is run on such devices, and none has to be there. The compiler for TPUs is libtpu, that for GPUs is jax's CUDA
plugin with NVIDIA's assembler; `pip install 'surm[aot-tpu]'` and `'surm[aot-gpu]'` bring them.
"""

import dataclasses
import importlib.resources
import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jaxlib

from surm.errors import InputError, nearest, one_line
from surm.machine.chips import CHIPS, Chip

_SHORT = ("tpu:v5e:4x4", "gpu:h100:8")
EXAMPLES = {"tpu": "tpu:v5e:4x4", "gpu": "gpu:h100:8, or gpu:h100:8x4 for four hosts of eight"}
"""A target of each platform, for error messages."""

_SEVERAL = ("coordinator_address", "num_processes", "process_id")
_NEEDS = {"tpu": ("libtpu",), "gpu": ("jax_plugins.xla_cuda12", "nvidia.cuda_nvcc")}
_ON_ONE_HOST = {"v5e": ((1, 1), (2, 4)), "v6e": ((1, 1), (2, 4))}
"""Grids that Google's machine types put on one host; all others have hosts of 2 × 2 chips."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Described hardware.

    Attributes:
      text: its name, as it was given.
      chip: the kind of its chips.
      grid: the numbers of a TPU's chips along each axis; of GPUs, the cards on a host and the number of hosts.
    """

    text: str
    chip: Chip
    grid: tuple[int, ...]

    @property
    def chips(self) -> int:
        """The number of chips."""
        return math.prod(self.grid)


def parse(text: str) -> Target:
    """Reads the name of a target.

    Args:
      text: `tpu:KIND:AxB` or `tpu:KIND:AxBxC` with the grid of chips, `gpu:KIND:N` with the number of cards, or
        `gpu:KIND:NxH` with that on each of H hosts.

    Returns:
      The target.

    Raises:
      InputError: if no such hardware is known.

    Examples:
      >>> parse("tpu:v5e:4x4").chips, parse("gpu:h100:8x4").grid
      (16, (8, 4))
    """
    platform, *rest = text.split(":")
    if platform not in EXAMPLES:
        raise InputError(f"--target={text}: no platform is called {platform!r}; examples are {' and '.join(_SHORT)}")
    kinds = [kind for kind, chip in CHIPS.items() if chip.platform == platform]
    if not rest or rest[0] not in kinds:
        said = f"no {platform} is called {rest[0]!r}; {nearest(rest[0], kinds)}" if rest else "expected a kind of chip"
        raise InputError(f"--target={text}: {said}; an example is {EXAMPLES[platform]}")
    chip, size = CHIPS[rest[0]], ":".join(rest[1:])
    axes = (1, 2) if platform == "gpu" else (2, 3)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size) or len(grid := tuple(map(int, size.split("x")))) not in axes:
        raise InputError(f"--target={text}: the size is {size!r}; expected such as {EXAMPLES[platform]}")
    grid = grid + (1,) if grid[1:] == () else grid
    if (given := grid[0] if platform == "gpu" else math.prod(grid)) > chip.most:
        whole = "a host has at most" if platform == "gpu" else "the largest pod has"
        raise InputError(f"--target={text}: {given} chips, but {whole} {chip.most}; an example is {EXAMPLES[platform]}")
    return Target(text, chip, grid)


def asked(options: Mapping[str, str | None], switches: Mapping[str, bool]) -> Target | None:
    """The target that a command line asks for; None if it asks for none.

    Args:
      options: the values of its options, with that of `target`; None for those that are not given.
      switches: whether each of its switches is given, with `dry_run`.

    Returns:
      The target.

    Raises:
      InputError: if no such hardware is known, or a flag is given that goes with another.
    """
    if options["target"] is None:
        if switches.get("json"):
            raise InputError("--json goes with --dry_run --target=..., whose report it prints")
        return None
    if not switches["dry_run"]:
        raise InputError(f"--target={options['target']} is hardware to compile for, not to train on; add --dry_run")
    if switches.get("distributed") or any(options.get(name) for name in _SEVERAL):
        raise InputError(f"--target={options['target']} describes all hosts; leave out --distributed and "
                         f"{', '.join(f'--{name}' for name in _SEVERAL)}")  # fmt: skip
    return parse(options["target"])


def only_described() -> None:
    """Keeps JAX from this machine's own accelerators; call it before JAX computes anything.

    Programs are compiled for a target and run nowhere, and what is computed at once needs a CPU only.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # which only holds programs that can be loaded


def devices_of(target: Target) -> Sequence[jax.Device]:
    """The devices of a target, for meshes of programs that are compiled and not run.

    Args:
      target: from `parse`.

    Returns:
      The devices of all hosts.

    Raises:
      InputError: if the compiler is not installed or refuses the target.
    """
    platform = target.chip.platform
    if missing := [name for name in _NEEDS[platform] if not _installed(name)]:
        raise InputError(f"--target={target.text} needs the compiler for {platform.upper()}s (not installed: "
                         f"{', '.join(missing)}): pip install 'surm[aot-{platform}]'")  # fmt: skip
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(**(_tpu if platform == "tpu" else _gpu)(target)).devices
    except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError) as error:
        by = f"the compiler for {platform.upper()}s of jaxlib {jaxlib.__version__}"
        raise InputError(f"--target={target.text}: {by} refuses it: {one_line(error)}") from error


def compiler_options(target: Target) -> dict[str, Any]:
    """The options with which programs are compiled for a target.

    No product is timed to choose its kernel, because there is no card, and cuBLAS computes all of them.
    """
    if target.chip.platform == "tpu":
        return {}
    import nvidia.cuda_nvcc

    return {
        "xla_gpu_cuda_data_dir": [*nvidia.cuda_nvcc.__path__][0],
        "xla_gpu_autotune_level": 0,
        "xla_gpu_enable_triton_gemm": False,
    }


def _installed(name: str) -> bool:
    """Whether a module, or a part of a package, can be imported; nothing is imported but its parents."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _tpu(target: Target) -> dict[str, Any]:
    """The arguments that describe a slice of a pod."""
    # libtpu asks these of the machine it believes to be on, and complains if nothing answers. Their values do not
    # matter to a description.
    about = {"TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_SKIP_MDS_QUERY": "1",
             "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # fmt: skip
    for name, value in about.items():
        os.environ.setdefault(name, value)
    kind, options = target.chip.kind, {}
    if target.grid in _ON_ONE_HOST.get(kind, ()):
        options["chips_per_host_bounds"] = (*target.grid, 1)
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # one device a chip, as on Cloud TPUs; libtpu describes two
    name = f"{kind}:{'x'.join(map(str, target.grid))}"
    return {"platform": "tpu", "topology_name": name, **options}


def _gpu(target: Target) -> dict[str, Any]:
    """The arguments that describe hosts of GPUs."""
    card = importlib.resources.files("surm.machine") / "cards" / f"{target.chip.kind}.textproto"
    cards, hosts = target.grid
    return {"platform": "cuda", "target_config": card.read_text(), "topology": f"1x{hosts}x{cards}"}
