"""`unmask tokenizer train`: byte-level BPE with the special tokens of a diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unmask.cli.inputs import need_file
from unmask.cli.nested import choose
from unmask.cli.parsing import Parser, integer
from unmask.core.errors import InputError

EXAMPLES = "  unmask tokenizer train corpus.txt more.txt --vocab-size 4096 --out ./tokenizer"


def main(argv: Sequence[str]) -> int:
    """Runs the action that is named."""
    return choose("unmask tokenizer", argv, {"train": ("train a tokenizer on text files", train)})


def train(argv: Sequence[str]) -> int:
    """`unmask tokenizer train`."""
    parser = Parser(
        "unmask tokenizer train", "Train a tokenizer on text files (UTF-8); any text can be encoded with it.", EXAMPLES
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="text files")
    parser.option(
        parser, "--vocab-size", type=integer(261), default=4096, metavar="N", help="entries in all (default: 4096)"
    )
    parser.option(
        parser,
        "--max-length",
        type=integer(1),
        default=4096,
        metavar="N",
        help="context length written into its config (default: 4096)",
    )
    parser.option(parser, "--out", "-o", metavar="DIR", help="folder for the tokenizer's files (needed)")
    args = parser.parse(argv)
    if not args.out:
        raise InputError("--out", expected="a folder for the tokenizer", got="nothing")
    for name in args.files:
        need_file(name, "", "a text file")
    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise InputError(f"--out {args.out}", expected="a folder", got="a file")
    if (Path(args.out) / "tokenizer.json").exists():
        remedy = "Name another folder, or remove that file first."
        raise InputError(f"--out {args.out}", expected="a folder without a tokenizer", got="one in it", remedy=remedy)

    from unmask.train.tokenizer import train_tokenizer

    found = train_tokenizer([Path(f) for f in args.files], args.vocab_size, args.out, args.max_length)
    print(f"{args.out}: {found.get_vocab_size()} tokens")
    return 0
