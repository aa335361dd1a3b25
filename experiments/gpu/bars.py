"""The bars of this experiment, and the figures of its results beside them."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from experiments.shared import tables
from surm import files

MODELS = {"bert_base": "BERT-base", "llama3_2_1b": "Llama 3.2 1B"}
LORA = "low_rank r=8"
OVER_LORA = {
    "kronecker": ("Kronecker", 1.05), "circulant": ("circulant", 1.10), "toeplitz": ("Toeplitz", 1.10),
    "low_displacement_rank r=1": ("W(G,H)", 1.15), "monarch": ("monarch", 1.05),
    "diagonal_circulant": ("diagonal circulant", 1.15),
}  # fmt: skip
"""The title of every family and the most that its step may take over a step of our LoRA r=8."""
OVER_C3A, OVER_MEMORY, OVER_FFT, AS_GOOD, NEAR = 0.5, 1.0, 0.3, 0.95, 1.1
UNKNOWN, LAYERS = "not measured", "single layers"


class Bar(NamedTuple):
    """What is asked of a figure, and the figure where it was measured.

    `detail` says more of it. If it is not `complete`, families are missing that could be worse.
    """

    name: str
    model: str
    asked: float
    found: float | None
    detail: str = ""
    least: bool = False
    complete: bool = True

    @property
    def met(self) -> bool | None:
        """Whether the figure is as asked; None if that is not known."""
        if self.found is None:
            return None
        good = self.found >= self.asked if self.least else self.found <= self.asked
        return None if good and not self.complete else good


def of(folder: pathlib.Path) -> list[Bar]:
    """All bars with the figures of the results in a folder."""
    found = []
    for model, title in MODELS.items():
        result = files.json_object(folder / f"{model}.json") or {}
        again = files.json_object(folder / f"{model}_again.json") or {}
        peaks = (files.json_object(folder / "peaks.json") or {}).get(model, {})
        found += of_model(title, result.get("rows", {}), again.get("rows", {}), peaks)
    return [*found, *of_paths((files.json_object(folder / "paths.json") or {}).get("points", []))]


def of_model(title: str, rows: Mapping[str, Any], again: Mapping[str, Any], peaks: Mapping[str, int]) -> Iterable[Bar]:
    """The bars of a model's steps: `rows` as `auto` multiplies, `again` by other paths, and peaks of memory."""
    middle = lambda row, over: row[over][1] if over in row else None  # noqa: E731
    for method, (family, most) in OVER_LORA.items():
        taken = middle(rows.get(method, {}), "over_own_lora")
        others = {label.split(", ")[1]: middle(row, "over_own_lora") for label, row in again.items()
                  if label.startswith(f"{method}, ")}  # fmt: skip
        better = min((path for path in others if taken and (others[path] or taken) < taken), key=others.get, default="")
        detail = f"{others[better]:.3f} by {better}" if better else ""
        yield Bar(f"{family}, step over our LoRA r=8", title, most, taken, detail)
    of_c3a = {OVER_LORA[name][0]: middle(rows.get(name, {}), "over_peft_c3a") for name in OVER_LORA}
    yield _largest("step over PEFT's C3A", title, OVER_C3A, of_c3a)
    yield of_memory(title, rows, peaks)
    fft = again.get("toeplitz, branch")
    if fft and "toeplitz" in again:
        yield Bar("Toeplitz, step over that by FFTs", title, OVER_FFT, _median_ratio(again["toeplitz"], fft))


def _median_ratio(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    return one["median_seconds"] / other["median_seconds"]


def of_memory(title: str, rows: Mapping[str, Any], peaks: Mapping[str, int]) -> Bar:
    """The largest memory of a family over LoRA's: as the device measured it or, if it did not, as XLA says."""
    measured = {LORA, *OVER_LORA} <= {*peaks}
    sizes = peaks if measured else {name: row["program_bytes"] for name, row in rows.items() if "program_bytes" in row}
    over = {OVER_LORA[name][0]: sizes[name] / sizes[LORA] if {name, LORA} <= {*sizes} else None for name in OVER_LORA}
    bar = _largest("memory over our LoRA r=8", title, OVER_MEMORY, over)
    return bar._replace(detail=f"{bar.detail}, {'measured' if measured else 'by XLA'}" if bar.detail else "")


def _largest(name: str, title: str, most: float, of_family: Mapping[str, float | None]) -> Bar:
    """The bar for the largest figure, which is not met as long as one family's is not known."""
    known = {family: value for family, value in of_family.items() if value is not None}
    if not known:
        return Bar(f"every family, {name}", title, most, None)
    worst = max(known, key=known.__getitem__)
    missing = [family for family in of_family if family not in known]
    detail = worst + (f"; without {', '.join(missing)}" if missing else "")
    return Bar(f"every family, {name}", title, most, known[worst], detail, complete=not missing)


def of_paths(points: Iterable[Mapping[str, Any]]) -> Iterable[Bar]:
    """The bar for the choice of paths: the share of points where the chosen one is near the best."""
    points = [*points]
    near = [point["seconds"][point["chosen"]] <= NEAR * min(point["seconds"].values()) for point in points]
    share = sum(near) / len(near) if near else None
    name = f"share of products whose chosen path is within {NEAR - 1:.0%} of the best"
    yield Bar(name, LAYERS, AS_GOOD, share, f"{len(near)} points" if near else "", least=True)


def table(folder: pathlib.Path) -> str:
    """The bars as Markdown, a column for each model and one for single layers."""
    every = of(folder)
    columns = [*MODELS.values(), LAYERS]
    rows = []
    for name, asked in dict.fromkeys((bar.name, shown_bound(bar)) for bar in every):
        of_model = {bar.model: shown(bar) for bar in every if bar.name == name}
        rows.append((name, asked, *(of_model.get(column, "") for column in columns)))
    return tables.markdown(("bar", "asked", *columns), rows)


def shown_bound(bar: Bar) -> str:
    """What is asked, as the table says it."""
    return f"at {'least' if bar.least else 'most'} {bar.asked:.2f}"


def shown(bar: Bar) -> str:
    """The figure, as the table says it."""
    if bar.found is None:
        return UNKNOWN
    met = {None: [], True: ["met"], False: ["missed"]}[bar.met]
    return ", ".join([f"{bar.found:.3f}", *met]) + (f" ({bar.detail})" if bar.detail else "")
