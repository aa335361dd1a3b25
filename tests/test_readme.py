"""What README and configs say is so: snippets run, numbers are those of committed results, paths exist."""

import ast
import functools
import itertools
import json
import pathlib
import re
import runpy
import shlex
import statistics
import sys

import numpy as np
import PIL.Image
import pytest

from surm import __main__ as command
from surm import train
from surm.cli import command_line
from surm.cli.flags import SWEEP, TRAIN
from surm.config import default, leaves
from tests import small_runs

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXPERIMENTS = (ROOT / "experiments" / "README.md").read_text()


def result_of(path: str) -> dict:
    return json.loads((ROOT / path).read_text())


def own_data(folder: pathlib.Path) -> None:
    """A folder of photos and one of tables, as the README describes them."""
    random = np.random.default_rng(0)
    for split, class_name, number in itertools.product(("train", "test"), ("cat", "dog"), range(1, 5)):
        place = folder / "photos" / split / class_name
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (20 + number, 30, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(place / f"{number:03}.jpg")
    (folder / "reviews").mkdir()
    (table,) = re.findall(r"```text\n(title,.*?)```", README, re.DOTALL)
    header, *rows = table.splitlines()
    for split in ("train", "test"):
        (folder / "reviews" / f"{split}.csv").write_text("\n".join([header, *4 * rows]) + "\n")


def test_the_snippets_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    own_data(tmp_path)
    demo = ["surm", "train", "--config=configs/vit_digits.py", "--workdir=runs/demo"]
    used = {"--workdir=runs/photos", "--workdir=runs/reviews"}
    short = ["--config.optim.epochs=0", "--config.optim.steps=2"]
    small = [f"--config.model.weights={small_runs.WEIGHTS}", "--config.model.name=auto", "--config.model.image_size=16"]
    for words in (demo, *(words for words in commands(README) if used & {*words})):
        more = small if "--workdir=runs/photos" in words else []
        assert train.main(["surm.train", *words[2:], *short, *more]) == 0
    names: dict[str, object] = {}
    for snippet in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(snippet, names)
    assert names["logits"].shape == (1, 10)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_the_snippets_of_the_docs_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    snippets = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    for snippet in snippets:
        exec(snippet, names)
    assert "surm" in names or page.stem in ("compatibility", "places")  # pages without Python


def commands(text: str) -> list[list[str]]:
    """The words of every command in an indented block, over lines that end in a backslash, without comments.

    Of those within a sentence only what begins with `python` and names a script.
    """
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL).replace("\\\n", " ")
    lines = re.findall(r"^ {4,}((?:surm|python) .*)$", text, re.MULTILINE)
    lines += re.findall(r"`(python [^`-][^`]*)`", text)
    return [shlex.split(line, comments=True) for line in lines]


