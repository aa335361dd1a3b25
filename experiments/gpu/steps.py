"""Whole training steps: built in threads, ours timed as soon as they are ready, then ours and HF PEFT's in turns."""

import concurrent.futures
import functools
import importlib
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from experiments.gpu import llama
from experiments.shared import methods, turns
from experiments.speed import ours as encoders
from experiments.speed.ours import Setting, Step
from surm.errors import InputError, one_line

PEER = "HF PEFT "
FLOOR, LORA = "floor", "low_rank r=8"
OURS = (LORA, *(method for method in methods.ON_ACCELERATORS if method != LORA), FLOOR)
SMALL = (LORA, "kronecker", FLOOR)
PEERS = ("C3A", "LoRA r=8", "LoKr", FLOOR)
OVER = {"own_lora": LORA, "own_floor": FLOOR, "peft_c3a": f"{PEER}C3A", "peft_lora": f"{PEER}LoRA r=8"}
"""What every time is divided by."""
MODELS = ("bert_base", llama.NAME)
_FOR_BUILDING, _FOR_OURS, _FOR_BOTH = 0.8, 0.3, 0.6
"""The part of the time after which unfinished steps are given up, and the parts of what is then left for timing."""
_ROUNDS = 31
"""At most; fewer if the time is over."""

_ALONE = threading.Lock()

Build = Callable[[], Step]


class Named(NamedTuple):
    """A step by its method and path, or a method of HF PEFT."""

    method: str
    path: str = "auto"

    @property
    def label(self) -> str:
        """Its name in the results."""
        return self.method if self.path == "auto" else f"{self.method}, {self.path}"


def own_builder(model: str, small: bool) -> Callable[[str, str], Step]:
    """The function from a method and a path to a step of ours."""
    if model == llama.NAME:
        return llama.builder(small)
    return lambda method, path: encoders.step(setting(small), method, path)


def setting(small: bool) -> Setting:
    """The encoder's shape and batch."""
    return Setting("bert_tiny", 1, llama.DTYPE) if small else Setting("bert_base", 64, llama.DTYPE)


def peer_builder(model: str, small: bool) -> Callable[[str], Step]:
    """The same for HF PEFT; InputError if PyTorch has no device like JAX's."""
    for needed in ("torch", "transformers", "peft"):
        importlib.import_module(needed)  # or an error names the first one that is missing
    from experiments.speed import peers

    if (peers.DEVICE == "cuda") != (jax.default_backend() == "gpu"):
        raise InputError(
            f"PyTorch runs on {peers.DEVICE}, JAX on {jax.default_backend()}; expected one device for both"
        )
    build = llama.peer_builder(small) if model == llama.NAME else lambda method: peers.step(setting(small), method)

    def watched(method: str) -> Step:
        before = peers.used_bytes()
        step = build(method)
        step.run()
        peers.forget_peak()
        step.run()
        peak = peers.peak_bytes()
        return step._replace(known=step.known | ({} if peak is None else {"peak_bytes": peak - before}))

    return watched


def measure(
    model: str,
    own: Sequence[Named],
    until: float,
    small: bool,
    write: Callable[[dict], None],
    *,
    with_peers: bool = True,
) -> None:
    """Builds and times the steps of a model; writes what there is at the beginning, after ours and at the end."""
    began, peers = time.time(), PEERS if with_peers else ()
    found: dict[str, Any] = {
        "model": model, "asked": [one.label for one in own] + [PEER + method for method in peers],
        "size": (setting(small) if model == MODELS[0] else llama.size(small)), "rows": {}, "failed": {},
    }  # fmt: skip
    write(found)
    steps, found["failed"] = built(tasks(model, own, peers, small), began + _FOR_BUILDING * (until - began))
    own_steps = {label: step for label, step in steps.items() if not _is_peer(label)}
    for share, group in ((_FOR_OURS, own_steps), (_FOR_BOTH, steps if len(steps) > len(own_steps) else {})):
        runs, peers_of = {label: step.run for label, step in group.items()}, [*filter(_is_peer, group)]
        seconds = turns.timed(runs, _ROUNDS, peers_of, within=share * (until - time.time()))
        found["rows"] |= {label: row(step, seconds, label) for label, step in group.items()}
        write(found)


def _is_peer(label: str) -> bool:
    return label.startswith(PEER)


def tasks(
    model: str, own: Sequence[Named], of_peers: Sequence[str], small: bool
) -> tuple[dict[str, Build], dict[str, Build]]:
    """The functions that build ours and HF PEFT's, by label; what both have in common is made at the first call."""
    ours, peers = own_builder(model, small), functools.cache(lambda: peer_builder(model, small))
    return (
        {one.label: lambda one=one: ours(*one) for one in own},
        {PEER + method: lambda method=method: peers()(method) for method in of_peers},
    )


def built(tasks: Sequence[Mapping[str, Build]], until: float) -> tuple[dict[str, Step], dict[str, str]]:
    """The steps that are ready in time, and why others are not. Ours compile in threads, PyTorch has one of its own."""
    pools = [concurrent.futures.ThreadPoolExecutor(number) for number in (os.cpu_count() or 1, 1)]
    futures = {label: pool.submit(_said, label, build) for pool, of in zip(pools, tasks, strict=True)
               for label, build in of.items()}  # fmt: skip
    concurrent.futures.wait(futures.values(), timeout=max(until - time.time(), 0))
    steps, failed = {}, {}
    for label, future in futures.items():
        if not future.done():
            failed[label] = "not ready in time"
        elif error := future.exception():
            failed[label] = f"{type(error).__name__}: {one_line(error)}"
        else:
            steps[label] = future.result()
    for pool in pools:
        pool.shutdown(wait=False, cancel_futures=True)
    return steps, failed


def _said(label: str, build: Build) -> Step:
    began = time.time()
    step = build()
    with _ALONE:  # as the temporary memory of several could be too much
        step.run()  # or it fails where others would be stopped with it
    print(f"ready: {label}, {time.time() - began:.0f} s", file=sys.stderr, flush=True)
    return step


def row(step: Step, seconds: Mapping[str, Sequence[float]], label: str) -> dict[str, Any]:
    """What is known of a step, its median, and the quartiles of its ratios within rounds."""
    over = {f"over_{name}": turns.ratios(seconds[label], seconds[of]) for name, of in OVER.items() if of in seconds}
    return {**step.known, "median_seconds": statistics.median(seconds[label]), "rounds": len(seconds[label]), **over}
