"""pass@1 for lm-eval's own YAML tasks: programs run in our sandbox, and nothing is fetched from the hub.

In a YAML task: `metric_list: [{metric: !function utils.pass_at_1, aggregation: mean, higher_is_better: true}]`, where
utils.py beside it holds `from unmask.evals.harness.code import pass_at_1`.
"""

from __future__ import annotations

from collections.abc import Sequence

from unmask.evals.sandbox import require, run_many


def pass_at_1(references: Sequence[str], predictions: Sequence[Sequence[str]], weak: bool = False) -> float:
    """Share of the programs that pass their tests: each prediction followed by its reference.

    Args:
        references: test programs. predictions: for each, the candidates, in full.
        weak: run them even where a protection is missing (docs/sandbox.md).

    Raises:
        ConfigError: a protection is missing and `weak` was not said.
    """
    require(weak)
    programs = [f"{code}\n{test}" for test, codes in zip(references, predictions) for code in codes]
    ends = [outcome.status == "passed" for outcome in run_many(programs, weak=weak)]
    return sum(ends) / len(ends) if ends else 0.0
