#!/usr/bin/env bash
# wandb 0.28.0, offline: `run.finish()` can return before the file of the run is written.
#
# "Completes an active run, ensuring all data is synced", its docstring says. Offline, where the file run-ID.wandb is all
# there is, it waits for the answer to the run's exit record and then tells its service process to close the file, for
# which it does not wait. A copy made right behind finish() (of a scratch disk to a bucket, say) can hold the 7 bytes of
# the file's head and no metric. wandb.teardown() waits, but ends every other run of the process: a later finish() of one
# of those raises AlreadyJoinedError.
#
# Seen: after one to some dozens of runs of three steps, a file of 7 bytes behind finish() that a moment later had 1,551.
#
# Exits 0 once that is seen, 1 when 400 runs in a row were whole.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check wandb==0.28.0
cd "$folder"
WANDB_MODE=offline WANDB_SILENT=true "$folder/venv/bin/python" - <<'PYTHON'
import os
import sys
import time

import wandb

for count in range(1, 401):
    run = wandb.init(project="finding", reinit="create_new")
    for step in range(3):
        run.log({"loss": 1.0 / (step + 1)}, step=step)
    file = run.settings.sync_file
    run.finish()
    behind = os.path.getsize(file)
    time.sleep(0.5)
    later = os.path.getsize(file)
    if behind < later:
        print(f"run {count}: {behind} bytes behind finish(), {later} half a second later")
        sys.exit(0)
sys.exit("400 runs were whole behind finish()")
PYTHON
