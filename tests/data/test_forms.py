"""Texts and images in tables of every form that people have them in."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from surm.data import sources
from surm.data.split_names import by_split, split_of
from surm.errors import InputError

pa = pytest.importorskip("pyarrow", reason="pyarrow is an extra")
pq = pytest.importorskip("pyarrow.parquet")

PAIRS = [('He said "hi"', "x", 1), ("A\tb", "y\nz", 0), ("plain", "w", 1)]


def complaint(source: pathlib.Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        sources.load(str(source), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def text(folder: pathlib.Path, **files: str) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / ".".join(name.rsplit("_", 1))).write_text(content)
    return folder


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def objects(labels: list) -> list[dict]:
    return [{"sentence1": a, "sentence2": b, "label": c, "idx": 0} for (a, b, _), c in zip(PAIRS, labels, strict=True)]


TSV = (
    "\tsentence1\tsentence2\tlabel\tidx\n"  # as pandas' to_csv(sep="\t") writes it
    '0\t"He said ""hi"""\tx\t1\t0\n1\t"A\tb"\t"y\nz"\t0\t1\n2\tplain\tw\t1\t2\n'
)


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("tsv", TSV),
        ("csv", 'Unnamed: 0,sentence1,sentence2,label\n0,"He said ""hi""",x,1\n1,A\tb,"y\nz",0\n2,plain,w,1\n'),
        ("csv", 'sentence1,sentence2,label\n"He said ""hi""",x,1.0\nA\tb,"y\nz",0.0\nplain,w,1.0\n'),
        ("csv", 'label,sentence1,sentence2\nequivalent,"He said ""hi""",x\n0,A\tb,"y\nz"\nequivalent,plain,w\n'),
        ("jsonl", lines(*objects([1, 0, 1]))),
        ("json", lines(*objects(["equivalent", "not_equivalent", 1]))),
        ("json", json.dumps(objects([1.0, 0, "1"]), indent=1)),
    ],
)
def test_mrpc_by_other_hands(tmp_path, suffix, content):
    folder = text(tmp_path / "mrpc", **{f"train_{suffix}": content, f"validation_{suffix}": content})
    data = sources.load(str(folder))
    assert data.metrics == ("f1", "accuracy") and data.class_names == ("0", "1")
    assert data.train.texts == [(a, b) for a, b, _ in PAIRS]
    np.testing.assert_array_equal(data.test.labels, [1, 0, 1])


@pytest.mark.parametrize(
    ("name", "header", "row", "expected"),
    [
        ("cola", "sentence,label,idx", "A b,acceptable,0", (("A b",), 1)),
        ("cola", "sentence\tlabel\tidx", "A b\t1\t0", (("A b",), 1)),
        ("sst2", "idx,sentence,label", "0,A b,positive", (("A b",), 1)),
        ("qqp", "question1,question2,label,idx", "A,b,1,0", (("A", "b"), 1)),
        ("stsb", "sentence1,sentence2,label,idx", "A,b,2.5,0", (("A", "b"), 2.5)),
        ("qnli", "question,sentence,label,idx", "A,b,1,0", (("A", "b"), 1)),
        ("rte", "sentence1,sentence2,label,idx", "A,b,not_entailment,0", (("A", "b"), 1)),
        ("wnli", "sentence1,sentence2,label,idx", "A,b,entailment,0", (("A", "b"), 1)),
    ],
)
def test_the_hubs_columns_of_every_task(tmp_path, name, header, row, expected):
    suffix = "tsv" if "\t" in header else "csv"
    content = f"{header}\n{row}\n"
    data = sources.load(str(text(tmp_path / name, **{f"train_{suffix}": content, f"validation_{suffix}": content})))
    assert (data.test[0]["texts"], data.test[0]["label"]) == expected


def test_mnli_of_the_hub_is_held_out_twice(tmp_path):
    content = "premise,hypothesis,label,idx\nA,b,2,0\nc,d,0,1\n"
    files = {
        f"{name}_csv": content for name in ("train", "validation_matched", "validation_mismatched", "test_matched")
    }
    data = sources.load(str(text(tmp_path / "mnli", **files)))
    assert data.class_names[data.test[0]["label"]] == "contradiction" and list(data.also) == ["mismatched"]


