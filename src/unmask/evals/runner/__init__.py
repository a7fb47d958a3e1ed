"""Runs a benchmark on a model: what is asked, decoded, judged, written down, and counted.

Enters: a model, a `Setup`, a directory. Leaves: one record per answer, and results that a second run repeats to the
byte. `evaluate` is the whole of it; the other files are its parts: plan (what is asked), answers (decoding and
judging), folder (what survives a kill), audit, results, environment, samples, show.
"""

from unmask.evals.runner.plan import Setup
from unmask.evals.runner.run import Begun, Decoded, Finished, evaluate

__all__ = ["Begun", "Decoded", "Finished", "Setup", "evaluate"]
