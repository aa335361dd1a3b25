"""Folders that other libraries write to on this machine's disk, and what they wrote sent where it belongs."""

import pathlib

from etils import epath

from surm import files
from surm.machine import buckets


class Mirror:
    """A folder, `place`, and the local one of the same name, `here`, that stands for it while it is written to."""

    def __init__(self, place: epath.Path):
        """Makes nothing where the place is local."""
        self.place = place
        self.is_remote = buckets.holds(place)
        self.here = files.scratch() / place.name if self.is_remote else pathlib.Path(place)
        self._sent: dict[pathlib.Path, tuple[int, int]] = {}

    def send(self) -> None:
        """Writes to a store what is new or other than it was when it was last sent; raises OSError if it cannot."""
        for file in sorted(self.here.rglob("*")) if self.is_remote else ():
            if not file.is_file():
                continue
            state = (file.stat().st_size, file.stat().st_mtime_ns)
            if self._sent.get(file) != state:
                files.replace(self.place / str(file.relative_to(self.here)), file.read_bytes())
                self._sent[file] = state
