"""Log-likelihood of an answer given a prompt, for every family of models in one call.

Enters: a model (or a denoiser) and ids. Leaves: a `Likelihood`: the value in nats, its standard error, and what kind of
value it is. `log_likelihood` scores one pair, `log_likelihoods` many, in shared forwards; `Scoring` lists the options.
"""

from unmask.evals.likelihood.canvas import Canvas, Pair, lay_out
from unmask.evals.likelihood.dense import DenseDenoiser
from unmask.evals.likelihood.draws import noisy_rows, strata
from unmask.evals.likelihood.forwards import Speaker, round_value
from unmask.evals.likelihood.options import METHODS, Scoring
from unmask.evals.likelihood.result import Likelihood, student_t
from unmask.evals.likelihood.score import log_likelihood, log_likelihoods

__all__ = [
    "METHODS",
    "Canvas",
    "DenseDenoiser",
    "Likelihood",
    "Pair",
    "Scoring",
    "Speaker",
    "lay_out",
    "log_likelihood",
    "log_likelihoods",
    "noisy_rows",
    "round_value",
    "strata",
    "student_t",
]
