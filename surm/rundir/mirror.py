"""Local folders for libraries that can only write to a disk; their files are then sent to the store."""

import pathlib

from etils import epath

from surm import files
from surm.machine import buckets


class Mirror:
    """A folder, `place`, and the local folder `here` that stands in for it while libraries write."""

    def __init__(self, place: epath.Path):
        """Creates nothing if the place is local."""
        self.place = place
        self.is_remote = buckets.holds(place)
        self.here = files.scratch() / place.name if self.is_remote else pathlib.Path(place)
        self._sent: dict[pathlib.Path, tuple[int, int]] = {}

    def send(self) -> None:
        """Sends the files that are new or have changed to the store; raises OSError if that fails."""
        for file in sorted(self.here.rglob("*")) if self.is_remote else ():
            if not file.is_file():
                continue
            state = (file.stat().st_size, file.stat().st_mtime_ns)
            if self._sent.get(file) != state:
                files.replace(self.place / str(file.relative_to(self.here)), file.read_bytes())
                self._sent[file] = state