def test_quotation_marks_of_a_tsv_are_text_where_no_csv_writer_would_set_them(tmp_path, capsys):
    for content in ('sentence\tlabel\n"quoted"\t1\nb\t0\n', 'sentence\tlabel\n"a" ""b""\t1\nb\t0\n'):
        data = sources.load(str(text(tmp_path / "sst2", train_tsv=content, dev_tsv=content)))
        assert data.train[0]["texts"] == (content.split("\n")[1].split("\t")[0],)
    assert not capsys.readouterr().out
    content = '"sentence"\t"label"\n"quoted"\t"1"\n"b"\t"0"\n'
    data = sources.load(str(text(tmp_path / "sst2", train_tsv=content, dev_tsv=content)))
    assert data.train[0]["texts"] == ("quoted",) and "are those of a CSV writer" in capsys.readouterr().out


def test_a_split_whose_labels_are_not_public_is_left_out(tmp_path, capsys):
    rows = "sentence,label\nA,1\nB,0\n"
    folder = text(tmp_path / "own", train_csv=rows, dev_csv=rows, test_csv="sentence,label\nC,-1\nD,-1\n")
    data = sources.load(str(folder), task="classification")
    assert data.test.texts == [("A",), ("B",)] and data.validation is None
    assert "test.csv' is left out: none of its 2 rows has a label" in capsys.readouterr().out
    text(folder, test_csv="sentence,label\nC,-1\nD,1\n")
    assert "line 2: label '-1' in column 'label' (1 example), which is none" in complaint(folder, task="classification")


def test_a_number_is_a_class_by_its_place_only_where_classes_are_declared(tmp_path):
    rows = "sentence,label\nA,cat\nB,dog\n"
    folder = text(tmp_path / "own", train_csv=rows, test_csv="sentence,label\nC,0\n")
    assert "label '0' in column 'label' (1 example), which is none of the 2" in complaint(folder, task="classification")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "sentence1,sentence,label\nA,b,1\n",
            "no column 'sentence2'; its columns are 'sentence1', 'sentence', 'label'",
        ),
        ("sentence1,sentence,label\nA,b,1\n", "config.data.task=classification (or regression), config.data.text_col"),
        ("sentence1,sentence,label\nA,b,1\n", "nearest: sentence"),
        ("sentence1,sentence,label\nA,b,1\n", "own use a config for texts, such as configs/bert_glue.py, and set"),
        ("sentence1;sentence2;label\nA;b;1\n", "which look separated by ';'; expected ',' in a .csv"),
        ("messages,label\nA,1\n", "for a language model set config.data.task=language"),
        (
            "sentence1,sentence2,label\nA,b,2\n",
            "line 2: label '2' in column 'label' (1 example), which is none of the 2",
        ),
    ],
)
def test_a_table_that_does_not_fit_says_what_it_has(tmp_path, content, expected):
    assert expected in complaint(text(tmp_path / "mrpc", train_csv=content, dev_csv=content))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"sentence": "A", "label": 1}\n{"sentence": "B"', "train.jsonl', line 2: not JSON"),
        ('{"sentence": "A", "label": 1}\n["B", 0]', "train.jsonl', line 2: a list, expected an object of columns"),
        (
            '{"sentence": "A", "label": 1}\n{"sentence": null, "label": 0}',
            "line 2: the text in column 'sentence' is missing (null)",
        ),
        ('{"sentence": "A", "label": 1}\n{"sentence": ["B"], "label": 0}', "is a list, expected a string"),
        ('{"sentence": "A", "label": 1}\n{"sentence": "B"}', "column 'label' holds an empty label (1 example)"),
        ('{"text": "A", "label": 1}\n', "no column 'sentence'; its columns are 'text', 'label'; name them in config"),
        ("", "train.jsonl' is empty; expected columns 'sentence', 'label', and rows"),
    ],
)
def test_lines_of_json_that_spoil_a_table(tmp_path, content, expected):
    assert expected in complaint(text(tmp_path, train_jsonl=content, test_jsonl=content), task="classification")


