"""`unmask data inspect RECIPE`: training samples as the loss sees them: masked, scored, kept and padding places."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from itertools import islice

from unmask.cli.inputs import need_file
from unmask.cli.nested import choose
from unmask.cli.output import print_json
from unmask.cli.parsing import Parser, integer

EXAMPLES = """\
  unmask data inspect recipes/nano_llada.yaml
  unmask data inspect recipes/nano_llada.yaml --rows 3 --batch 200 --tokenizer runs/nano-llada/tokenizer"""
KINDS = {
    "kept": ("{}", "", "kept: the prompt, never masked"),
    "masked": ("[{}]", "bold black on yellow", "[masked]: hidden from the model, in the loss"),
    "open": ("{}", "blue", "scored, but not masked this time"),
    "tail": ("{}", "dim underline", "EOS padding of the answer"),
    "tail masked": ("[{}]", "bold black on cyan", "[masked] EOS padding"),
    "padding": (" ·{}", "dim", "·n: places of padding of the batch, seen by nobody"),
}
"""How a place is drawn: form, style, meaning. The form alone is enough without colours."""


def main(argv: Sequence[str]) -> int:
    """Runs the action that is named."""
    return choose("unmask data", argv, {"inspect": ("training samples as the loss sees them", inspect)})


def inspect(argv: Sequence[str]) -> int:
    """`unmask data inspect`."""
    parser = Parser(
        "unmask data inspect", "Real training samples of a recipe: what is masked, scored, kept and padding.", EXAMPLES
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that win over the recipe")
    parser.option(parser, "--rows", type=integer(1, 1000), default=5, metavar="N", help="samples to show (default: 5)")
    parser.option(
        parser, "--batch", type=integer(0, 1_000_000), default=0, metavar="N", help="batches to skip first (default: 0)"
    )
    parser.option(
        parser, "--tokenizer", metavar="DIR", help="a tokenizer's folder (default: the recipe's, else one is trained)"
    )
    parser.add_argument("--json", action="store_true", help="a list of samples, each a list of [text, kind]")
    args = parser.parse(argv)
    need_file(args.recipe, "recipe ", "a YAML file")
    from unmask.train.inspect import inspect_data
    from unmask.train.recipe import load_recipe
    from unmask.train.trainer import Trainer

    extra = [f"tokenizer.path={args.tokenizer}"] if args.tokenizer is not None else []
    recipe = load_recipe(args.recipe, [*args.overrides, *extra])
    with tempfile.TemporaryDirectory() as scratch:  # nothing of the run is kept
        samples = list(islice(inspect_data(Trainer(recipe, scratch), args.batch), args.rows))
    if args.json:
        print_json(samples)
    else:
        _draw(samples)
    return 0


def _draw(samples: Sequence[Sequence[tuple[str, str]]]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    for number, row in enumerate(samples, 1):
        text = Text(f"{number}: ", style="dim")
        for piece, kind in row:
            form, style, _ = KINDS[kind]
            if kind != "padding":
                text.append(form.format(piece.replace("\n", "↵")), style=style)
        if padding := sum(kind == "padding" for _, kind in row):
            text.append(KINDS["padding"][0].format(padding), style=KINDS["padding"][1])
        console.print(text)
    console.print()
    for _, style, meaning in KINDS.values():
        console.print(Text(meaning, style=style))
