"""`unmask convert FILE`: the only door for old pickles (by weights-only loading) and for GGUF files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.cli.inputs import need_file
from unmask.cli.parsing import Parser
from unmask.core.errors import InputError

if TYPE_CHECKING:
    import torch

EXAMPLES = """\
  unmask convert model.pt --out ./checkpoint                     config.json lies beside model.pt
  unmask convert old.bin --config config.json --dtype bf16 --out ./checkpoint
  unmask convert SmolLM2-135M-Instruct.Q4_1.gguf ./smollm2       weights, config, tokenizer and chat template"""


def main(argv: Sequence[str]) -> int:
    """Writes the checkpoint and prints where it is."""
    args = _parser().parse(argv)
    need_file(args.file, "", "a file written by torch.save, or a .gguf file")
    out = _target(args)
    if Path(out).is_dir() and any(Path(out).iterdir()):
        remedy = "Name another folder, or empty this one first."
        raise InputError(f"--out {out}", expected="a new or empty folder", got="one with files", remedy=remedy)
    with Path(args.file).open("rb") as file:
        gguf = file.read(4) == b"GGUF" or args.file.endswith(".gguf")
    for option, given in (("--config", gguf), ("--tokenizer", not gguf)):
        if given and getattr(args, option[2:]) is not None:
            raise InputError(option, expected=f"a {'pickle' if gguf else 'GGUF file'} with it", got=args.file)
    print(_gguf(args, out) if gguf else _pickle(args, out))
    return 0


def _parser() -> Parser:
    parser = Parser(
        "unmask convert",
        "Turn a pickled state dict (.pt, .pth, .bin) or a GGUF file (Llama- and Qwen2-shaped; extra `gguf`) into a\n"
        "safetensors checkpoint. No code of the file is executed.",
        EXAMPLES,
        usage="unmask convert FILE [DIR] [options]",
    )
    parser.add_argument("file", metavar="FILE", help="a file written by torch.save, or a .gguf file")
    parser.add_argument("folder", metavar="DIR", nargs="?", help="the same as --out")
    parser.option(
        parser, "--out", "-o", metavar="DIR", help="new folder for the checkpoint (default: FILE without its suffix)"
    )
    parser.option(
        parser, "--config", metavar="FILE", help="pickles: the published config.json (default: the one beside FILE)"
    )
    parser.option(
        parser, "--tokenizer", metavar="DIR", help="GGUF: take this folder's tokenizer instead of the one in the file"
    )
    parser.option(
        parser,
        "--dtype",
        default="keep",
        choices=("keep", "bf16", "fp16", "fp32"),
        help="stored numbers (default: keep; quantised ones become fp32, which changes none)",
    )
    return parser


def _target(args: argparse.Namespace) -> str:
    if args.out is not None and args.folder is not None:
        raise InputError("--out", expected="the folder once", got=f"{args.folder} and {args.out}")
    given = args.folder if args.out is None else args.out
    if given == "":
        raise InputError("--out", expected="a folder for the checkpoint", got="nothing")
    out = given or str(Path(args.file).with_suffix(""))
    if out == args.file:
        raise InputError("convert", expected="--out DIR", got="a file without a suffix")
    return str(out)


def _pickle(args: argparse.Namespace, out: str) -> Path:
    from unmask.models.convert import convert_pickle

    return convert_pickle(args.file, out, args.config, _dtype(args.dtype))


def _gguf(args: argparse.Namespace, out: str) -> Path:
    from unmask.pipeline.gguf import import_gguf

    return import_gguf(args.file, out, _dtype(args.dtype), args.tokenizer)


def _dtype(name: str) -> torch.dtype | None:
    import torch

    return {"keep": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
