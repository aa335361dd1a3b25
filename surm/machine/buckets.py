"""Names of places in object stores: which schemes exist, which package each needs, and which names are valid.

gs:// is Google Cloud Storage, s3:// is S3 or a store with the same interface. Both are reached through `etils.epath`.
Credentials come from the environment, where each store's own client finds them (docs/places.md).
"""

import functools
import importlib.util
import os
import re

from etils import epath

from surm.errors import InputError

NEEDS = {"gs": "gcsfs", "s3": "obstore"}
"""The package that reaches each scheme; `pip install 'surm[gs]'` and `'surm[s3]'` bring them."""

KNOWN = "a local path, gs://BUCKET/... or s3://BUCKET/..."
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_COLLAPSED = re.compile(rf"({'|'.join(NEEDS)}):/?(?!/)", re.IGNORECASE)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")

os.environ.setdefault("EPATH_USE_TF", "0")  # otherwise epath would use TensorFlow if that is installed
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # support of zonal buckets needs more rights


def place(name: str) -> epath.Path | None:
    """The place in an object store that a name means; the store itself is not contacted.

    Args:
      name: as a person wrote it.

    Returns:
      The place; None if the name means a local path.

    Raises:
      InputError: if the scheme is unknown, its package is missing, or no object can have that name.
    """
    if not (found := _SCHEME.fullmatch(name)):
        if collapsed := _COLLAPSED.match(name):
            scheme = collapsed[1].lower()
            raise InputError(f"{name!r} has lost a slash behind {scheme}:, expected {scheme}://BUCKET/...")
        return None
    scheme, rest = found[1].lower(), found[2]
    if scheme not in NEEDS:
        raise InputError(f"{name!r} is no place that surm reads or writes; expected {KNOWN}")
    _check_name(name, scheme, *rest.partition("/")[::2])
    if importlib.util.find_spec(NEEDS[scheme]) is None:
        raise InputError(f"{name!r} needs the package {NEEDS[scheme]}: pip install 'surm[{scheme}]'")
    _connect(scheme)
    return epath.Path(f"{scheme}://{rest}")


def holds(path: os.PathLike | str) -> bool:
    """Whether a place lies in an object store."""
    return os.fspath(path).startswith(tuple(f"{scheme}://" for scheme in NEEDS))


def failed(error: Exception) -> bool:
    """Whether an error comes from a store's client, for example a failed request or missing credentials."""
    return type(error).__module__.partition(".")[0] in ("gcsfs", "obstore", "aiohttp", "google", "requests", "fsspec")


def _check_name(name: str, scheme: str, bucket: str, key: str) -> None:
    if not _BUCKET.fullmatch(bucket):
        raise InputError(
            f"{name!r} names the bucket {bucket!r}, expected {scheme}://BUCKET/... with a bucket of 3 or more of a-z, "
            "0-9, '-', '_' and '.'"
        )
    if wrong := next((sign for sign in key if sign in "?#*[]" or not sign.isprintable()), ""):
        raise InputError(f"{name!r} holds {wrong!r}, which names in a bucket must not")
    if {".", ".."} & {*key.split("/")}:
        raise InputError(f"{name!r} holds '.' or '..', which mean nothing in a bucket; write the name in full")


@functools.cache
def _connect(scheme: str) -> None:
    """Makes epath reach a scheme without caching listings and without long waits."""
    import fsspec

    if scheme == "s3":
        from surm.machine.object_store import ObjectStore

        fsspec.register_implementation("s3", ObjectStore, clobber=True)
    else:
        from surm.machine.google_store import GoogleStore

        for name in ("gs", "gcs"):
            fsspec.register_implementation(name, GoogleStore, clobber=True)
        fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
