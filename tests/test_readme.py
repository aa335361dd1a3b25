"""What README and configs say is so: snippets run, numbers are those of committed results, paths exist."""

import json
import pathlib
import re
import runpy

import pytest

from surm import train

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
table = runpy.run_path(str(ROOT / "experiments" / "vit_families" / "run.py"))["table"]


def test_the_snippets_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [f"--config={ROOT / 'configs' / 'vit_digits.py'}", "--workdir=runs/demo", "--config.optim.steps=2"]
    assert train.main(["surm.train", *arguments]) == 0
    names: dict[str, object] = {}
    for snippet in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(snippet, names)
    assert names["logits"].shape == (1, 10)


@pytest.mark.parametrize("dataset", ["cifar10", "digits"])
def test_the_tables_are_those_of_the_committed_results(dataset):
    shown = re.search(rf"<!-- table {dataset} -->\n(.*?)\n<!-- end -->", README, re.DOTALL).group(1)
    assert shown == table(dataset)


def test_every_path_it_names_exists():
    named = set(re.findall(r"(?:surm|configs|experiments|scripts|tests|docs)/[\w./-]*\w", README))
    missing = [path for path in named if not (ROOT / path).exists() and "NAME" not in path]
    assert not missing


@pytest.mark.parametrize(
    ("config", "result"),
    [
        ("vit_digits", "experiments/vit_families/results/digits_circulant.json"),
        ("vit_cifar", "experiments/vit_families/results/cifar10_circulant.json"),
        ("pretrain_vit", "surm/models/assets/vit_micro.json"),
    ],
)
def test_the_number_a_config_promises_is_that_of_its_result(config, result):
    promised = re.search(r"Expected number:\s([\d.]+) %", (ROOT / "configs" / f"{config}.py").read_text()).group(1)
    measured = json.loads((ROOT / result).read_text())["eval"]["accuracy"]
    assert promised == f"{100 * measured:.1f}"


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_what_is_said_of_gradients_is_what_was_measured():
    said = " ".join((ROOT / "experiments" / "README.md").read_text().split())
    mean = json.loads((ROOT / "experiments/gradient_share/results/mrpc.json").read_text())["mean"]
    share = {name: f"{100 * value:.1f} %" for name, value in mean.items()}
    assert f"One singular pair catches {share['low_rank r=1']} of it and eight {share['low_rank r=8']}" in said
    assert f"circulant {share['circulant']} and the nearest Toeplitz matrix {share['toeplitz, any']}" in said
    assert f"{share['kronecker']} (Kronecker) and {share['low_displacement_rank r=1']} (W(G,H))" in said
