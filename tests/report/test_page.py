"""Many runs in one report: what is read, put together, compared, and made into a page."""

import json
import pathlib
import re
import statistics
import subprocess
import sys

import pytest
import scipy.stats

from surm.errors import InputError
from surm.report import __main__ as command
from surm.report import collect, compare, page, plots, tables

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
COMMITTED = [EXPERIMENTS / "glue_methods" / "results", EXPERIMENTS / "vit_families" / "results"]


def result(accuracy: float, family: str = "circulant", seed: int = 0, source: str = "/data/cifar.npz", **more) -> dict:
    config = {"data": {"source": source}, "optim": {"learning_rate": 1e-3}, "peft": {"options": ""}, "seed": seed}
    return {
        "eval": {"accuracy": accuracy, "loss": 1.0}, "metric": "accuracy", "config": config, "method": "update",
        "family": family, "adapter_parameters": 100, "step_seconds_median": 0.5, "versions": {"jax": "1.2"},
    } | more  # fmt: skip


def written(folder: pathlib.Path, *results: dict) -> pathlib.Path:
    for number, one in enumerate(results):
        (folder / f"run{number}").mkdir(parents=True)
        (folder / f"run{number}" / "result.json").write_text(json.dumps(one))
    return folder


def begun(folder: pathlib.Path) -> pathlib.Path:
    """A run that was killed."""
    folder.mkdir(parents=True)
    for name in ("config.json", ".lock"):
        (folder / name).write_text("{}")
    return folder


def compared(folder: pathlib.Path) -> list[compare.Table]:
    return compare.tables(collect.collect([folder]).results)


def test_seeds_are_put_together_and_the_best_comes_first(tmp_path):
    low, high = (0.50, 0.52, 0.51), (0.60, 0.63, 0.62)
    runs = [result(value, "circulant", seed) for seed, value in enumerate(low)]
    runs += [result(value, "toeplitz", seed, adapter_parameters=7) for seed, value in enumerate(high)]
    (table,) = compared(written(tmp_path, *runs))
    assert table.task == "cifar.npz, accuracy" and table.differing == ()
    assert [row.label for row in table.rows] == ["toeplitz", "circulant"]
    assert [row.parameters for row in table.rows] == [7, 100]
    assert table.rows[1].mean("accuracy") == pytest.approx(statistics.fmean(low))
    assert table.rows[1].deviation("accuracy") == pytest.approx(statistics.stdev(low))
    assert table.p_values() == [None, pytest.approx(scipy.stats.ttest_ind(low, high, equal_var=False).pvalue)]
    assert tables.cells(table)[1] == ["circulant", "51.0 ± 1.0", f"{table.p_values()[1]:.3f}", "100", "3", "500"]


def losing(value: float, loss: float = 1.0, **more) -> dict:
    """A result whose main metric is better the less it is, and no share of one."""
    metrics = {"perplexity": {"better": "less", "unit": ""}, "accuracy": {"better": "more", "unit": "%"}}
    values = {"perplexity": value, "accuracy": value / 100, "loss": loss}
    return result(0.0, **more) | {"eval": values, "metric": "perplexity", "metrics": metrics}


def test_a_metric_of_which_less_is_better_is_ranked_and_shown_as_it_says(tmp_path):
    runs = [losing(30.0, family="a", adapter_parameters=9), losing(12.5, family="b", adapter_parameters=8),
            losing(14.25, family="c", adapter_parameters=3)]  # fmt: skip
    (table,) = compared(written(tmp_path, *runs))
    assert [row.label for row in table.rows] == ["b", "c", "a"]
    assert [row.label for row in plots.best_at_their_size(table)] == ["c", "b"]
    assert [row[1:3] for row in tables.cells(table)] == [["12.5", "12.5"], ["14.25", "14.2"], ["30", "30.0"]]
    assert tables.headings(table)[1:3] == ["perplexity", "accuracy"]
    assert "Metrics are in percent, except perplexity." in tables.markdown([table])


def test_a_direction_that_is_none_is_refused(tmp_path):
    wrong = losing(3.0) | {"metrics": {"perplexity": {"better": "fewer", "unit": ""}}}
    found = collect.collect([written(tmp_path, wrong, result(0.5))])
    assert len(found.results) == 1 and "metrics.perplexity must be an object with 'better'" in str(found.skipped)


def test_what_differs_in_the_config_is_another_row_and_a_column(tmp_path):
    other = result(0.7)
    other["config"]["optim"]["learning_rate"] = 0.004
    old = result(0.6, "kronecker")
    del old["config"]["optim"]
    (table,) = compared(written(tmp_path, result(0.5), other, old))
    assert table.differing == ("optim.learning_rate",) and tables.headings(table)[-1] == "learning_rate"
    assert [row[-1] for row in tables.cells(table)] == ["0.004", "", "0.001"]
    assert table.p_values() == [None, None, None] and tables.cells(table)[1][2] == "–"  # single seeds


def test_a_key_that_only_newer_configs_have_is_no_difference(tmp_path):
    old = result(0.6, "kronecker")
    del old["config"]["optim"]
    (table,) = compared(written(tmp_path, result(0.5), old))
    assert table.differing == () and len(table.rows) == 2


