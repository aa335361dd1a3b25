"""Tables of texts: GLUE's own files where they are at hand, small ones of every shape, and all that spoils one."""

import pathlib

import numpy as np
import pytest
from etils import epath

from surm.data import glue, sources, texts
from surm.errors import InputError

GLUE = pathlib.Path(__file__).parents[3] / "shared" / "data" / "glue"
needs_glue = pytest.mark.skipif(not GLUE.is_dir(), reason="GLUE's files are not beside the checkout")

COLA = "gj04\t1\t\tThe sailors rode the breeze.\ngj04\t0\t*\tSailors rode breeze the.\n"
MRPC = (
    '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t10\t11\t" He said so\tHe said "so" .\n0\t1\t2\tA b .\tC .\n'
)
STSB = "index\tsentence1\tsentence2\tscore\n0\tA plane.\tAn air plane.\t5.000\n1\tA man.\tA dog.\t0.25\n"
MNLI = "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tOne.\tTwo.\tneutral\tneutral\n1\tA.\tB.\tx\tentailment\n"


def write(folder: pathlib.Path, **files: str) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_bytes(text.encode())
    return folder


def complaint(folder: pathlib.Path, **options: str) -> str:
    with pytest.raises(InputError) as caught:
        sources.load(str(folder), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@needs_glue
@pytest.mark.parametrize(
    ("name", "sizes", "first", "positives"),
    [
        ("CoLA", (8551, 1043), "Our friends won't buy this analysis, let alone the next one we propose.", 721),
        ("MRPC", (3668, 408), 'Amrozi accused his brother , whom he called " the witness " , of', 279),
        ("SST-2", (67349, 872), "hide new secretions from the parental units", 444),
    ],
)
def test_the_real_files_are_read_whole(name, sizes, first, positives):
    data = sources.load(str(GLUE / name))
    assert (len(data.train), len(data.test)) == sizes and data.validation is None
    assert data.train[0]["texts"][0].startswith(first)
    assert int(data.test.labels.sum()) == positives
    assert data.num_classes == 2 and data.kind == "text"


def test_cola_has_no_header_and_the_fourth_column_is_the_text(tmp_path):
    data = sources.load(str(write(tmp_path / "CoLA", train_tsv=COLA, dev_tsv=COLA)))
    assert data.train[1] == {"texts": ("Sailors rode breeze the.",), "label": 0}
    assert data.metrics == ("matthews", "accuracy")


def test_examples_of_a_task_are_held_out_only_where_it_has_no_dev_file(tmp_path):
    folder = write(tmp_path / "CoLA", train_tsv=COLA)
    data = sources.load(str(folder), test_examples=1)
    assert (len(data.train), len(data.test)) == (1, 1)
    write(folder, dev_tsv=COLA)
    assert "CoLA' has a held-out split of its own; set 0" in complaint(folder, test_examples=1)


def test_mrpc_has_a_byte_order_mark_and_quotes_that_are_text(tmp_path):
    data = sources.load(str(write(tmp_path / "mrpc", train_tsv=MRPC, dev_tsv=MRPC.replace("\n", "\r\n"))))
    for split in (data.train, data.test):
        assert split[0]["texts"] == ('" He said so', 'He said "so" .')
        np.testing.assert_array_equal(split.labels, [1, 0])


def test_stsb_is_regression(tmp_path):
    data = sources.load(str(write(tmp_path / "STS-B", train_tsv=STSB, dev_tsv=STSB)))
    assert data.regression and data.num_classes == 1 and data.metrics == ("spearman", "pearson")
    np.testing.assert_array_equal(data.train.labels, np.float32([5, 0.25]))


def test_mnli_is_held_out_twice(tmp_path):
    other = MNLI.replace("A.\tB.", "C.\tD.")
    folder = write(tmp_path / "MNLI", train_tsv=MNLI, dev_matched_tsv=MNLI, dev_mismatched_tsv=other)
    data = sources.load(str(folder))
    assert data.test[1]["texts"] == ("A.", "B.") and data.also["mismatched"][1]["texts"] == ("C.", "D.")
    np.testing.assert_array_equal(data.test.labels, [1, 0])  # neutral, entailment


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_tables_of_ones_own(tmp_path, suffix):
    comma = "," if suffix == "csv" else "\t"
    rows = [("id", "review", "stars"), ("1", "Fine", "10"), ("2", "Bad", "2"), ("3", "So so", "9")]
    text = "\n".join(comma.join(row) for row in rows)
    folder = write(tmp_path / "own", **{f"train_{suffix}": text, f"test_{suffix}": text, f"dev_{suffix}": text})
    data = sources.load(str(folder), task="classification", text_columns="review", label_column="stars")
    np.testing.assert_array_equal(data.train.labels, [2, 0, 1])  # 2, 9, 10: as numbers
    assert data.num_classes == 3 and len(data.validation) == 3 and data.metrics[0] == "accuracy"
    numbers = sources.load(str(folder), task="regression", text_columns="review,id", label_column="stars")
    assert numbers.regression and numbers.train[0]["texts"] == ("Fine", "1") and numbers.train[0]["label"] == 10


def test_a_csv_may_quote(tmp_path):
    text = 'sentence,label\n"Well, ""yes""\nand no",a\nplain,b\n'
    data = sources.load(str(write(tmp_path, train_csv=text, dev_csv=text)), task="classification")
    assert data.train[0]["texts"] == ('Well, "yes"\nand no',) and data.validation is None


def test_a_validation_split_is_taken_out_of_training(tmp_path):
    rows = "".join(f"gj04\t{i % 2}\t\tsentence {i}\n" for i in range(50))
    data = sources.load(str(write(tmp_path / "CoLA", train_tsv=rows, dev_tsv=COLA)))
    held = sources.hold_out(data, 20, seed=0)
    parts = [{split[i]["texts"] for i in range(len(split))} for split in (held.train, held.validation)]
    assert list(map(len, parts)) == [30, 20] and not parts[0] & parts[1]
    assert held.test is data.test and sources.hold_out(data, 0, seed=0) is data
    again = sources.hold_out(data, 20, seed=0).validation
    assert [again[i] for i in range(20)] == [held.validation[i] for i in range(20)]
    for examples in (50, -1):
        with pytest.raises(InputError, match=f"validation_examples={examples}, expected less than the 50"):
            sources.hold_out(data, examples, seed=0)
    with pytest.raises(InputError, match="the data has a validation split of its own"):
        sources.hold_out(held, 5, seed=0)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("sentence\tlabels\nA\t1\n", "train.tsv' has no column 'label'; its columns are 'sentence', 'labels'"),
        ("", "train.tsv' is empty; expected columns 'sentence', 'label', and rows"),
        ("sentence\tlabel\n", "train.tsv' holds no row"),
        ("sentence\tlabel\nA\t1\nB\n", "train.tsv', line 3: 1 column, expected 2"),
        ("sentence\tlabel\nA\t1\n\nB\t0\t0\n", "train.tsv', line 4: 3 columns, expected 2"),
        ("sentence\tlabel\nA\t1\n \t0\n", "train.tsv', line 3: the text in column 'sentence' is empty"),
        ("sentence\tlabel\nA\tgood\n", "train.tsv', line 2: label 'good' in column 'label' (1 example), which is none"),
    ],
)
def test_a_spoilt_table_names_file_and_row(tmp_path, train, expected):
    good = "sentence\tlabel\nA\t1\n"
    assert expected in complaint(write(tmp_path / "SST-2", train_tsv=train, dev_tsv=good))


