"""Places in object stores: which there are, what each needs, and what their names may be.

gs:// is Google Cloud Storage, s3:// is S3 and what speaks like it. Both are reached through `etils.epath`; credentials
are those of the environment, as each store's own client finds them (docs/places.md).
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

os.environ.setdefault("EPATH_USE_TF", "0")  # or epath would hand all over to TensorFlow where that is installed
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # zonal buckets; asks for rights of their own


def place(name: str) -> epath.Path | None:
    """The place in an object store that a name means; nothing is asked of the store.

    Args:
      name: as a person wrote it.

    Returns:
      The place; None if the name means a local path.

    Raises:
      InputError: for a scheme that there is none of, one whose package is missing, or a name that no object can have.
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
    """Whether an error is one of a store's client: a request that failed, credentials that are missing."""
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
    """Has epath reach a scheme as this project needs it: what is listed is never remembered, and no wait is long."""
    import fsspec

    if scheme == "s3":
        from surm.machine.object_store import ObjectStore

        fsspec.register_implementation("s3", ObjectStore, clobber=True)
    else:
        from surm.machine.google_store import GoogleStore

        for name in ("gs", "gcs"):
            fsspec.register_implementation(name, GoogleStore, clobber=True)
        fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
