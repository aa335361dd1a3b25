"""Object stores that listen on this machine while tests run: moto as S3, gcp-storage-emulator as Google's."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

BIN = pathlib.Path(sys.prefix) / "servers" / "bin"
BUCKET = "surm-test"
ABSENT = "no servers are installed beside this Python; `make test` installs tests/servers.txt"
NO_OTHER = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS")


@contextlib.contextmanager
def serving(scheme: str) -> Iterator[dict[str, str]]:
    """A server for gs or s3 with the bucket `BUCKET`; what the environment must say for it to be found."""
    if not (BIN / "moto_server").exists():
        pytest.skip(ABSENT)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    server, environment = _s3(port) if scheme == "s3" else _gs(port)
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(server, stdout=said, stderr=said) as process:
        try:
            _until_it_answers(f"http://127.0.0.1:{port}/", process)
            if scheme == "s3":
                request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
                urllib.request.urlopen(request).close()
            yield environment
            said.seek(0)
            assert process.poll() is None, f"the server ended by itself, with {process.poll()}: {said.read()[-2000:]}"
        finally:
            process.kill()


def _s3(port: int) -> tuple[list[str], dict[str, str]]:
    return [str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)], {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "of-a-test",
        "AWS_SECRET_ACCESS_KEY": "of-a-test",
        "AWS_REGION": "us-east-1",
    }


def _gs(port: int) -> tuple[list[str], dict[str, str]]:
    program = (
        "from gcp_storage_emulator.server import create_server; "
        f"create_server('127.0.0.1', {port}, in_memory=True, default_bucket='{BUCKET}').run()"
    )
    return [str(BIN / "python"), "-c", program], {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}


def _until_it_answers(address: str, process: subprocess.Popen, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except urllib.error.HTTPError:  # it answers
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"no server at {address}; it ended with {process.poll()}")


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """This process's environment with other values for the length of a `with` block."""
    before = {name: os.environ.get(name) for name in (*values, *NO_OTHER)}
    for name in NO_OTHER:
        os.environ.pop(name, None)
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