def test_regression_needs_numbers_in_every_row(tmp_path):
    for value, shown in ((None, "''"), ("NaN", "'NaN'"), (True, "True")):
        rows = lines({"sentence": "A", "label": 1.5}, {"sentence": "B", "label": value})
        folder = text(tmp_path, train_jsonl=rows, test_jsonl=rows)
        assert f"line 2: {shown} in column 'label', expected a number" in complaint(folder, task="regression")


def test_one_table_is_a_source_if_some_of_it_is_held_out(tmp_path):
    text(tmp_path, all_csv="sentence,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(20)))
    file = tmp_path / "all.csv"
    assert "has no test or val split beside the 20 training examples; add one, or set config" in complaint(
        file, task="classification"
    )
    data = sources.load(str(file), task="classification", test_examples=5)
    assert len(data.train) == 15 and len(data.test) == 5
    texts = {split[i]["texts"] for split in (data.train, data.test) for i in range(len(split))}
    assert len(texts) == 20
    again = sources.load(str(file), task="classification", test_examples=5, seed=1)
    assert [again.test[i] for i in range(5)] != [data.test[i] for i in range(5)]


def encoded(value: int, form: str = "PNG") -> bytes:
    import io

    out = io.BytesIO()
    Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(out, form)
    return out.getvalue()


CLASSES = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "img": {"_type": "Image"}}}}


def table(labels: list, metadata: dict | None = None) -> pa.Table:
    images = [{"bytes": encoded(10 * i), "path": None} for i in range(len(labels))]
    made = pa.table({"img": images, "label": labels})
    return made.replace_schema_metadata({"huggingface": json.dumps(metadata)}) if metadata else made