PAGES = [ROOT / "README.md", ROOT / "experiments" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_the_commands_name_what_there_is(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = commands(page.read_text())
    assert found or page.stem in ("adapters", "compatibility", "numbers", "why", "your_model")  # pages without
    for words in found:
        program, *flags = words[2:] if words[:2] == ["python", "-m"] else [f"surm.{words[1]}", *words[2:]]
        if words[0] == "python" and words[1] != "-m":
            script = (ROOT / words[1]).read_text()
            assert all(f'"{flag.split("=")[0]}"' in script for flag in flags if flag.startswith("--")), words
        elif program == "surm.train":
            command_line.parse([program, *flags], TRAIN)
        elif program == "surm.sweep":
            command_line.parse([program, *flags], SWEEP)
        else:
            assert program.removeprefix("surm.") in command.COMMANDS, words


WRITTEN = runpy.run_path(str(ROOT / "scripts" / "write_tables.py"))


@pytest.mark.parametrize("table", WRITTEN["TABLES"], ids=lambda table: table.name.replace(" ", "_"))
def test_the_tables_are_those_of_the_committed_results(table):
    text = (ROOT / table.page).read_text()
    assert WRITTEN["with_table"](text, table.name, WRITTEN["made"](table)) == text


def test_a_table_that_differs_is_found_and_written(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "choosing.md").read_text()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "choosing.md").write_text(page.replace("| head |", "| heat |", 1))
    names = WRITTEN["main"].__globals__
    monkeypatch.setitem(names, "TABLES", [table for table in names["TABLES"] if table.name == "rates"])
    rows = names["made"](names["TABLES"][0])
    monkeypatch.setitem(names, "made", lambda table: rows)
    monkeypatch.setitem(names, "ROOT", tmp_path)
    for arguments, status, said in (["--check"], 1, "differs"), ([], 0, "written"), (["--check"], 0, ""):
        monkeypatch.setattr(sys, "argv", ["write_tables.py", *arguments])
        assert WRITTEN["main"]() == status
        assert capsys.readouterr().out == (f"{said}: docs/choosing.md: rates\n" if said else "")
    assert (tmp_path / "docs" / "choosing.md").read_text() == page


def test_the_numbers_of_its_commands_are_those_of_the_committed_results():
    words = r"of about \*\*(\d+) %\*\*; with\s+the head alone, the same number of steps reaches ([\d.]+) %"
    said = re.search(words, README)
    circulant, head = (
        100 * result_of(f"experiments/vit_families/results/digits_{method}.json")["eval"]["accuracy"]
        for method in ("circulant", "head")
    )
    assert said.groups() == (f"{circulant:.0f}", f"{head:.1f}")
    f1 = result_of("experiments/glue_methods/results/mrpc_circulant.json")["eval"]["f1"]
    assert f"an F1 on the dev set of about **{100 * f1:.0f} %**" in README


def test_every_path_it_names_exists():
    named = set(re.findall(r"(?:surm|configs|experiments|scripts|tests|docs)/[\w./-]*\w", README))
    made = re.findall(r'^```\w+ title="(.*)"$', README, re.MULTILINE)  # by its steps
    missing = [path for path in named - {*made} if not (ROOT / path).exists() and "NAME" not in path]
    assert not missing


@pytest.mark.parametrize(
    ("config", "result"),
    [
        ("vit_digits", "experiments/vit_families/results/digits_circulant.json"),
        ("vit_cifar", "experiments/vit_families/results/cifar10_circulant.json"),
        ("pretrain_vit", "surm/models/assets/vit_micro.json"),
        ("bert_glue", "experiments/glue_methods/results/mrpc_circulant.json"),
    ],
)
def test_the_number_a_config_promises_is_that_of_its_result(config, result):
    promised = re.search(r"Expected number:\s([\d.]+) %", (ROOT / "configs" / f"{config}.py").read_text()).group(1)
    measured = result_of(result)
    assert promised == f"{100 * measured['eval'][measured.get('metric', 'accuracy')]:.1f}"


def test_what_is_said_of_made_orders_was_measured():
    measured = result_of("experiments/orders/results/circulant.json")
    share, minutes = f"{100 * measured['eval']['exact_match']:.0f} %", round(measured["seconds"] / 60 + 0.5)
    minutes = ("no", "one", "two", "three", "four", "five")[minutes]
    readme = " ".join(README.split())
    assert f"It takes about {minutes} minutes on two cores. Then about {share} of the 60 test requests" in readme
    docstring = " ".join(ast.get_docstring(ast.parse((ROOT / "configs" / "lm_text.py").read_text())).split())
    assert f"about {minutes} minutes on two CPU cores and {measured['peak_bytes'] / 1e9:.0f} GB of memory" in docstring
    assert f"answers {share} of the 60 test requests right to the letter" in docstring


def test_the_command_that_promises_a_number_is_what_was_measured():
    docstring = ast.get_docstring(ast.parse((ROOT / "configs" / "bert_glue.py").read_text()))
    command = re.search(r"python -m surm.train (--config=\S+minilm .*?)\n\n", docstring, re.DOTALL).group(1)
    flags = command.replace("\\\n", "").replace("configs/", f"{ROOT}/configs/").split()
    config = dict(leaves(command_line.parse(["surm.train", *flags]).config))
    measured = dict(leaves(result_of("experiments/glue_methods/results/mrpc_circulant.json")["config"]))
    config["data.lengths"] = measured["data.lengths"]  # how far batches are padded
    assert config == dict(leaves(default())) | measured  # keys that came later are at their defaults


def test_what_is_said_of_glue_was_measured():
    said = " ".join(EXPERIMENTS.split())

    def mean(name: str, task: str = "mrpc", metric: str = "f1") -> str:
        values = result_of(f"experiments/glue_methods/results/{task}_{name}.json")["seeds"][metric]
        return f"{100 * statistics.fmean(values):.1f}"

    wgh, rank1, rank8 = "low_displacement_rank_r1", "low_rank_r1", "low_rank_r8"
    assert f"Kronecker reaches {mean('kronecker')}, W(G,H) {mean(wgh)}, Toeplitz {mean('toeplitz')}, circulant " in said
    assert f"circulant {mean('circulant')} and LoRA of rank 1 {mean(rank1)}; LoRA of rank 8" in said
    assert f"with eight times as many, {mean(rank8)}." in said
    assert f"W(G,H) reaches {mean(f'adapter_{wgh}')}, Kronecker {mean('adapter_kronecker')} and " in said
    assert f"and circulant {mean('adapter_circulant')}; the bottleneck of size 16" in said
    assert f"eleven times as many, {mean('bottleneck_16')}." in said
    for task, metric in (("sst2", "accuracy"), ("cola", "matthews")):
        of = functools.partial(mean, task=task, metric=metric)
        for name, called in (("circulant", "circulant"), (wgh, "W(G,H)"), ("toeplitz", "Toeplitz")):
            assert f"{called} {of(name)}, " in said
        assert (
            f"Kronecker {of('kronecker')}, LoRA {of(rank1)} of rank 1 and {of(rank8)} of rank 8; the adapters" in said
        )
        adapters = sorted(float(of(f"adapter_{name}")) for name in ("circulant", "kronecker", wgh))
        assert f"the adapters {adapters[0]} to {adapters[-1]}, the bottlenecks {of('bottleneck_16')} (size 16)" in said
        assert f"(size 16) and {of('bottleneck_64')} (size 64)." in said
    tuned = result_of(f"experiments/glue_methods/results/cola_{rank8}.json")["tuning"]["validation"]
    assert f"Rank 8 had {100 * tuned['0.004']['matthews']:.1f} on held-out" in said


def test_what_is_said_of_gradients_is_what_was_measured():
    said = " ".join(EXPERIMENTS.split())
    mean = result_of("experiments/gradient_share/results/mrpc_update.json")["mean"]
    share = {name: f"{100 * value:.1f} %" for name, value in mean.items()}
    pairs = f"{share['low_rank r=1']} of its squared norm and eight pairs {share['low_rank r=8']}"
    assert f"One singular pair captures {pairs}" in said
    assert f"circulant captures {share['circulant']} and the nearest Toeplitz matrix {share['toeplitz, any']}" in said
    assert f"{share['kronecker']} (Kronecker) and {share['low_displacement_rank r=1']} (W(G,H))" in said
    mean = result_of("experiments/gradient_share/results/mrpc_adapter.json")["mean"]
    share = {name: f"{100 * value:.1f} %" for name, value in mean.items()}
    assert (
        f"one singular pair captures {share['low_rank r=1']}, the nearest circulant {share['circulant']}, Kronecker "
        f"{share['kronecker']} and W(G,H) {share['low_displacement_rank r=1']}" in said
    )


def test_what_is_said_of_many_runs_and_many_adapters_was_measured():
    said = " ".join(EXPERIMENTS.split())
    (row,) = result_of("experiments/population/results/digits_cpu.json")["rows"]
    low, high = min(row["over_alone_each"]), max(row["over_alone_each"])
    assert row["members"] == 16
    of_rounds = f"(three rounds, {low:.2f} to {high:.2f})"
    assert f"takes {row['over_alone']:.2f} times as long as the steps of sixteen runs alone {of_rounds}" in said
    assert f"its peak is {row['peak_over_alone']:.2f} times the memory of one run" in said
    served = result_of("experiments/serving/results/vit_micro_cpu_64.json")["rows"]
    base, circulant, rank8, circulant_apart, rank8_apart = (
        f"{served[name]['examples_per_second']:,.0f}"
        for name in (
            "base",
            "circulant, 256 together",
            "low_rank r=8, 256 together",
            "circulant, 256 apart",
            "low_rank r=8, 256 apart",
        )  # fmt: skip
    )
    assert f"answers {base} images a second. `serve_batch` answers {circulant} with 256 circulant adapters and" in said
    assert f"{rank8} with 256 LoRA adapters of rank 8" in said
    assert f"names answers {circulant_apart} and {rank8_apart}." in said
