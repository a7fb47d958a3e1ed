"""`unmask eval synthetic`: scores a model. The scoring itself lives in `unmask.evals`."""

from __future__ import annotations

from collections.abc import Sequence

from unmask.cli.nested import choose
from unmask.cli.parsing import Parser

EXAMPLES = """\
  unmask eval synthetic                                 the embedded model, as on its card
  unmask eval synthetic --model ./my-checkpoint --json"""


def main(argv: Sequence[str]) -> int:
    """Runs the evaluation that is named."""
    return choose("unmask eval", argv, {"synthetic": ("the held-out tasks of the embedded model", synthetic)})


def synthetic(argv: Sequence[str]) -> int:
    """`unmask eval synthetic`."""
    from unmask.evals import synthetic_eval

    parser = Parser("unmask eval synthetic", "Exact match on held-out items of every synthetic task, with intervals.", EXAMPLES)
    synthetic_eval.add_arguments(parser)
    code = synthetic_eval.run(parser.parse(argv))
    return int(code or 0)
