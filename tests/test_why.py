"""docs/why.md says what committed results say, and its pictures show them."""

import json
import pathlib
import runpy
import statistics

from surm.report import figures

ROOT = pathlib.Path(__file__).parent.parent
SAID = " ".join((ROOT / "docs" / "why.md").read_text().split())
DRAWING = runpy.run_path(str(ROOT / "scripts" / "draw_why.py"))


def result_of(path: str) -> dict:
    return json.loads((ROOT / "experiments" / path).read_text())


def f1(name: str) -> str:
    return f"{100 * statistics.fmean(result_of(f'glue_methods/results/mrpc_{name}.json')['seeds']['f1']):.1f}"


def trained(name: str) -> str:
    return f"{result_of(f'glue_methods/results/mrpc_{name}.json')['adapter_parameters']:,}"


def test_parameters_and_ranks():
    assert DRAWING["counted"]("circulant", {"hadamard": False}) == (768, 768)
    assert DRAWING["counted"]("low_rank", {"rank": 1}) == (2 * 768, 1)
    assert "A circulant update trains 768 numbers, half of what LoRA of rank 1 trains, and has rank 768." in SAID


def test_accuracy_on_mrpc():
    of = [f"LoRA of rank 1 reaches an F1 of {f1('low_rank_r1')}", f"Kronecker {f1('kronecker')}"]
    of += [f"Toeplitz {f1('toeplitz')} and circulant {f1('circulant')}."]
    assert f"with {trained('low_rank_r1')} trained numbers, {', '.join(of)}" in SAID
    assert f"LoRA of rank 8, with eight times as many numbers, reaches {f1('low_rank_r8')}." in SAID
    adapter = "adapter_low_displacement_rank_r1"
    assert f"W(G,H) adapters reach an F1 of {f1(adapter)} with {trained(adapter)} numbers;" in SAID
    assert f"bottleneck adapters reach {f1('bottleneck_16')} with eleven times as many." in SAID
    wide, narrow = (int(trained(name).replace(",", "")) for name in ("bottleneck_16", adapter))
    assert round(wide / narrow) == 11
    assert {trained(name) for name in ("kronecker", "toeplitz", "circulant")} == {trained("low_rank_r1")}


def test_shares_of_the_gradient():
    share = result_of("gradient_share/results/mrpc_update.json")["mean"]
    of = f"one singular pair holds {share['low_rank r=1']:.1%} of a weight's gradient, and the nearest circulant matrix"
    assert f"{of} {share['circulant']:.1%}, about".replace("%", " %") in SAID


def test_the_pinwheel():
    rows = {r["family"]: r for r in result_of("pinwheel/results/pinwheel.json")["results"] if r["setting"] == "frozen"}
    low = rows["low_rank r=1"]
    of = f"stops at a log-loss of {low['end']['mean']:.2f} ({100 * low['accuracy']:.0f} % of the points are right)."
    assert of in SAID
    for name in ("circulant", "toeplitz", "kronecker", "low_displacement_rank r=1", "dense"):
        row = rows[name]
        said = (
            f"Structured updates with as many parameters reach {row['end']['mean']:.2f} ({100 * row['accuracy']:.0f} %)"
        )
        assert said in SAID, name
        assert name == "dense" or row["parameters"] == low["parameters"]


def test_errors_of_the_nearest_member():
    displacement, ours = DRAWING["errors"]("displacement2"), DRAWING["errors"]("updates_mrpc")
    assert displacement["W(G,H)"][0][0] == displacement["low rank"][0][0] == ours["low rank"][0][0] == 2
    low, wgh = displacement["low rank"][0][1], displacement["W(G,H)"][0][1]
    assert f"1 with an error of {wgh:.2f}, while low rank of the same size is at {low:.2f}" in SAID
    assert f"low rank of size 2n comes to {ours['low rank'][0][1]:.2f} and all the others stay near 1" in SAID
    assert min(points[0][1] for line, points in ours.items() if line != "low rank") > 0.95


def test_the_picture_of_errors_is_drawn_from_the_committed_results():
    picture = ROOT / "docs" / "why_errors.png"
    assert figures.drawn_from(picture) == figures.digest(DRAWING["RESULTS"]), "python scripts/draw_why.py docs"


def test_the_pictures_are_drawn_and_shown(tmp_path, monkeypatch):
    monkeypatch.setitem(DRAWING["main"].__globals__, "SIZE", 32)  # the committed ones have the full size
    DRAWING["main"](str(tmp_path))
    for picture in ("why_updates.png", "why_errors.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
        assert f"]({picture})" in SAID and (ROOT / "docs" / picture).is_file()
