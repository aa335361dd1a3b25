"""GLUE as TensorFlow Datasets prepares it, written here by TFDS itself and read without TensorFlow."""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tensorflow_datasets.text.glue import Glue as Published

from surm.data import glue, sources
from surm.errors import InputError


def prepare(data_dir: pathlib.Path, config: str, splits: dict[str, list[dict[str, Any]]]) -> None:
    """Prepares rows as the published builder would, with its own features and version, from memory."""

    class Glue(Published, skip_registration=True):
        name = "glue"
        pkg_dir_path = pathlib.Path(data_dir)

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
            return {name: enumerate(rows) for name, rows in splits.items()}

    Glue(config=config, data_dir=data_dir).download_and_prepare(file_format="array_record")


def test_a_prepared_pair_task_is_read(tmp_path):
    rows = [{"sentence1": f"One {i}.", "sentence2": f"Zwei — {i}.", "label": i % 2, "idx": i} for i in range(6)]
    prepare(tmp_path, "mrpc", {"train": rows, "validation": rows[:3], "test": rows[:2]})
    data = sources.load("tfds:glue/mrpc", data_dir=str(tmp_path))
    found = {data.train[i]["texts"]: int(data.train[i]["label"]) for i in range(6)}
    assert found == {(row["sentence1"], row["sentence2"]): row["label"] for row in rows}
    assert (len(data.test), data.num_classes, data.metrics, data.kind) == (3, 2, ("f1", "accuracy"), "text")


def test_regression_and_the_second_held_out_split(tmp_path):
    rows = [{"sentence1": "A.", "sentence2": "B.", "label": score, "idx": i} for i, score in enumerate((0.5, 4.75))]
    prepare(tmp_path, "stsb", {"train": rows, "validation": rows, "test": rows})
    data = sources.load("tfds:glue/stsb", data_dir=str(tmp_path))
    assert data.regression and sorted(data.train.labels.tolist()) == [0.5, 4.75]
    rows = [{"premise": "P.", "hypothesis": f"H{i}.", "label": i, "idx": i} for i in range(3)]
    prepare(tmp_path, "mnli", {"train": rows, "validation_matched": rows[:1], "validation_mismatched": rows[1:],
                               "test_matched": rows, "test_mismatched": rows})  # fmt: skip
    data = sources.load("tfds:glue/mnli", data_dir=str(tmp_path))
    assert len(data.test) == 1 and len(data.also["mismatched"]) == 2 and data.num_classes == 3


@pytest.mark.parametrize("name", glue.TASKS)
def test_our_tasks_are_those_of_tfds(name, tmp_path):
    """Columns, the order of the classes and the held-out splits, against the published builder itself."""
    features = Published(config=name, data_dir=tmp_path).info.features
    task = glue.TASKS[name]
    assert {*(task.fields or task.columns), "label", "idx"} == set(features)
    if task.regression:
        assert features["label"].np_dtype == np.float32
    else:
        assert features["label"].num_classes == len(task.labels)
        if task.labels != ("0", "1"):
            assert tuple(features["label"].names) == task.labels


@pytest.mark.parametrize("name", ["glue", "glue/mrcp", "glue/", "glue:2.0.0"])
def test_names_that_are_none(name, tmp_path):
    with pytest.raises(InputError, match="names no task of GLUE; .*; as in tfds:glue/mrpc"):
        sources.load(f"tfds:{name}", data_dir=str(tmp_path))


def test_a_damaged_file_is_one_line(tmp_path):
    rows = [{"sentence": f"S {i}.", "label": i % 2, "idx": i} for i in range(6)]
    prepare(tmp_path, "cola", {"train": rows, "validation": rows, "test": rows})
    file = next(tmp_path.rglob("*cola*train*array_record*"), None) or next(tmp_path.rglob("*train*array_record*"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="tfds:glue/cola in .* cannot be read") as caught:
        sources.load("tfds:glue/cola", data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_split_that_is_not_there_and_rows_without_text(tmp_path):
    rows = [{"question1": text, "question2": "Why?", "label": 1, "idx": i} for i, text in enumerate(("A?", " ", "B?"))]
    prepare(tmp_path, "qqp", {"train": rows, "validation": rows, "test": rows})
    data = sources.load("tfds:glue/qqp", data_dir=str(tmp_path))
    assert sorted(data.train[i]["texts"][0] for i in range(len(data.train))) == ["A?", "B?"]
    prepare(tmp_path, "sst2", {"train": [{"sentence": "S.", "label": 1, "idx": 0}]})
    with pytest.raises(InputError, match="there is no validation; there is train"):
        sources.load("tfds:glue/sst2", data_dir=str(tmp_path))


def test_what_is_not_prepared_names_the_other_way(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def unknown(*_, **__):
        raise tfds.core.DatasetNotFoundError("glue")

    monkeypatch.setattr(tfds, "builder", unknown)
    with pytest.raises(InputError, match="is not prepared in .*; config.data.source may name a folder with GLUE's own"):
        sources.load("tfds:glue/mrpc", data_dir=str(tmp_path))