def test_images_in_parquet_as_the_hub_has_them(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split, labels in (("train", [0, 1, 1, 0]), ("test", [1, 0]), ("validation", [-1, -1])):
        for shard in range(2):
            part = table(labels, CLASSES).slice(shard * len(labels) // 2, len(labels) // 2)
            pq.write_table(part, folder / f"{split}-{shard:05d}-of-00002.parquet")
    data = sources.load(str(tmp_path))
    assert (
        data.class_names == ("cat", "dog") and data.validation is None and (len(data.train), len(data.test)) == (4, 2)
    )
    np.testing.assert_array_equal(data.train.labels, [0, 1, 1, 0])
    np.testing.assert_array_equal(data.train[3]["image"], np.full((6, 5, 3), 30))
    turned = json.loads(json.dumps(CLASSES).replace("cat", "bird"))
    pq.write_table(table([1, 0], turned), folder / "train-00001-of-00002.parquet")
    assert "calls the classes of its column 'label' 'bird', 'dog', but " in complaint(tmp_path)
    pq.write_table(table([1, 0]), folder / "train-00001-of-00002.parquet")
    assert "train-00001-of-00002.parquet' names no classes of its column 'label', but " in complaint(tmp_path)
    (folder / "train-00001-of-00002.parquet").unlink()
    assert "holds 1 of the 2 files of 'train'; number 00001 is missing" in complaint(tmp_path)


def test_images_in_parquet_that_do_not_fit(tmp_path, capsys):
    pq.write_table(table(["a", "b"]), tmp_path / "test.parquet")
    pq.write_table(table(["a", "b", "b"]), tmp_path / "train.parquet")
    data = sources.load(str(tmp_path))
    assert data.class_names == ("a", "b") and data.keys == {"image_column", "label_column"}
    assert "has no column 'fine'; its columns are 'img', 'label'; name it" in complaint(tmp_path, label_column="fine")
    assert "no column of images 'label'; its columns of images are 'img'" in complaint(tmp_path, image_column="label")
    pq.write_table(table([None, None]), tmp_path / "validation.parquet")
    assert sources.load(str(tmp_path)).validation is None
    assert "validation.parquet' is left out: none of its 2 rows has a label" in capsys.readouterr().out
    pq.write_table(table(["a", None, "b"]), tmp_path / "train.parquet")
    assert "train.parquet', row 1: no label in column 'label'" in complaint(tmp_path)
    pq.write_table(pa.table({"img": [b"x", encoded(1)], "label": [0, 1]}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"img": [encoded(1)], "label": [0]}), tmp_path / "test.parquet")
    assert "1 of 2 images cannot be read: row 0 (not an image of a known format)" in complaint(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no more")
    assert "train.parquet' cannot be read: " in complaint(tmp_path)


def test_texts_in_parquet_with_names_of_classes(tmp_path):
    made = pa.table({"text": ["A", "B", "C"], "label": [0, 1, 0]})
    made = made.replace_schema_metadata({"huggingface": json.dumps(CLASSES)})
    for name in ("train", "test"):
        pq.write_table(made, tmp_path / f"{name}.parquet")
    data = sources.load(str(tmp_path), task="classification", text_columns="text")
    assert data.class_names == ("cat", "dog") and data.train.texts == [("A",), ("B",), ("C",)]
    assert "its columns 'text', 'label'" not in complaint(tmp_path) and "'text', 'label'" in complaint(tmp_path)
    other = json.loads(json.dumps(CLASSES).replace("cat", "duplicate").replace("dog", "not_duplicate"))
    pairs = pa.table({"question1": ["A"], "question2": ["B"], "label": [0]})
    (tmp_path / "qqp").mkdir()
    for name in ("train", "dev"):
        with_names = pairs.replace_schema_metadata({"huggingface": json.dumps(other)})
        pq.write_table(with_names, tmp_path / "qqp" / f"{name}.parquet")
    assert "'duplicate', 'not_duplicate'; expected 'not_duplicate', 'duplicate'" in complaint(tmp_path / "qqp")


def test_a_missing_pyarrow_is_named(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").touch()
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pyarrow" else find(name))
    assert "is read by pyarrow, which is not installed: pip install 'surm[parquet]'" in complaint(tmp_path)


def test_names_of_splits(tmp_path):
    assert [split_of(name) for name in ("Training", "dev", "validation_mismatched", "TEST", "train_2", "labels")] == [
        "train", "validation", "validation_mismatched", "test", "", "",
    ]  # fmt: skip
    paths = [tmp_path / name for name in ("train-00000-of-00001-4f3c2b1a9d8e7f60.parquet", "README.md", "dev.csv")]
    assert {name: [path.name for path in found] for name, found in by_split(paths).items()} == {
        "validation": ["dev.csv"], "train": ["train-00000-of-00001-4f3c2b1a9d8e7f60.parquet"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("suffix", "first", "second"),
    [("csv", "sentence,label\nA,0\nB,1", "text,label\nC,0"),
     ("jsonl", '{"sentence": "A", "label": 0}\n{"sentence": "B", "label": 1}', '{"text": "C", "label": 0}')],
)  # fmt: skip
def test_a_shard_without_a_column_of_the_first_is_named(tmp_path, suffix, first, second):
    for number, lines in enumerate((first, second)):
        (tmp_path / f"train-{number:05d}-of-00002.{suffix}").write_text(lines)
    (tmp_path / f"test.{suffix}").write_text(first)
    expected = f"train-00001-of-00002.{suffix}' has no column 'sentence', which '"
    assert expected in complaint(tmp_path, task="classification")


def test_numbers_of_declared_classes_that_are_called_by_other_numbers(tmp_path):
    names = {"label": {"names": ["1", "2", "3"], "_type": "ClassLabel"}}
    made = pa.table({"sentence": ["A", "B", "C"], "label": [0, 1, 2]})
    made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": names}})})
    for split in ("train", "test"):
        pq.write_table(made, tmp_path / f"{split}.parquet")
    data = sources.load(str(tmp_path), task="classification")
    assert data.class_names == ("1", "2", "3")
    np.testing.assert_array_equal(data.train.labels, [0, 1, 2])


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_splits_that_number_their_classes_otherwise_are_refused(tmp_path, kind):
    for split, names in (("train", ["cat", "dog"]), ("test", ["dog", "cat"])):
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}, "img": {"_type": "Image"}}}}
        made = table([0, 1], features) if kind == "images" else pa.table({"sentence": ["A", "B"], "label": [0, 1]})
        made = made.replace_schema_metadata({"huggingface": json.dumps(features)})
        pq.write_table(made, tmp_path / f"{split}.parquet")
    message = complaint(tmp_path, **({} if kind == "images" else {"task": "classification"}))
    assert "test.parquet' calls the classes of its column 'label' 'dog', 'cat'; expected 'cat', 'dog', as '" in message
