"""Shows results: one run as curves and a few lines of text, many runs as a page. Does not import jax.

    python -m surm.report runs/sweep --out report     report/index.html, report.md and report.tex

`lines` and `curves` show a run when it ends. For many runs, `collect` reads their results, `compare` groups those that
differ only in the seed, `tables` and `plots` draw them, and `page` makes one file.
"""

from surm.report.curves import draw_curves
from surm.report.lines import aligned, of_population, place, summary, sweep_table

__all__ = ["aligned", "draw_curves", "of_population", "place", "summary", "sweep_table"]
