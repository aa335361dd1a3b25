"""One HTML file with all tables and figures; it needs no network, and a click on a heading sorts a table."""

import base64
import html
from collections.abc import Sequence

from surm.report import plots, tables
from surm.report.collect import Found
from surm.report.compare import Table
from surm.version import __version__

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1200px; padding: 1rem; color: #1b1f24; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #d8dee4; text-align: right; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid #0969da; }
th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending] button::after { content: " ▼"; }
tr.best td { font-weight: 600; }
img { width: 100%; min-width: 640px; max-width: 900px; height: auto; display: block; margin: 1rem 0; }
.note { color: #57606a; font-size: .9rem; }
@media (max-width: 600px) { body { padding: .6rem; } th, td { padding: .25rem .45rem; font-size: .85rem; }
  td:first-child, th:first-child { max-width: 9.5rem; white-space: normal; } }
"""
SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  table.querySelectorAll("th").forEach((th, column) => th.firstChild.addEventListener("click", () => {
    const up = th.getAttribute("aria-sort") !== "ascending", body = table.tBodies[0];
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[column].textContent.trim();
    const number = text => parseFloat(text.replace(/[,<]/g, ""));
    [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)], [m, n] = [number(x), number(y)];
      const order = isNaN(m) || isNaN(n) ? (isNaN(m) - isNaN(n)) || x.localeCompare(y) : m - n;
      return up ? order : -order;
    }).forEach(row => body.append(row));
  }));
}
"""


def page(found: Found, compared: Sequence[Table], title: str = "surm: results") -> str:
    """Makes the page.

    Args:
      found: the collected results.
      compared: the tables of these results.
      title: the title of the page.

    Returns:
      Self-contained HTML, with styles, script and figures inside.
    """
    parts = [f"<h1>{_text(title)}</h1>", f"<p class=note>{len(found.results)} results. {_text(tables.KEY)}</p>"]
    parts += [_section(table) for table in compared]
    parts += [_skipped(found), _versions(found)]
    return (
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        '<meta name=viewport content="width=device-width, initial-scale=1">\n<link rel=icon href="data:,">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _section(table: Table) -> str:
    """The table and the figures of a task."""
    parts = [f"<h2>{_text(table.task)}</h2>", f"<div class=wide>{_table(table)}</div>"]
    parts.append(_image(plots.pareto(table), f"{table.task}: metric against trained parameters"))
    if drawn := plots.curves(table):
        parts.append(_image(drawn, f"{table.task}: metric against step"))
    return "\n".join(parts)


def _table(table: Table) -> str:
    heads = "".join(f"<th scope=col><button>{_text(name)}</button></th>" for name in tables.headings(table))
    rows = [
        f"<tr{' class=best' if place == 0 else ''}>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>"
        for place, row in enumerate(tables.cells(table))
    ]
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _image(svg: str, words: str) -> str:
    data = base64.b64encode(svg.encode()).decode()
    return f'<div class=wide><img src="data:image/svg+xml;base64,{data}" alt="{_text(words)}"></div>'


def _skipped(found: Found) -> str:
    if not found.skipped:
        return ""
    items = "".join(f"<li>{_text(str(file))}: {_text(why)}</li>" for file, why in found.skipped.items())
    return f"<h2>Skipped</h2>\n<ul class=note>{items}</ul>"


def _versions(found: Found) -> str:
    """The versions that the results were measured with, each set once."""
    sets = dict.fromkeys(
        ", ".join(
            f"{name} {value}" for name, value in result.data.get("versions", {}).items() if isinstance(value, str)
        )
        for result in found.results
    )
    items = "".join(f"<li>{_text(one)}</li>" for one in sets if one)
    return f"<h2>Measured with</h2>\n<ul class=note>{items}</ul>\n<p class=note>Page made by surm {__version__}.</p>"


def _text(text: str) -> str:
    return html.escape(text, quote=True)
