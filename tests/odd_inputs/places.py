"""Names of places that are no local path, or look like none."""

import importlib.resources
import pathlib
import sys

import fsspec
from etils import epath
from etils.epath import backend

import surm
from surm import config as configs
from surm import files, train
from surm.data import tokenizer
from surm.models import weights
from surm.report import collect, inspection
from surm.rundir.workdir import Workdir
from tests import stores
from tests.odd_inputs.row import Line, Odd

KINDS = "expected a local path, gs://BUCKET/... or s3://BUCKET/..."


def _weights(folder: pathlib.Path) -> str:
    asset = importlib.resources.files("surm.models") / "assets" / "vit_micro.safetensors"
    (folder / "w.safetensors").write_bytes(asset.read_bytes())
    return f"file://{folder}/w.safetensors"


def _refused(name: str):
    return lambda folder: files.path(name)


def _without(package: str, name: str):
    """What a name is where the package that reaches it is not installed, which Python marks so."""

    def act(folder: pathlib.Path) -> epath.Path:
        before = sys.modules.pop(package, None)
        sys.modules[package] = None
        try:
            return files.path(name)
        finally:
            del sys.modules[package]
            sys.modules.update({package: before} if before else {})

    return act


def _of_nobody(folder: pathlib.Path) -> bool:
    with stores.environment({"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"}):
        place = files.path("gs://bucket/run")
        fsspec.get_filesystem_class("gs").clear_instance_cache()
        backend.fsspec_backend._get_filesystem.cache_clear()  # a store that another test reached would be kept
        return place.exists()


def _trained(workdir: str):
    config = pathlib.Path(__file__).parents[2] / "configs" / "vit_digits.py"
    flags = [f"--config={config}", "--config.optim.steps=2", f"--workdir={workdir}"]

    def act(folder: pathlib.Path) -> tuple[int, bool]:
        return train.main(["surm.train", *flags]), pathlib.Path(workdir.partition("//")[0]).exists()

    return act


ROWS = [
    Odd("a scheme that is none", _refused("hdfs://host/run"), Line(KINDS)),
    Odd("a page on the web", _refused("https://host/model.safetensors"), Line(KINDS)),
    Odd("Azure, which epath knows", _refused("az://container/run"), Line(KINDS)),
    Odd("a scheme without a bucket", _refused("gs://"), Line("names the bucket ''")),
    Odd("a bucket in capitals", _refused("gs://My-Bucket/run"), Line("names the bucket 'My-Bucket'")),
    Odd("a bucket of two letters", _refused("s3://ab/run"), Line("names the bucket 'ab'")),
    Odd("a path that pathlib has shortened", _refused("gs:/bucket/run"), Line("has lost a slash behind gs:")),
    Odd("a path made of it by pathlib", lambda folder: files.path(pathlib.Path("s3://bucket/a")), Line("lost a slash")),
    Odd("a name with a wildcard", _refused("gs://bucket/runs/*"), Line("holds '*'")),
    Odd("a name with a version behind #", _refused("gs://bucket/run#3"), Line("holds '#'")),
    Odd("a way up in a bucket", _refused("s3://bucket/a/../b"), Line("which mean nothing in a bucket")),
    Odd("a line break in a name", _refused("gs://bucket/a\nb"), Line("holds '\\n'")),
    Odd("a store that nobody answers for", _of_nobody, Line("gs:// cannot be reached: 127.0.0.1, port 9, does not")),
    Odd("Google's store without gcsfs", _without("gcsfs", "gs://bucket/run"), Line("pip install 'surm[gs]'")),
    Odd("S3 without obstore", _without("obstore", "s3://bucket/run"), Line("needs the package obstore: pip install")),
    Odd("weights of no kind", lambda folder: weights.open_weights("hdfs://host/model"), Line(KINDS)),
    Odd(
        "weights by file://",
        lambda folder: weights.open_weights(_weights(folder)).path == folder / "w.safetensors",
        True,
    ),
    Odd("a tokenizer of no kind", lambda folder: tokenizer.opened("hdfs://host/tokenizer.json"), Line(KINDS)),
    Odd("a scheme in capitals", lambda folder: str(files.path("GS://bucket/run/")), "gs://bucket/run"),
    Odd("file:// with a space", lambda folder: str(files.path("file:///a%20b/c")), "/a b/c"),
    Odd("file:// of another host", _refused("file://host/a"), Line(KINDS)),
    Odd("a local folder with a colon", lambda folder: str(files.path("gs/a:b")), "gs/a:b"),
    Odd("a workdir of no kind", lambda folder: Workdir("hdfs://host/run", configs.default()), Line(KINDS)),
    Odd("a command with such a workdir", _trained("hdfs://host/run"), (2, False)),
    Odd("a report of no kind", lambda folder: collect.collect(["hdfs://host/run"]), Line(KINDS)),
    Odd("a report into no kind", lambda folder: files.made_folder("ftp://host/out"), Line(KINDS)),
    Odd("a run of no kind", lambda folder: surm.load_run("hdfs://host/run"), Line(KINDS)),
    Odd("something of no kind to inspect", lambda folder: inspection.shown("hdfs://host/run"), Line(KINDS)),
]
