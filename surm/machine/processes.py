"""Several processes that train one run together, one on every host: how they meet, agree and end.

Started by whatever the cluster has, with the same command in each; JAX connects them. The first one reads and writes
the run's folder, the others need not see it. What one of them alone can know (what the folder holds, that its input
cannot be used, that it was asked to stop) reaches all at the same place, so that they take the same steps.
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

from surm.errors import InputError, one_line
from surm.machine import mesh as meshes

Tree, Value = TypeVar("Tree"), TypeVar("Value")

LOST = 4
"""The exit status of a process whose run cannot go on because another process has ended."""

_HEARTBEAT_SECONDS = 30  # after which a silent process counts as lost
_GRACE_SECONDS = 2  # in which the others say what stopped them, before the one they are connected by ends
_OF_OTHERS = ("by peer", "peer closed", "broken pipe", "timed out", "remote process", "socket closed", "heartbeat")


def join(options: Mapping[str, str | None], *, distributed: bool) -> None:
    """Meets the other processes of the run, if there are any; before JAX computes anything.

    Args:
      options: `join_seconds`, `coordinator_address`, `num_processes` and `process_id` as the command line gives them,
        None where it does not.
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
    if address is not None and not address.rpartition(":")[2].isdecimal():
        raise InputError(f"--coordinator_address={address}, expected HOST:PORT")
    missing = [name for name, value in given.items() if value is None]
    if not distributed and len(missing) == len(given):
        return
    if not distributed and missing:
        raise InputError(
            f"--{missing[0]} is missing: --coordinator_address, --num_processes and --process_id go together; "
            "--distributed lets JAX find them where a TPU pod, Slurm, GKE or MPI has started the processes"
        )
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    met = threading.Event()
    threading.Thread(target=_end_unless, args=(met, wait, address), daemon=True).start()
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


def _end_unless(met: threading.Event, wait: int, address: str | None) -> None:
    """Ends the process if it has not met the others after so many seconds."""
    if not met.wait(wait):
        print(f"error: not all processes of the run met at {address or 'the coordinator that JAX found'} within {wait} "
              "seconds; is process 0 there, can it be reached, and were all started? (--join_seconds)",
              file=sys.stderr)  # fmt: skip
        _leave(2)


def is_first() -> bool:
    """Whether this process is the one that reads and writes the run's folder."""
    return jax.process_index() == 0


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Inside a `with` block only the first process writes on standard output."""
    with contextlib.nullcontext() if is_first() else contextlib.redirect_stdout(io.StringIO()):
        yield


def agree(act: Callable[[], Value]) -> Value:
    """What a function finds, in every process its own; refused in one, all refuse.

    Args:
      act: called in every process.

    Returns:
      What it returned here.

    Raises:
      InputError: the same in all processes, that of the first one that raised it.
    """
    if jax.process_count() == 1:
        return act()
    value, refused = None, ""
    try:
        value = act()
    except InputError as error:
        refused = str(error) or "refused"
    for number, said in enumerate(_exchanged(refused)):
        if said:
            raise InputError(f"in process {number}: {said}" if number else said)
    return value


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
    found = agree(lambda: act() if is_first() else None)
    return json.loads(_exchanged(json.dumps(found))[0])


def check_same(what: str, own: Mapping[str, Any]) -> None:
    """Sees to it that all processes have the same of something, as they must if they are to train one model.

    Args:
      what: its name, for the message.
      own: JSON values by name.

    Raises:
      InputError: in all processes, if one has something else than the first.
    """
    if jax.process_count() == 1:
        return
    first, *others = map(json.loads, _exchanged(json.dumps(dict(own))))
    for number, other in enumerate(others, 1):
        if differing := [name for name in first | other if first.get(name) != other.get(name)]:
            shown = ", ".join(f"{name}={other.get(name)!r} against {first.get(name)!r}" for name in differing)
            raise InputError(
                f"process {number} has another {what} than process 0: {shown}; start the same command on the same "
                "files in all"
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
    raw = jax.tree.map(lambda value: np.frombuffer(value.tobytes(), np.uint8), tree)  # a sum would lose the sign of -0
    copied = multihost_utils.broadcast_one_to_all(raw)
    return jax.tree.map(
        lambda value, bits: np.frombuffer(np.asarray(bits).tobytes(), value.dtype).reshape(value.shape), tree, copied
    )


def all_there() -> None:
    """Waits until every process is here: whoever ends first would be missed by the others."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("surm")


def _exchanged(text: str) -> list[str]:
    """A text of every process, in all."""
    data = text.encode()
    sizes = multihost_utils.process_allgather(np.array([len(data)], np.int32)).reshape(-1)
    padded = np.frombuffer(data.ljust(int(sizes.max()) + 1), np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [row.tobytes()[:size].decode() for row, size in zip(rows, sizes, strict=True)]


class StopRequest:
    """Whether the run was asked to stop: in all processes at the same step, whichever of them was asked."""

    def __init__(self, own: list[int], mesh: Mesh):
        """Takes the signals that come to this process, from `surm.machine.stopping.requests`."""
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
        self._asked = self._highest(meshes.put_batch(self._mesh, np.full(meshes.own_rows(self._mesh), now, np.int32)))
        return 0 if before is None else int(before)


def ending(act: Callable[[], int]) -> int:
    """Runs a command to its end; if it fails in one process, that one ends without waiting for the others.

    Where process 0 is the one that is lost, JAX may end the others before they can say so, with SIGABRT.

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
    """Says that another process was lost, if it looks like that, else where the error comes from; the exit status."""
    if not any(sign in str(error).lower() for sign in _OF_OTHERS):
        traceback.print_exception(error)
        return 1
    print(f"error: process {jax.process_index()} cannot go on, most likely as another process of the run has ended "
          f"({one_line(error)}); the same commands in all processes go on from the last checkpoint",
          file=sys.stderr)  # fmt: skip
    return LOST


def _leave(status: int) -> None:
    """Ends the process at once; at an orderly end JAX would wait for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
