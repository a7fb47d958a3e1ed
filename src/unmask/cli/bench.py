"""`unmask bench decode`: measures decoding. The measuring itself lives in `unmask.lab.bench`."""

from __future__ import annotations

from collections.abc import Sequence

from unmask.cli.nested import choose
from unmask.cli.parsing import Parser

EXAMPLES = """\
  unmask bench decode --shape llada-mid --gen-length 128 --tokens-per-step 4 --cache none,prefix,dual
  unmask bench decode --shape v2-mid --cache block,sub_block --tokens-per-step 1,4 --baseline ar,fast-dllm-v2
  unmask bench decode --model ./my-checkpoint --json"""


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark that is named."""
    return choose("unmask bench", argv, {"decode": ("decoding strategies side by side", decode)})


def decode(argv: Sequence[str]) -> int:
    """`unmask bench decode`."""
    from unmask.lab import bench

    parser = Parser(
        "unmask bench decode",
        "Decoding strategies side by side, interleaved, with the share of the matmul floor.",
        EXAMPLES,
    )
    bench.add_arguments(parser)
    code = bench.run(parser.parse(argv))
    return int(code or 0)