def test_a_table_in_another_encoding_is_said(tmp_path):
    folder = write(tmp_path / "SST-2", dev_tsv="sentence\tlabel\nA\t1\n")
    (folder / "train.tsv").write_bytes("sentence\tlabel\nA\t1\n".encode("utf-16"))
    assert "train.tsv' is not UTF-8 text but UTF-16; save it as UTF-8" in complaint(folder)


def test_numbers_that_are_none(tmp_path):
    folder = write(tmp_path / "STS-B", train_tsv=STSB.replace("0.25", "high"), dev_tsv=STSB)
    assert "train.tsv', line 3: 'high' in column 'score', expected a number" in complaint(folder)
    folder = write(tmp_path / "more" / "STS-B", train_tsv=STSB.replace("0.25", "1e39"), dev_tsv=STSB)
    assert "train.tsv', line 3: '1e39' in column 'score', expected a number" in complaint(folder)


def test_a_row_over_several_lines_is_named_by_its_first(tmp_path):
    table = 'sentence,label\nA,1\n"B\nand\nmore",0,0\n'
    folder = write(tmp_path / "SST-2", train_csv=table, dev_csv=table)
    assert "train.csv', line 3: 3 columns, expected 2" in complaint(folder)
    folder = write(tmp_path / "open" / "SST-2", train_csv=table.replace('more"', "more"), dev_csv=table)
    assert "train.csv', in the row that begins in line 3: unexpected end of data" in complaint(folder)


