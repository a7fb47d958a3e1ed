"""`unmask plan MODEL`: bytes for weights, store and workspace, before anything is allocated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from unmask.cli.output import columns, human_bytes, print_json
from unmask.cli.parsing import Parser, integer

EXAMPLES = """\
  unmask plan GSAI-ML/LLaDA-8B-Instruct --length 4096
  unmask plan llada-8b --batch 8 --length 1024 --dtype bf16     a named shape, no files needed
  unmask plan ./my-checkpoint --json"""


def main(argv: Sequence[str]) -> int:
    """Prints the plan."""
    parser = Parser(
        "unmask plan", "How much memory a model will take, from its config and file headers alone.", EXAMPLES
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder, hub id, embedded model or named shape")
    parser.option(
        parser, "--batch", type=integer(1), default=1, metavar="N", help="sequences decoded at once (default: 1)"
    )
    parser.option(
        parser,
        "--length",
        type=integer(1),
        metavar="N",
        help="tokens of each, prompt and answer (default: 2048, or the model's context if that is shorter)",
    )
    parser.option(parser, "--dtype", default="auto", choices=("auto", "bf16", "fp16", "fp32"), help="default: auto")
    parser.option(parser, "--device", default="auto", metavar="D", help="auto, cuda, mps or cpu (default: auto)")
    parser.option(parser, "--revision", metavar="REV", help="branch, tag or commit of a hub id")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, sizes in bytes")
    args = parser.parse(argv)

    from unmask.models.plan import plan

    found = plan(args.model, args.batch, args.length, args.dtype, args.device, args.revision)
    sums = {"weights": found.weights, "store": found.store, "workspace": found.workspace, "total": found.total}
    if args.json:
        print_json({**dataclasses.asdict(found), **{f"{name}_bytes": count for name, count in sums.items()}})
        return 0
    print(
        f"{found.model}: {found.parameters / 1e6:,.1f} M parameters in {found.dtype}, "
        f"{found.batch} x {found.length} tokens"
    )
    print(columns([(part.name, f"{human_bytes(part.bytes):>10}", part.how) for part in found.parts]))
    print(columns([("total", f"{human_bytes(found.total):>10}", "")]).rstrip())
    return 0