def test_other_data_and_other_metrics_have_tables_of_their_own(tmp_path):
    texts = result(0.8, source="tfds:glue/mrpc", metric="f1", eval={"f1": 0.8, "accuracy": 0.7, "loss": 1})
    found = compared(written(tmp_path, result(0.5), texts, result(0.6, source="/elsewhere/cifar.npz")))
    assert [(table.task, len(table.rows)) for table in found] == [
        ("cifar.npz, accuracy", 1),  # the same data in two places, twice the same config: two values of one row
        ("tfds:glue/mrpc, f1", 1),
    ]
    assert found[0].rows[0].values("accuracy") == [0.5, 0.6] and found[1].metrics == ("f1", "accuracy")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "cannot be read as JSON (JSONDecodeError: Expecting property name"),
        ("[1]", "holds a JSON list, expected an object"),
        (
            '{"eval": {"accuracy": 1}, "metric": "accuracy"}',
            "has no 'config', so it is not the result of a run, or an ol",
        ),
        (json.dumps(result(float("nan"))), "'eval' is {'accuracy': nan, 'loss': 1.0}, expected numbers"),
        (json.dumps(result(0.5, metric="f1")), "expected numbers, 'f1' among them"),
    ],
)
def test_what_is_no_result_is_skipped_and_named(tmp_path, capsys, text, why):
    written(tmp_path / "runs", result(0.5))
    broken = tmp_path / "runs" / "broken" / "result.json"
    broken.parent.mkdir()
    broken.write_text(text)
    assert command.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"skipped {broken}: ") and why in said and "1 result in" in said
    assert "broken" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "there is no"),
        (lambda folder: folder.mkdir(), "no result under"),
        (lambda folder: written(folder, {"eval": 3}), "result.json: has 3 as 'eval', expected an object"),
        (lambda folder: begun(folder), "is not finished; the command that started it continues it"),
    ],
)
def test_where_there_is_nothing_to_report_one_line_says_so(tmp_path, capsys, make, message):
    make(tmp_path / "runs")
    assert command.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_not_finished_is_named(tmp_path, capsys):
    written(tmp_path / "runs", result(0.5))
    killed = begun(tmp_path / "runs" / "killed")
    assert command.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith(f"skipped {killed}: is not finished")
    (killed / "result.json").write_text(json.dumps(result(0.6)))
    assert not collect.collect(iter([tmp_path / "runs"])).skipped


def test_what_trained_on_less_data_or_was_measured_on_other_has_a_table_of_its_own(tmp_path):
    few, chosen = result(0.4), result(0.6)
    few["config"]["data"]["train_examples"] = 1000
    chosen["config"]["data"] |= {"train_examples": 0, "eval_split": "validation"}
    assert [table.task for table in compared(written(tmp_path, result(0.5), few, chosen))] == [
        "cifar.npz, accuracy", "cifar.npz, 1,000 training examples, accuracy", "cifar.npz, accuracy on validation"
    ]  # fmt: skip


def test_the_rate_and_the_steps_are_those_that_a_run_had(tmp_path):
    runs = [result(0.5), result(0.6, steps=30, learning_rate=0.004), result(0.4, method="head", learning_rate=0.02)]
    runs[1]["config"]["optim"] = {"learning_rate": None, "epochs": 3, "steps": 0}
    runs[0]["config"]["optim"] |= {"epochs": 0, "steps": 20}
    runs[0]["steps"] = 20
    (table,) = compared(written(tmp_path, *runs))
    assert table.differing == ("optim.learning_rate", "optim.steps")
    assert [row[-2:] for row in tables.cells(table)] == [["0.004", "30"], ["0.001", "20"], ["–", ""]]


def test_of_a_population_a_member_takes_its_share_of_a_step(tmp_path):
    (table,) = compared(written(tmp_path, result(0.5, members=4)))
    assert table.rows[0].step_seconds == 0.125


