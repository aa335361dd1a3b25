"""Checkpoints of a run: trained arrays, optimiser, step, random key, data position; never the base.

The only module that knows orbax. A checkpoint appears under its final name when it is whole.
"""

import contextlib
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint.experimental.v1 as ocp

from surm.errors import InputError, one_line

State = TypeVar("State")


class Checkpoints:
    """The checkpoints in one folder; a context manager that waits for the last write."""

    def __init__(self, folder: pathlib.Path, keep: int):
        """Opens (or makes) the folder; what an interrupted write has left is removed before the next one starts.

        Args:
          folder: where the checkpoints lie.
          keep: how many of the newest to keep.
        """
        self._folder = folder
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with self._writing():
            self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, None if there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: Any, notes: dict[str, Any]) -> None:
        """Writes a checkpoint in the background; one of the same step is left as it is.

        Args:
          step: number of finished training steps.
          state: a tree of arrays.
          notes: what else the run needs to go on, such as the data position, as JSON values.

        Raises:
          OSError: if this checkpoint or the one before cannot be written.
        """
        if step != self.latest_step:
            # The next training step reuses the state's buffers while they are still being written.
            state = jax.tree.map(jnp.copy, state)
            with self._writing():
                self._checkpointer.save_checkpointables_async(step, {"state": state, "notes": notes}, force=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax raises what the file system's driver meets, of many types
            # What orbax leaves unfinished is reported when the process ends, after our last line.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            raise OSError(f"a checkpoint in {self._folder} failed: {one_line(error)}") from error

    def notes(self) -> dict[str, Any]:
        """The notes of the newest checkpoint; InputError if it is damaged."""
        return self._read("notes", None)

    def restore(self, like: State) -> State:
        """The state of the newest checkpoint.

        Args:
          like: a state of the same structure, shapes and dtypes.

        Returns:
          The state.

        Raises:
          InputError: if the checkpoint is damaged, or of another structure.
        """
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like)
        return self._read("state", abstract)

    def _read(self, name: str, like: Any) -> Any:
        try:
            return self._checkpointer.load_checkpointables(None, {name: like})[name]
        except Exception as error:  # orbax raises what it meets in damaged files, of many types
            raise InputError(
                f"the checkpoint {str(self._folder / str(self.latest_step))!r} cannot be read "
                f"({one_line(f'{type(error).__name__}: {error}')}); remove it to go on from the one before, or name "
                "another workdir"
            ) from error
