"""What a person sees of runs: one in a picture and a few lines, many as a page. Imports no jax.

    python -m surm.report runs/sweep --out report     report/index.html, report.md and report.tex

`lines` and `curves` show a run when it ends. Of many, `collect` reads what they left, `compare` puts together what
differs in nothing but the seed, `tables` and `plots` draw that, `page` makes one file of it.
"""

from surm.report.curves import draw_curves
from surm.report.lines import of_population, place, summary, sweep_table

__all__ = ["draw_curves", "of_population", "place", "summary", "sweep_table"]
