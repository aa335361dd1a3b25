"""Data sets as people have them: folders, tables and arrays that are odd or spoilt."""

import json
import pathlib
from collections.abc import Callable

import ml_collections
import numpy as np
from PIL import Image

from surm import config as configs
from surm.data import census, sources
from surm.rundir.workdir import Workdir
from surm.tasks import held_out
from surm.training import read_keys
from tests.odd_inputs.row import Line, Odd

Write = Callable[[pathlib.Path], None]


def _loaded(write: Write, **options: object) -> Callable[[pathlib.Path], object]:
    """Writes a data set into a folder `set`, opens it and tells its classes and the sizes of its splits."""

    def act(folder: pathlib.Path) -> object:
        (folder / "set").mkdir()
        write(folder / "set")
        data = sources.load(str(folder / "set"), **options)
        return list(data.class_names), {name: len(split) for name, split in data.splits().items()}

    return act


def _images(*names: str, mode: str = "RGB", suffix: str = "png") -> Write:
    def write(folder: pathlib.Path) -> None:
        for name in names:
            (folder / name).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).convert(mode).save(folder / name / f"x.{suffix}")

    return write


def _texts(suffix: str, train: str, **others: str) -> Write:
    def write(folder: pathlib.Path) -> None:
        for name, content in {"train": train, "test": train, **others}.items():
            (folder / f"{name}.{suffix}").write_text(content)

    return write


def _also(write: Write, name: str, content: bytes) -> Write:
    def both(folder: pathlib.Path) -> None:
        write(folder)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return both


def _heading(labels: list[str], test: list[str] | None = None) -> Callable[[pathlib.Path], object]:
    """What is said of the labels of an .npz beside their counts."""

    def act(folder: pathlib.Path) -> object:
        images = np.zeros((len(labels), 4, 4), np.uint8)
        held_out = labels if test is None else test
        np.savez(folder / "d.npz", x_train=images, y_train=labels, x_test=images[: len(held_out)], y_test=held_out)
        return census.heading(sources.load(str(folder / "d.npz")))[1:]

    return act


OWN = {"task": "classification"}
ROWS_OF_TEXT = "sentence,label\nA,yes\nB,no\n"
PAIR = (*(f"train/{name}" for name in "ab"), *(f"test/{name}" for name in "ab"))
SAVED = json.dumps({"splits": ["train", "test"]})

