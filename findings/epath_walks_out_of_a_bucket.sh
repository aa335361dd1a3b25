#!/usr/bin/env bash
# etils 1.15.0 (epath; gcsfs 2026.8.0, without TensorFlow): Path.walk() of a bucket gives paths of the local disk.
#
# `for root, folders, names in epath.Path("gs://bucket/run").walk()` lists what the bucket holds, but `root` is
# `bucket/run`, a relative local path: reading root / name fails, root.exists() is False, and root.rmtree() or
# (root / "x").write_text(...) would act on a folder of that name on this machine. glob() of the same path keeps the
# scheme. The same holds for s3://, az:// and hf:// wherever epath goes through fsspec.
#
# Seen, against a server of Google's storage on the loopback interface:
#   glob           gs://bucket/run/a.txt   exists
#   walk           bucket/run/a.txt        does not exist
#
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check "etils[epath]==1.15.0" gcsfs==2026.8.0 \
    gcp-storage-emulator==2026.7.19
port=$("$folder/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export STORAGE_EMULATOR_HOST="http://127.0.0.1:$port" GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT=false
cd "$folder"
"$folder/venv/bin/python" -c "
from gcp_storage_emulator.server import create_server
create_server('127.0.0.1', $port, in_memory=True, default_bucket='bucket').run()" >server.log 2>&1 &
server=$!
"$folder/venv/bin/python" - "$port" <<'PYTHON'
import socket
import sys
import time

from etils import epath

for _ in range(600):
    try:
        socket.create_connection(("127.0.0.1", int(sys.argv[1]))).close()
        break
    except OSError:
        time.sleep(0.1)
run = epath.Path("gs://bucket/run")
(run / "a.txt").write_text("a")
(globbed,) = run.glob("*")
((root, _, names),) = run.walk()
walked = root / names[0]
for name, path in (("glob", globbed), ("walk", walked)):
    print(f"{name:14} {str(path):23} {'exists' if path.exists() else 'does not exist'}")
sys.exit(not (str(globbed) == "gs://bucket/run/a.txt" and globbed.exists()
              and str(walked) == "bucket/run/a.txt" and not walked.exists()))
PYTHON
