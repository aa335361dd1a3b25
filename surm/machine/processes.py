"""Several processes, one on every host, that train one run together: how they meet, agree and end.

The cluster starts the same command in each process, and JAX connects them. The first process reads and writes the run's
folder; the others need not see it. Some facts are known to one process only: what the folder holds, that its input
cannot be used, that it was asked to stop. They reach all processes at the same point, so that all take the same steps.
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
"""The exit status of a process that cannot continue because another process of the run has ended."""

_HEARTBEAT_SECONDS = 30  # after which a silent process counts as lost
_GRACE_SECONDS = 2  # in which the others can report their error before process 0, which connects them, ends
_OF_OTHERS = ("by peer", "peer closed", "broken pipe", "timed out", "remote process", "socket closed", "heartbeat")


def join(options: Mapping[str, str | None], *, distributed: bool) -> None:
    """Connects to the other processes of the run, if there are any. Call this before JAX computes anything.

    Args:
      options: `join_seconds`, `coordinator_address`, `num_processes` and `process_id` from the command line; None for
        those that it does not give.
      distributed: whether JAX should find missing options in the cluster's environment.

    Raises:
      InputError: if a value is invalid, or JAX finds no cluster.
      SystemExit: with status 2 if the others do not arrive in time; it cannot be caught, because JAX is waiting.
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
        # JAX would end the process after its own timeout, with a less helpful message.
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
    """Ends the process if it has not met the others after `wait` seconds."""
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
    """Calls a function in every process; if it raises InputError in one, all raise.

    Args:
      act: the function.

    Returns:
      The value that it returned in this process.

    Raises:
      InputError: if any process raised one; all raise that of the first such process.
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
    """Calls a function in the first process alone and returns its result in all.

    Args:
      act: the function; it returns JSON values.

    Returns:
      The value that it returned.

    Raises:
      InputError: if the function raised one.
    """
    if jax.process_count() == 1:
        return act()
    found = agree(lambda: act() if is_first() else None)
    return json.loads(_exchanged(json.dumps(found))[0])


def check_same(what: str, own: Mapping[str, Any]) -> None:
    """Checks that all processes have the same values, as they must to train one model.

    Args:
      what: the name of the values, for the message.
      own: this process's JSON values, by name.

    Raises:
      InputError: in all processes, if one has other values than the first.
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
    """Copies arrays of the first process, bit for bit, to all.

    Args:
      tree: a tree of numpy arrays, with the same shapes and types in all processes.

    Returns:
      The arrays of the first process.
    """
    if jax.process_count() == 1:
        return tree
    raw = jax.tree.map(lambda value: np.frombuffer(value.tobytes(), np.uint8), tree)  # a sum would lose the sign of -0
    copied = multihost_utils.broadcast_one_to_all(raw)
    return jax.tree.map(
        lambda value, bits: np.frombuffer(np.asarray(bits).tobytes(), value.dtype).reshape(value.shape), tree, copied
    )


def all_there() -> None:
    """Waits until every process has arrived, because the others would fail if one ended early."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("surm")


def _exchanged(text: str) -> list[str]:
    """Sends a text from every process to all processes."""
    data = text.encode()
    sizes = multihost_utils.process_allgather(np.array([len(data)], np.int32)).reshape(-1)
    padded = np.frombuffer(data.ljust(int(sizes.max()) + 1), np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [row.tobytes()[:size].decode() for row, size in zip(rows, sizes, strict=True)]


class StopRequest:
    """Tells whether the run was asked to stop, in all processes at the same step, whichever of them was asked."""

    def __init__(self, own: list[int], mesh: Mesh):
        """Takes the signals of this process, from `surm.machine.stopping.requests`."""
        self._own, self._mesh, self._asked = own, mesh, None
        self._highest = jax.jit(jnp.max, out_shardings=meshes.replicated(mesh))

    def signal(self) -> int:
        """The number of the signal that came, or 0; all processes must call this at every step.

        Among several processes the answer is that of the previous call, so that no process has to wait.
        """
        now = max(self._own, default=0)
        if jax.process_count() == 1:
            return now
        before = self._asked
        self._asked = self._highest(meshes.put_batch(self._mesh, np.full(meshes.own_rows(self._mesh), now, np.int32)))
        return 0 if before is None else int(before)


def ending(act: Callable[[], int]) -> int:
    """Runs a command to its end; if it fails in one process, that process ends without waiting for the others.

    If process 0 is lost, JAX may end the others with SIGABRT before they can report it.

    Args:
      act: the command; it returns its exit status.

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
    """Prints that another process was lost, if it looks like that, or else the error; returns the exit status."""
    if not any(sign in str(error).lower() for sign in _OF_OTHERS):
        traceback.print_exception(error)
        return 1
    print(f"error: process {jax.process_index()} cannot go on, most likely because another process of the run has "
          f"ended ({one_line(error)}); the same commands in all processes continue from the last checkpoint",
          file=sys.stderr)  # fmt: skip
    return LOST


def _leave(status: int) -> None:
    """Ends the process immediately, because in an orderly end JAX would wait for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
