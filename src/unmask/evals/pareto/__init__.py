"""Quality beside speed: strategies of one model on one task, the frontier, and a choice that is tested.

Enters: a model, a task, strategies. Leaves: points with intervals, a verdict by the power rule, plots and a profile.
`measure` runs and reads; the other files are its parts: strategies, stats, result, page, picture.
"""

from unmask.evals.pareto.result import AXES, Measured, Pareto, Point, Verdict, analyse
from unmask.evals.pareto.run import Done, Started, measure
from unmask.evals.pareto.strategies import Candidate, baseline, combine, grid, read_file, with_baseline

__all__ = [
    "AXES", "Candidate", "Done", "Measured", "Pareto", "Point", "Started", "Verdict", "analyse", "baseline", "combine",
    "grid", "measure", "read_file", "with_baseline",
]  # fmt: skip
