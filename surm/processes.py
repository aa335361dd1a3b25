"""Several processes that train one run together, one on every host: how they meet, agree and end.

Started by whatever the cluster has, with the same command in each; JAX connects them. The first one reads and writes
the run's folder, the others need not see it. What one of them alone can know (what the folder holds, that it was asked
to stop) reaches all at the same place, so that they take the same steps.
"""

import contextlib
import io
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from surm import mesh as meshes
from surm.errors import InputError, one_line

Tree = TypeVar("Tree")

OPTIONS = {
    "coordinator_address": "HOST:PORT at which process 0 is met, where JAX does not find it by itself",
    "num_processes": "how many processes train together",
    "process_id": "which of them this is, from 0",
    "join_seconds": "how long to wait for the others at the start; 300 if not given",
}
SWITCHES = {"distributed": "train with the other processes that a TPU pod, Slurm, GKE or MPI has started"}
LOST = 4
"""The exit status of a process whose run cannot go on because another process has ended."""

_HEARTBEAT_SECONDS = 30  # after which a silent process counts as lost
_GRACE_SECONDS = 2  # in which the others say what stopped them, before the one they are connected by ends
_OF_OTHERS = ("gloo", "nccl", "coordination", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "collective", "socket")


def join(options: Mapping[str, str | None], *, distributed: bool) -> None:
    """Meets the other processes of the run, if there are any; before JAX computes anything.

    Args:
      options: `OPTIONS` as the command line gives them, None where it does not.
      distributed: whether JAX shall find in the cluster's environment what they leave out.

    Raises:
      InputError: for a value that is none, or where JAX finds no cluster.
      SystemExit: with status 2 if the others do not come in time; it cannot be caught, as JAX waits meanwhile.
    """
    wait = _whole("join_seconds", options["join_seconds"] or "300")
    address = options["coordinator_address"]
    given = {
        "coordinator_address": address,
        "num_processes": _whole("num_processes", options["num_processes"]),
        "process_id": _whole("process_id", options["process_id"]),
    }
    if not distributed and all(value is None for value in given.values()):
        return
    if address is not None and not address.rpartition(":")[2].isdecimal():
        raise InputError(f"--coordinator_address={address}, expected HOST:PORT")
    met = threading.Event()
    threading.Thread(target=_end_unless, args=(met, wait, given), daemon=True).start()
    try:
        # JAX ends the process when its own time is over, and says less.
        jax.distributed.initialize(
            **given, initialization_timeout=wait + 60, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"the processes of this run cannot meet: {one_line(error)}; JAX knows the environments of TPU pods, Slurm, "
            "GKE and MPI; elsewhere give --coordinator_address=HOST:PORT --num_processes=N --process_id=I"
        ) from error
    finally:
        met.set()


def _whole(name: str, text: str | None) -> int | None:
    if text is not None and not text.isdecimal():
        raise InputError(f"--{name}={text}, expected a whole number")
    return None if text is None else int(text)


def _end_unless(met: threading.Event, wait: int, given: Mapping[str, Any]) -> None:
    """Ends the process if it has not met the others after so many seconds."""
    if not met.wait(wait):
        where = given["coordinator_address"] or "the coordinator that JAX found"
        print(f"error: not all processes of the run met at {where} within {wait} seconds; is process 0 there, can it "
              "be reached, and were all started? (--join_seconds)", file=sys.stderr)  # fmt: skip
        _leave(2)


def is_first() -> bool:
    """Whether this process is the one that reads and writes the run's folder."""
    return jax.process_index() == 0


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Inside a `with` block only the first process writes on standard output."""
    with contextlib.nullcontext() if is_first() else contextlib.redirect_stdout(io.StringIO()):
        yield


def from_first(act: Callable[[], Any]) -> Any:
    """What a function finds in the first process, in all; the others do not call it.

    Args:
      act: returns JSON values.

    Returns:
      What it returned.

    Raises:
      InputError: if it raised that.
    """
    if jax.process_count() == 1:
        return act()
    found: dict[str, Any] = {}
    if is_first():
        try:
            found = {"value": act()}
        except InputError as error:
            found = {"refused": str(error)}
    data = json.dumps(found).encode()
    (size,) = copied_from_first(np.array([len(data)], np.int32))
    text = copied_from_first(np.frombuffer(data.ljust(size), np.uint8) if is_first() else np.zeros(size, np.uint8))
    found = json.loads(text.tobytes())
    if "refused" in found:
        raise InputError(found["refused"])
    return found["value"]


def check_same(what: str, own: Mapping[str, Any]) -> None:
    """Sees to it that all processes have the same of something, as they must if they are to train one model.

    Args:
      what: its name, for the message.
      own: JSON values by name.

    Raises:
      InputError: in a process that has something else than the first.
    """
    first, own = from_first(lambda: dict(own)), json.loads(json.dumps(dict(own)))
    if other := [f"{name}={own.get(name)!r}, there {first.get(name)!r}" for name in first | own
                 if first.get(name) != own.get(name)]:  # fmt: skip
        raise InputError(
            f"process {jax.process_index()} has another {what} than process 0: {', '.join(other)}; start the same "
            "command on the same files in all"
        )


def copied_from_first(tree: Tree) -> Tree:
    """Arrays of the first process, bit for bit, in all.

    Args:
      tree: of numpy arrays; of the same shapes and types in all processes.

    Returns:
      The first process's.
    """
    if jax.process_count() == 1:
        return tree
    raw = jax.tree.map(lambda value: np.frombuffer(value.tobytes(), np.uint8), tree)
    copied = multihost_utils.broadcast_one_to_all(raw)
    return jax.tree.map(
        lambda value, bits: np.frombuffer(bits.astype(np.uint8).tobytes(), value.dtype).reshape(value.shape),
        tree,
        copied,
    )


class StopRequest:
    """Whether the run was asked to stop: in all processes at the same step, whichever of them was asked."""

    def __init__(self, own: list[int], mesh: Mesh):
        """Takes the signals that come to this process, from `surm.stopping.requests`."""
        self._own, self._mesh, self._asked = own, mesh, None
        self._highest = jax.jit(jnp.max, out_shardings=meshes.replicated(mesh))

    def signal(self) -> int:
        """The number of the signal that came, 0 if none has; to be called by all processes at every step.

        Among several processes the answer is the one of the call before, which nobody has to wait for.
        """
        now = max(self._own, default=0)
        if jax.process_count() == 1:
            return now
        before = self._asked
        rows = np.full(len(self._mesh.local_mesh.devices), now, np.int32)
        self._asked = self._highest(meshes.put_batch(self._mesh, rows))
        return 0 if before is None else int(before)


def ending(act: Callable[[], int]) -> int:
    """Runs a command to its end; if it fails in one process, that one ends without waiting for the others.

    Args:
      act: what it does; returns its exit status.

    Returns:
      That status.
    """
    try:
        status = act()
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        status = _say_why(error)
    if status and jax.distributed.is_initialized():
        if is_first():
            time.sleep(_GRACE_SECONDS)
        _leave(status)
    return status


def _say_why(error: Exception) -> int:
    """Says that another process was lost, if that is it, else where the error comes from; the exit status."""
    if not any(sign.lower() in str(error).lower() for sign in _OF_OTHERS):
        traceback.print_exception(error)
        return 1
    print(f"error: process {jax.process_index()} cannot go on, as another process of the run has ended "
          f"({one_line(error)}); the same commands in all processes go on from the last checkpoint",
          file=sys.stderr)  # fmt: skip
    return LOST


def _leave(status: int) -> None:
    """Ends the process at once; at an orderly end JAX would wait for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
