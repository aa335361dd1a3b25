"""The accelerators that `--target` can describe, with what their makers' data sheets say of one chip."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
      kind: its name in a target, such as `v5e`.
      platform: `tpu` or `gpu`.
      memory: bytes of high-bandwidth memory of one chip.
      peak: operations a second in matrix products, without sparsity, by the dtype in which the model computes. A
        product of float32 arrays is computed as XLA's default precision does: from bfloat16 on a TPU, from TF32 on a
        GPU.
      bandwidth: bytes a second between the memory and the chip.
      links: bytes a second that a chip can send to others of the same slice or host; they arrive at the same rate.
      most: the number of chips in the largest pod, or of the cards that a host can have.
      source: the data sheet.
    """

    kind: str
    platform: str
    memory: int
    peak: Mapping[str, float]
    bandwidth: float
    links: float
    most: int
    source: str


def _tpu(kind: str, gibibytes: int, peak: float, bandwidth: float, both_ways: float, most: int) -> Chip:
    peaks, source = dict.fromkeys(("bfloat16", "float32"), peak), f"https://cloud.google.com/tpu/docs/{kind}"
    return Chip(kind, "tpu", gibibytes * 2**30, peaks, bandwidth, both_ways / 2, most, source)


def _gpu(kind: str, gigabytes: int, peak: float, bandwidth: float, both_ways: float) -> Chip:
    peaks, source = {"bfloat16": peak, "float32": peak / 2}, f"https://www.nvidia.com/en-us/data-center/{kind}/"
    return Chip(kind, "gpu", gigabytes * 10**9, peaks, bandwidth, both_ways / 2, 8, source)


CHIPS = {
    chip.kind: chip
    for chip in (
        _tpu("v4", 32, 275e12, 1200e9, 600e9, 4096),
        _tpu("v5e", 16, 197e12, 819e9, 400e9, 256),
        _tpu("v5p", 95, 459e12, 2765e9, 1200e9, 8960),
        _tpu("v6e", 32, 918e12, 1638e9, 800e9, 256),
        _gpu("a100", 80, 312e12, 2039e9, 600e9),
        _gpu("h100", 80, 989.4e12, 3350e9, 900e9),
        _gpu("h200", 141, 989.4e12, 4800e9, 900e9),
    )
}
"""Every kind. The GPUs are those with SXM sockets; the A100 is the one with 80 GB."""
