"""What `datasets` and pandas write is read as they read it themselves."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from surm.data import sources

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()

TEXTS = [
    'He said "hi"',
    "a\ttab",
    "two\nlines",
    '"quoted"',
    "plain",
    "naïve — 北京",
    " spaces ",
    'x" y',
    "a,b;c|d",
    "''",
]
LABELS = [1, 0, 1, 1, 0, 1, 0, 0, 1, 0]


def pairs() -> datasets.DatasetDict:
    names = datasets.ClassLabel(names=["not_equivalent", "equivalent"])
    text, number = datasets.Value("string"), datasets.Value("int32")
    features = datasets.Features({"sentence1": text, "sentence2": text, "label": names, "idx": number})
    rows = {"sentence1": TEXTS, "sentence2": TEXTS[::-1], "label": LABELS, "idx": list(range(10))}
    made = datasets.Dataset.from_dict(rows, features=features)
    unlabelled = datasets.Dataset.from_dict(rows | {"label": [-1] * 10}, features=features)
    return datasets.DatasetDict(train=made, validation=made, test=unlabelled)


def written(how: str, folder: pathlib.Path) -> pathlib.Path:
    folder = folder / "mrpc"
    if how == "save_to_disk":
        pairs().save_to_disk(folder)
        return folder
    folder.mkdir()
    for name, split in pairs().items():
        file = str(folder / f"{name}.{how.split()[-1]}")
        if how.startswith("pandas"):
            separator = "\t" if how.endswith("tsv") else ","
            split.to_pandas().to_csv(file, sep=separator, index="index" in how)
        else:
            getattr(split, f"to_{how}")(file)
    return folder


@pytest.mark.parametrize(
    "how",
    ["save_to_disk", "csv", "json", "parquet", "pandas csv", "pandas index csv", "pandas tsv", "pandas index tsv"],
)
def test_texts_and_labels_are_the_same(tmp_path, how):
    data = sources.load(str(written(how, tmp_path)))
    assert data.train.texts == list(zip(TEXTS, TEXTS[::-1], strict=True))
    np.testing.assert_array_equal(data.test.labels, LABELS)
    assert data.metrics == ("f1", "accuracy") and data.num_classes == 2


@pytest.mark.parametrize("how", ["save_to_disk", "parquet"])
def test_images_are_the_same(tmp_path, how):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (20 + i, 30, 3), np.uint8) for i in range(6)]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"img": [Image.fromarray(array) for array in arrays], "label": [0, 1] * 3}
    made = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict(rows, features=features) for name in ("train", "test")}
    )
    if how == "save_to_disk":
        made.save_to_disk(tmp_path / "saved")
        data = sources.load(str(tmp_path / "saved"))
        theirs = datasets.load_from_disk(str(tmp_path / "saved"))
    else:
        for name, split in made.items():
            split.to_parquet(str(tmp_path / f"{name}-00000-of-00001.parquet"))
        data, theirs = sources.load(str(tmp_path)), made
    assert data.class_names == ("cat", "dog")
    for index in range(6):
        np.testing.assert_array_equal(data.train[index]["image"], np.asarray(theirs["train"][index]["img"]))
        assert data.train.labels[index] == theirs["train"][index]["label"]


def test_a_saved_dataset_without_splits(tmp_path):
    pairs()["train"].save_to_disk(tmp_path / "one")
    options = {"task": "classification", "text_columns": "sentence1,sentence2", "test_examples": 3}
    data = sources.load(str(tmp_path / "one"), **options)
    assert (len(data.train), len(data.test)) == (7, 3) and data.class_names == ("not_equivalent", "equivalent")


def test_a_folder_of_images_has_the_classes_that_datasets_gives_it(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("b", "a", "Z", "10", "9"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / split / name / "x.png")
    theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))["train"]
    ours = sources.load(str(tmp_path))
    found = {
        ours.class_names[example["label"]]: example["image"].tobytes()
        for example in map(ours.train.__getitem__, range(5))
    }
    names = theirs.features["label"].names
    assert found == {names[example["label"]]: np.asarray(example["image"]).tobytes() for example in theirs}
