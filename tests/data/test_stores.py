"""Data in an object store is the data that a local copy of it holds."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from surm import files
from surm.data import sources
from surm.errors import InputError
from tests import stores

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = "sentence,label\nA,1\nB,0\n"
OWN = {"task": "classification"}


def write_images(folder: pathlib.Path) -> None:
    for split in ("train", "test"):
        for value, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for index, suffix in enumerate(("jpg", "png", "bmp", "webp", "gif", "tif")):
                pixels = np.full((9, 8, 3), 90 * value + index, np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.{suffix}")


def write_texts(folder: pathlib.Path) -> None:
    for name in ("train", "test"):
        (folder / f"{name}.csv").write_text(ROWS)


def write_parquet(folder: pathlib.Path) -> None:
    for name in ("train", "dev"):
        pq.write_table(pa.table({"sentence": ["A", "B"], "label": [1, 0]}), folder / f"{name}.parquet")


def write_saved(folder: pathlib.Path) -> None:
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for name in ("train", "test"):
        (folder / name).mkdir()
        table = pa.table({"sentence": ["A", "B"], "label": [1, 0]})
        with pa.OSFile(str(folder / name / "d.arrow"), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table)
        (folder / name / "state.json").write_text(json.dumps({"_data_files": [{"filename": "d.arrow"}]}))
        (folder / name / "dataset_info.json").write_text("{}")


@pytest.fixture(scope="module", params=["gs", "s3"])
def bucket(request):
    with stores.serving(request.param) as environment, stores.environment(environment):
        yield f"{request.param}://{stores.BUCKET}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "options"), [(write_images, {}), (write_texts, OWN), (write_parquet, OWN), (write_saved, OWN)]
)
def test_data_in_a_store_is_the_same(bucket, tmp_path, write, options):
    write(tmp_path)
    place = files.path(f"{bucket}/{write.__name__}")
    for file in tmp_path.rglob("*"):
        if file.is_file():
            files.replace(place / str(file.relative_to(tmp_path)), file.read_bytes())
    ours, theirs = (sources.load(str(where), **options) for where in (place, tmp_path))
    assert ours.fingerprint() == theirs.fingerprint() and ours.class_names == theirs.class_names
    for index in range(len(theirs.train)):
        np.testing.assert_equal(ours.train[index], theirs.train[index])


@pytest.mark.slow
def test_an_npz_in_a_store_is_the_same_and_a_missing_one_is_a_line(bucket, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
    np.savez_compressed(tmp_path / "d.npz", x_train=images, y_train=[0, 1] * 3, x_test=images, y_test=[0, 1] * 3)
    files.replace(files.path(f"{bucket}/d.npz"), (tmp_path / "d.npz").read_bytes())
    assert sources.load(f"{bucket}/d.npz").fingerprint() == sources.load(str(tmp_path / "d.npz")).fingerprint()
    with pytest.raises(InputError, match="no data file"):
        sources.load(f"{bucket}/other.npz")
    with pytest.raises(InputError, match="there is no such folder"):
        sources.load(f"{bucket}/other")


@pytest.mark.slow
def test_a_bucket_of_the_same_name_elsewhere_is_another_one():
    """As a notebook may name another endpoint or other credentials while it runs."""
    for text in (b"one", b"other"):
        with stores.serving("s3") as environment, stores.environment(environment):
            place = files.path(f"s3://{stores.BUCKET}/which")
            assert not place.exists()
            files.replace(place, text)
            assert place.read_bytes() == text
