#!/usr/bin/env bash
# obstore 0.12.1 (fsspec 2026.9.0): pipe_file(..., mode="create") overwrites what is there, and says nothing.
#
# fsspec's file systems take mode="create" to write a file only if there is none of that name: those of memory, disks,
# Google's (gcsfs) and S3 (s3fs) raise FileExistsError otherwise, and programs take locks that way. obstore's file system
# for fsspec has the argument and does not look at it, for every store it serves, although obstore.put(mode="create")
# itself is refused as it should be. Two processes that both create a lock through it both have it.
#
# Seen:
#   fsspec's memory    refused, first
#   obstore's memory   written, second
#   obstore.put        refused, first
#
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check obstore==0.12.1 fsspec==2026.9.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import fsspec
import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.fsspec import FsspecStore
from obstore.store import MemoryStore

LOCK = "memory://runs/lock"


def through_fsspec(files):
    files.pipe_file(LOCK, b"first")
    try:
        files.pipe_file(LOCK, b"second", mode="create")
    except FileExistsError:
        return f"refused, {files.cat_file(LOCK).decode()}"
    return f"written, {files.cat_file(LOCK).decode()}"


def through_obstore(store):
    obstore.put(store, "lock", b"first")
    try:
        obstore.put(store, "lock", b"second", mode="create")
    except AlreadyExistsError:
        return f"refused, {store.get('lock').bytes().to_bytes().decode()}"
    return "written"


found = {
    "fsspec's memory": through_fsspec(fsspec.filesystem("memory")),
    "obstore's memory": through_fsspec(FsspecStore("memory")),
    "obstore.put": through_obstore(MemoryStore()),
}
for name, what in found.items():
    print(f"{name:18} {what}")
sys.exit(list(found.values()) != ["refused, first", "written, second", "refused, first"])
PYTHON
