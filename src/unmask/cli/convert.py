"""`unmask convert FILE.pt`: the only door for old pickles, by weights-only loading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unmask.cli.inputs import need_file
from unmask.cli.parsing import Parser
from unmask.core.errors import InputError

EXAMPLES = """\
  unmask convert model.pt --out ./checkpoint                     config.json lies beside model.pt
  unmask convert old.bin --config config.json --dtype bf16 --out ./checkpoint"""


def main(argv: Sequence[str]) -> int:
    """Writes the checkpoint and prints where it is."""
    parser = Parser(
        "unmask convert",
        "Turn a pickled state dict (.pt, .pth, .bin) into a safetensors checkpoint. No code of the file is executed.",
        EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", help="a file written by torch.save")
    parser.option(
        parser, "--out", "-o", metavar="DIR", help="new folder for the checkpoint (default: FILE without its suffix)"
    )
    parser.option(parser, "--config", metavar="FILE", help="the published config.json (default: the one beside FILE)")
    parser.option(
        parser,
        "--dtype",
        default="keep",
        choices=("keep", "bf16", "fp16", "fp32"),
        help="stored numbers (default: keep)",
    )
    args = parser.parse(argv)
    need_file(args.file, "", "a file written by torch.save")
    if args.out == "":
        raise InputError("--out", expected="a folder for the checkpoint", got="nothing")
    out = args.out or str(Path(args.file).with_suffix(""))
    if out == args.file:
        raise InputError("convert", expected="--out DIR", got="a file without a suffix")

    if Path(out).is_dir() and any(Path(out).iterdir()):
        remedy = "Name another folder, or empty this one first."
        raise InputError(f"--out {out}", expected="a new or empty folder", got="one with files", remedy=remedy)

    import torch

    from unmask.models.convert import convert_pickle

    kinds = {"keep": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    print(convert_pickle(args.file, out, args.config, kinds[args.dtype]))
    return 0