def test_figures_tell_rows_of_one_label_apart(tmp_path):
    runs = [result(0.5 + rate + batch / 100) for rate in (0.1, 0.2) for batch in (1, 2)] + [result(0.2, "toeplitz")]
    for number, run in enumerate(runs[:4]):
        run["config"]["optim"] = {"learning_rate": (0.1, 0.2)[number // 2], "batch_size": 1 + number % 2}
        run["config"]["other"] = number // 2  # tells no more
    (table,) = compared(written(tmp_path, *runs))
    assert table.names() == [
        f"circulant, learning_rate {rate}, batch_size {batch}" for rate in (0.2, 0.1) for batch in (2, 1)
    ] + ["toeplitz"]  # fmt: skip
    for number in range(5):
        line = {"step": 1, "split": "test", "values": {"accuracy": 0.1}}
        (tmp_path / f"run{number}" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (table,) = compared(tmp_path)
    assert plots._held_out(table) == {name: {1: [10.0]} for name in table.names()}
    alike = compare.Table("", ("accuracy",), (compare.Row("a", (), {}), compare.Row("a", (), {})), ())
    assert alike.names() == ["a", "a (2)"]


def test_names_in_a_figure_lie_on_no_other(tmp_path):
    import matplotlib.figure

    axes = matplotlib.figure.Figure(figsize=(8, 4), dpi=100).subplots()
    axes.set(xlim=(0, 100), ylim=(0, 100))
    axes.figure.draw_without_rendering()
    points = [(f"method number {number}", 50.0, 50 + number / 50) for number in range(30)] + [("alone", 98.0, 2.0)]
    plots._label(axes, points)
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert {"method number 0", "alone"} <= boxes.keys() and 4 <= len(boxes) <= 9
    assert all(box.count_overlaps([*boxes.values()]) == 1 for box in boxes.values())  # with itself
    assert all(axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1) for box in boxes.values())


def test_a_file_is_no_folder_to_write_to(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert command.main([str(written(tmp_path / "runs", result(0.5))), "--out", str(tmp_path / "out")]) == 2
    assert "is a file, expected a folder" in capsys.readouterr().err


def test_of_a_population_the_members_count(tmp_path):
    written(tmp_path / "members", result(0.5), result(0.6, seed=1))
    (tmp_path / "result.json").write_text(json.dumps(result(0.6, population=[{}, {}])))
    assert [one.values["accuracy"] for one in collect.collect([tmp_path]).results] == [[0.5], [0.6]]


def test_committed_results_make_a_page_that_needs_nothing_else(tmp_path, capsys):
    assert command.main([*map(str, COMMITTED), "--out", str(tmp_path)]) == 0
    count = int(re.search(r"(\d+) results in", capsys.readouterr().out).group(1))
    assert count >= 50
    html = (tmp_path / "index.html").read_text()
    assert html.count("<h2>CoLA, matthews</h2>") == 1 and html.count("data:image/svg+xml;base64,") >= 5
    assert not re.search(r"""(src|href)=["'](?!data:)""", html) and "http" not in re.sub(r"base64,[^\"]*", "", html)
    markdown, latex = (tmp_path / "report.md").read_text(), (tmp_path / "report.tex").read_text()
    for name in ("bottleneck 16", "low_displacement_rank r=1"):
        assert f"| {name} |" in markdown and name.replace("_", r"\_") in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == markdown.count("\n## ") + 1
    again = command.report([str(path) for path in COMMITTED], str(tmp_path / "again"), "surm: results")
    assert (tmp_path / "again" / "index.html").read_text() == html and again


def test_the_front_is_what_nothing_smaller_beats(tmp_path):
    sizes = {"a": (10, 0.5), "b": (10, 0.6), "c": (20, 0.55), "d": (30, 0.7)}
    runs = [result(value, name, adapter_parameters=size) for name, (size, value) in sizes.items()]
    (table,) = compared(written(tmp_path, *runs))
    assert [row.label for row in plots.best_at_their_size(table)] == ["b", "d"]


def test_held_out_curves_are_drawn_where_runs_have_them(tmp_path):
    written(tmp_path, result(0.5), result(0.6, seed=1))
    (table,) = compared(tmp_path)
    assert plots.curves(table) is None
    lines = [{"step": step, "split": "test", "values": {"accuracy": step / 10}} for step in (1, 2)]
    lines += [{"step": 1, "split": "train", "values": {"accuracy": 0.9}}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "run0" / "metrics.jsonl").write_text(text + '{"step": 3, "spl')  # killed while it wrote
    (table,) = compared(tmp_path)
    assert plots._points(table.rows[0], "accuracy") == {1: [10.0], 2: [20.0]}
    assert plots.curves(table).startswith("<svg")


def test_what_a_name_says_cannot_become_part_of_the_page(tmp_path):
    found = collect.collect([written(tmp_path, result(0.5, name="<script>alert(1)</script> 5 & 6 |x|"))])
    compared = compare.tables(found.results)
    html = page.page(found, compared)
    assert "<script>alert" not in html and "&lt;script&gt;alert(1)&lt;/script&gt; 5 &amp; 6" in html
    assert r"\|x\|" in tables.markdown(compared) and r"5 \& 6" in tables.latex(compared)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"method": "adapter", "family": "kronecker", "config": {}}, "adapter kronecker"),
        ({"method": "update", "family": "vera", "config": {"peft": {"magnitude": True}}}, "vera with magnitude"),
        ({"method": "update", "family": "a+b", "config": {"peft": {"rules": "x => off"}}}, "a+b by rules x => off"),
        ({"method": "head", "family": None, "config": {"peft": {"options": ""}}}, "head"),
    ],
)
def test_labels(data, words):
    assert compare.label(data) == words


def test_no_jax_is_imported(tmp_path):
    written(tmp_path / "runs", result(0.5))
    program = (
        "import sys; from surm.report.__main__ import main; code = main(sys.argv[1:]); "
        "sys.exit(3 if 'jax' in sys.modules else code)"
    )
    arguments = [str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert subprocess.run([sys.executable, "-c", program, *arguments], check=False).returncode == 0


def test_a_missing_path_is_an_error_of_the_library_too():
    with pytest.raises(InputError, match="there is no 'nowhere'; expected a folder of runs, or a result"):
        collect.collect(["nowhere"])
