"""Where checkpoints are stored: in a local folder, or in an object store as one object each, STEP.tar.

orbax writes a checkpoint as many files and then renames their folder, which a store cannot do. Its arrays would go
through tensorstore, whose clients are configured differently from all others here: the client for S3 ignores
AWS_ENDPOINT_URL, and Google's has a variable of its own (0.1.86). So orbax writes to a folder of this machine, and each
finished checkpoint is written to the store in one step, completely or not at all. To continue, a run fetches them; the
trained arrays are small.
"""

import concurrent.futures
import contextlib
import io
import pathlib
import shutil
import tarfile

from etils import epath

from surm import files
from surm.machine import buckets

SUFFIX = ".tar"


class Place:
    """A folder of checkpoints, `place`; `folder` is the local one that orbax uses, a different one if `is_remote`."""

    def __init__(self, place: epath.Path):
        """Fetches the checkpoints that a store holds."""
        self.place, self.is_remote = place, buckets.holds(place)
        self.folder = epath.Path(files.scratch()) if self.is_remote else place
        self._there: set[int] = set()
        self._thread = concurrent.futures.ThreadPoolExecutor(1) if self.is_remote else None
        self._writing: concurrent.futures.Future[None] | None = None
        if self.is_remote and place.is_dir():
            self._fetch()

    def write(self) -> None:
        """Writes the folder to the store in the background, and removes there what is gone here."""
        if self._thread:
            self._writing = self._thread.submit(self._mirror)

    def wait(self) -> None:
        """Waits for the writing to end; raises its error."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def rename(self, step: int, name: str) -> epath.Path:
        """Gives a checkpoint a name that no step has; returns its new place."""
        (self.folder / str(step)).rename(self.folder / name)
        if not self.is_remote:
            return self.folder / name
        source, target = self.place / f"{step}{SUFFIX}", self.place / f"{name}{SUFFIX}"
        target.write_bytes(source.read_bytes())
        source.unlink()
        self._there.discard(step)
        return target

    def names(self) -> list[str]:
        """The names of everything in the folder, without suffixes."""
        return [each.name.removesuffix(SUFFIX) for each in self.place.iterdir()] if self.place.is_dir() else []

    def _fetch(self) -> None:
        for name in self.names():
            if name.isdecimal():
                folder = pathlib.Path(self.folder) / name
                folder.mkdir()
                # A damaged archive leaves an incomplete checkpoint, which is handled like a damaged one on a disk.
                with contextlib.suppress(tarfile.TarError, EOFError):
                    packed = io.BytesIO((self.place / f"{name}{SUFFIX}").read_bytes())
                    with tarfile.open(fileobj=packed) as archive:
                        _unpack(archive, folder)
                self._there.add(int(name))

    def _mirror(self) -> None:
        here = {int(each.name) for each in self.folder.iterdir() if each.name.isdecimal()}
        for step in sorted(here - self._there):
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as archive:
                archive.add(self.folder / str(step), arcname="")
            files.replace(self.place / f"{step}{SUFFIX}", packed.getvalue())
            self._there.add(step)
        for step in sorted(self._there - here):
            (self.place / f"{step}{SUFFIX}").unlink(missing_ok=True)
            self._there.discard(step)


def _unpack(archive: tarfile.TarFile, folder: pathlib.Path) -> None:
    """Writes the files and folders of an archive below a folder; TarError if it holds a link or leads elsewhere.

    `extractall(filter="data")` does this, but Python has it only from 3.11.4 on.
    """
    for member in archive:
        place = (folder / member.name).resolve()
        if not (member.isfile() or member.isdir()) or not place.is_relative_to(folder.resolve()):
            raise tarfile.TarError(f"{member.name!r} is no file or folder below the archive's own")
        if member.isdir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as file:
                shutil.copyfileobj(archive.extractfile(member), file)