ROWS = [
    Odd("class folders in capitals", _loaded(_images("TRAIN/a", "TRAIN/b", "Dev/a", "Dev/b")),
        (["a", "b"], {"train": 2, "test": 2})),
    Odd("class folders called by numbers", _loaded(_images("train/10", "train/9", "test/9")),
        (["9", "10"], {"train": 2, "test": 1})),
    Odd("class folders of CMYK", _loaded(_images(*PAIR, mode="CMYK", suffix="jpg")),
        (["a", "b"], {"train": 2, "test": 2})),
    Odd("a sidecar of macOS beside images", _loaded(_also(_images(*PAIR), "train/a/._x.png", b"Mac OS X")),
        (["a", "b"], {"train": 2, "test": 2})),
    Odd("an error page that is called .jpg", _loaded(_also(_images(*PAIR), "train/a/y.jpg", b"<html>")),
        Line("1 of 5 images cannot be read: train/a/y.jpg (not an image of a known format)")),
    Odd("images of one class", _loaded(_images("train/a", "test/a")), Line("are in one class folder, 'a'")),
    Odd("a class only in the test folder", _loaded(_images(*PAIR, "test/c")),
        Line("class 'c' (1 example), which is none of the 2 classes")),
    Odd("class folders without a folder of a split", _loaded(_images("a", "b")),
        Line("has no test or val split beside the 2 training examples; add one, or set config.data.test_examples")),
    Odd("images without a class folder", _loaded(_images("train", "test")), Line("are not in class folders")),
    Odd("a folder in the folder that was meant", _loaded(_images(*(f"data set/x/{name}" for name in PAIR))),
        Line("meant?")),
    Odd("a folder around the one that was meant", _loaded(_images(*(f"x/{name}" for name in PAIR))),
        Line("holds the folder x; is ")),
    Odd("a packed folder", lambda folder: _file(folder, "set.tar.gz"), Line("(unpack it and name the folder)")),
    Odd("a table of Excel", lambda folder: _file(folder, "Data.XLSX"), Line("(save it as a .csv whose first")),
    Odd("a data set of the hub by its name", lambda folder: sources.load("hf:nyu-mll/glue"),
        Line("datasets.load_dataset(NAME).save_to_disk(DIR)")),
    Odd("an empty folder", _loaded(lambda folder: None), Line("holds nothing; expected")),
    Odd("a table with Windows' line ends", _loaded(_texts("csv", ROWS_OF_TEXT.replace("\n", "\r\n")), **OWN),
        (["no", "yes"], {"train": 2, "test": 2})),
    Odd("a table of Excel in Europe", _loaded(_texts("csv", ROWS_OF_TEXT.replace(",", ";")), **OWN),
        Line("which look separated by ';'")),
    Odd("labels that differ by a blank", _loaded(_texts("csv", ROWS_OF_TEXT, test="sentence,label\nC,yes \n"), **OWN),
        Line("label 'yes ' in column 'label' (1 example), which is none of the 2 classes that are trained")),
    Odd("a row without a label", _loaded(_texts("csv", ROWS_OF_TEXT + "C,\n"), **OWN),
        Line("column 'label' holds an empty label (1 example)")),
    Odd("a test table of -1", _loaded(_texts("csv", ROWS_OF_TEXT, test="sentence,label\nC,-1\n"), **OWN),
        Line("has no test or val split")),
    Odd("lines of chat", _loaded(_texts("jsonl", '{"messages": []}\n')),
        Line("line 1: none of its 0 messages has the role 'assistant', so there is no answer to learn")),
    Odd("a table that does not say its task", _loaded(_texts("csv", ROWS_OF_TEXT)),
        Line("a table of the columns 'sentence', 'label'; set config.data.task to one of classification, ")),
    Odd("images where a task is set", lambda folder: _check(_images(*PAIR), folder, "task", "classification"),
        Line("config.data.task is set, but data.source=")),
    Odd("a saved data set whose file is gone", _loaded(_also(_also(lambda folder: None, "dataset_dict.json",
        SAVED.encode()), "train/state.json", b'{"_data_files": [{"filename": "data-0.arrow"}]}')),
        Line("data-0.arrow' is missing, which")),
    Odd("both .csv and .jsonl", _loaded(_also(_texts("csv", ROWS_OF_TEXT), "train.jsonl", b"{}"), **OWN),
        Line("holds both train.csv and train.jsonl; expected one of them")),
    Odd("classes that differ in case", _heading(["Cat", "cat", "dog", "dog", "cat", "Cat"]),
        ["classes differ only in case or spaces: 'Cat' (2), 'cat' (2); is each intended?"]),
    Odd("a class called nan", _heading(["nan", "cat", "cat", "nan"]),
        ["classes have the names of missing values: 'nan' (2); is this intended?"]),
    Odd("a class of one example", _heading(["dog", "cat", "cat"]), ["classes of one training example: 'dog' (1)"]),
    Odd("a class that the test split lacks", _heading(["dog", "cat", "cat", "dog"], ["cat"]),
        ["the test split has no example of one class that training has (with the number of its examples): 'dog' (2)"]),
    Odd("a folder val without a folder test", lambda folder: _said(_images("train/a", "train/b", "val/a"), folder),
        ["the source has no test split: its validation split (1 example) is reported instead"]),
    Odd("a choice by the only held-out split", lambda folder: _chosen(_images("train/a", "train/b", "val/a"), folder),
        Line("has none: its validation split is reported as the test split, as it has no other; add a test split, or "
             "set config.data.validation_examples=1, which holds that many of its 2 training examples out")),
    Odd("a table without a byte", _loaded(_texts("csv", ""), **OWN),
        Line("train.csv' is empty; expected columns 'sentence', 'label', and rows")),
    Odd("a row of JSON that lacks a column", _loaded(_texts("jsonl", '{"sentence": "A", "label": 0}\n{"label": 1}\n'),
        **OWN), Line("train.jsonl', line 2: the row has no 'sentence'; its columns are 'label'")),
    Odd("a table of Latin-1", _loaded(_also(_texts("csv", ROWS_OF_TEXT), "train.csv",
        (ROWS_OF_TEXT + "Caf\xe9,no\n").encode("latin-1")), **OWN),
        Line("train.csv' is not UTF-8 text: line 4 holds the byte 0xe9; save it as UTF-8 (in a spreadsheet: CSV")),
    Odd("a table of UTF-16", _loaded(_also(_texts("csv", ROWS_OF_TEXT), "train.csv", ROWS_OF_TEXT.encode("utf-16")),
        **OWN), Line("train.csv' is not UTF-8 text but UTF-16; save it as UTF-8")),
    Odd("half a Parquet file", _loaded(lambda folder: (folder / "train.parquet").write_bytes(b"PAR1half"), **OWN),
        Line("; is it whole? fetch or write it again")),
    Odd("texts with a key of images", lambda folder: _check(_texts("csv", ROWS_OF_TEXT), folder, "augment",
        "crop_flip", **OWN),
        Line("holds texts; it is for images, as is a --config=FILE that sets it; one for texts is configs/bert_glue")),
    Odd("a workdir that is the data", lambda folder: _workdir(folder, "."), Line(" is config.data.source=")),
    Odd("a workdir in the data by a link", lambda folder: _workdir(folder, "link/run"),
        Line("whose files are data; name a folder elsewhere, such as runs/first")),
    Odd("a workdir that lies beside the data", lambda folder: _workdir(folder, "../data2"), None),
    Odd("ordinary classes", _heading(["dog", "cat", "cat", "dog"]), []),
]  # fmt: skip


def _file(folder: pathlib.Path, name: str) -> None:
    (folder / name).write_bytes(b"PK")
    sources.load(str(folder / name))


def _config(source: pathlib.Path, **more: object) -> ml_collections.ConfigDict:
    config = configs.default()
    config.data.source = str(source)
    config.update_from_flattened_dict(more)
    return config


def _check(write: Write, folder: pathlib.Path, key: str, value: str, **options: object) -> None:
    """Opens a data set as a run does, with a key of `config.data` set."""
    (folder / "set").mkdir(exist_ok=True)
    write(folder / "set")
    config = _config(folder / "set", **{f"data.{key}": value})
    read_keys.check(config, sources.load(config.data.source, **options))


def _said(write: Write, folder: pathlib.Path) -> list[str]:
    """The last line that is said of a data set."""
    write(folder / "set")
    return census.heading(sources.load(str(folder / "set")))[-1:]


def _chosen(write: Write, folder: pathlib.Path) -> object:
    write(folder / "set")
    config = _config(folder / "set", **{"eval.choose": "best", "eval_every_steps": 1})
    return held_out.choosing(config, sources.load(config.data.source))


def _workdir(folder: pathlib.Path, name: str) -> None:
    """Looks at a workdir by its name from a data set's folder, to which the name `link` leads, too."""
    (folder / "data" / "train").mkdir(parents=True)
    (folder / "data" / "link").symlink_to(folder / "data")
    Workdir(folder / "data" / name, _config(folder / "data"))