def test_files_and_tasks_that_are_missing(tmp_path):
    assert "SST-2' holds nothing; expected" in complaint(write(tmp_path / "SST-2"))
    good = "sentence\tlabel\nA\t1\nB\t0\n"
    assert "has no dev.tsv" in complaint(write(tmp_path / "SST-2", train_tsv=good))
    assert "has no task in its name" in complaint(write(tmp_path / "mine", train_tsv=good))
    assert "no task is called 'sst-2'; nearest: sst2" in complaint(tmp_path / "mine", task="sst-2")
    alone = complaint(tmp_path / "mine", task="classification")
    assert "has no test or val split beside the 2 training examples" in alone
    assert "expected one name, or two" in complaint(tmp_path / "mine", task="regression", text_columns="a,b,c")
    write(tmp_path / "mine", train_csv=good)
    assert "holds both train.csv and train.tsv" in complaint(tmp_path / "mine", task="classification")
    quote = write(tmp_path / "q", train_csv='sentence,label\n"A,1\n', dev_csv="sentence,label\nA,1\n")
    assert "train.csv', in the row that begins in line 2: " in complaint(quote, task="classification")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("A\tx\nB\tx\n", "column 'label' holds 1 labels in 2 rows, expected the names of two or more classes"),
        ("A\tx\nB\t\n", "column 'label' holds an empty label"),
        ("".join(f"A\t{i}\n" for i in range(30)), "holds 30 labels in 30 rows"),
    ],
)
def test_labels_that_are_no_classes(tmp_path, rows, expected):
    rows = "sentence\tlabel\n" + rows
    folder = write(tmp_path / "own", train_tsv=rows, dev_tsv=rows)
    assert expected in complaint(folder, task="classification")


def test_a_column_named_twice_is_refused(tmp_path):
    rows = "sentence\tlabel\tlabel\nA\t1\t0\n"
    assert "has 2 columns 'label'" in complaint(write(tmp_path / "SST-2", train_tsv=rows, dev_tsv=rows))


def test_strange_digits_are_labels_like_others(tmp_path):
    rows = "sentence\tlabel\nA\t²\nB\t1\n"
    data = sources.load(str(write(tmp_path / "own", train_tsv=rows, dev_tsv=rows)), task="classification")
    assert data.class_names == ("1", "²")


def test_broken_rows_of_qqp_are_left_out_and_counted(tmp_path, capsys):
    rows = "id\tquestion1\tquestion2\tis_duplicate\n1\tA?\tB?\t0\n2\tC?\n3\tD?\t\t1\n4\tE?\tF?\t1\n"
    data = sources.load(str(write(tmp_path / "QQP", train_tsv=rows, dev_tsv=rows)))
    assert [data.train[i]["texts"] for i in range(2)] == [("A?", "B?"), ("E?", "F?")] and len(data.train) == 2
    said = capsys.readouterr().out
    assert "train.tsv': left out 2 broken rows, the first is " in said and "line 3: 2 columns, expected 4" in said


def test_a_label_that_training_never_saw_is_refused(tmp_path):
    rows = "sentence\tlabel\nA\tred\nB\tblue\n"
    folder = write(tmp_path / "own", train_tsv=rows, dev_tsv=rows + "C\tgrene\n")
    assert "dev.tsv', line 4: label 'grene'" in complaint(folder, task="classification")


def test_every_task_of_glue_has_metrics_that_exist():
    from surm.tasks.metrics import METRICS

    for task in glue.TASKS.values():
        assert set(task.metrics) <= METRICS.keys() and len(task.columns) in (1, 2)
    assert texts.plain_name(epath.Path("SST-2")) == "sst2"


def test_a_tables_columns_are_named_with_the_keys_that_choose_them(tmp_path):
    folder = write(tmp_path / "own", train_csv="text, label\na,b\n", test_csv="text, label\na,b\n")
    with pytest.raises(InputError, match="no column 'label'; its columns are 'text', ' label'; name them in config"):
        sources.load(str(folder), task="classification", text_columns="text")
    for columns in ("text,text", "text,label"):
        with pytest.raises(InputError, match=f"data.text_columns='{columns}' and .*'label' name a column twice"):
            sources.load(str(folder), task="classification", text_columns=columns)


def test_long_fields_and_old_line_ends(tmp_path):
    long = "word " * 40_000
    text = f"sentence,label\n{long},a\nb,b\n"
    data = sources.load(str(write(tmp_path / "long", train_csv=text, test_csv=text)), task="classification")
    assert data.train[0]["texts"] == (long,)
    old = "sentence\tlabel\rA\t1\rB\t0\r"
    data = sources.load(str(write(tmp_path / "SST-2", train_tsv=old, dev_tsv=old)))
    assert data.train[1]["texts"] == ("B",)


def test_a_link_goes_by_its_own_name(tmp_path):
    rows = "sentence\tlabel\nA\t1\nB\t0\n"
    (tmp_path / "SST-2").symlink_to(write(tmp_path / "reviews", train_tsv=rows, dev_tsv=rows))
    assert sources.load(str(tmp_path / "SST-2")).class_names == ("0", "1")


def test_the_main_metric_of_a_task_is_the_papers():
    first = {name: task.metrics[0] for name, task in glue.TASKS.items()}
    special = {"cola": "matthews", "mrpc": "f1", "stsb": "spearman"}
    assert first == {name: special.get(name, "accuracy") for name in glue.TASKS}
