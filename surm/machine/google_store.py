"""gs:// for `etils.epath`, through gcsfs, with an immediate error if the store cannot be reached.

By itself, gcsfs asks for credentials first and then tries six times, which takes fifty silent seconds.
"""

import os
import socket
import urllib.parse
from typing import Any

import gcsfs

from surm.errors import InputError

_SECONDS = 10
"""Seconds to wait. A server that answers at all does so in a tenth of that."""


class GoogleStore(gcsfs.GCSFileSystem):
    """The objects of Google's buckets; a connection to the server is tried first."""

    def __init__(self, *args: Any, **kwargs: Any):
        """Takes gcsfs' arguments; InputError if the server does not answer, unless a proxy or session is set."""
        if not kwargs.get("session_kwargs") and not {"HTTPS_PROXY", "https_proxy"} & os.environ.keys():
            _knock(kwargs.get("endpoint_url") or _address())
        super().__init__(*args, **kwargs)


def _address() -> str:
    """The address that gcsfs contacts."""
    if (emulator := os.environ.get("STORAGE_EMULATOR_HOST", "")) not in ("", "default"):
        return emulator if "://" in emulator else f"http://{emulator}"
    return f"https://storage.{os.environ.get('GOOGLE_CLOUD_UNIVERSE_DOMAIN') or 'googleapis.com'}"


def _knock(address: str) -> None:
    parts = urllib.parse.urlsplit(address)
    server = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    try:
        socket.create_connection(server, timeout=_SECONDS).close()
    except OSError as error:
        raise InputError(
            f"gs:// cannot be reached: {server[0]}, port {server[1]}, does not answer ({error}); is there a network, "
            "and does it let this machine out?"
        ) from error
