"""`unmask eval show DIR ...`: finished runs as a table, published figures beside them on request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.cli.output import one_line, print_json
from unmask.cli.parsing import Parser
from unmask.core.errors import InputError

if TYPE_CHECKING:
    from unmask.evals.protocols import Protocol

EXAMPLES = """\
  unmask eval show runs/gsm8k runs/gsm8k-dual        one row per finished run
  unmask eval show runs/* --compare                  published figures under the runs of a protocol"""
NONE = "-"


def main(argv: Sequence[str]) -> int:
    """Prints the table."""
    parser = Parser("unmask eval show", "Finished runs as a table. A run over a part of the items says so.", EXAMPLES)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="folder of a run (--out), or a results file")
    parser.add_argument("--compare", action="store_true", help="the published figures of each protocol under its run")
    parser.add_argument("--json", action="store_true", help="a JSON list on stdout")
    args = parser.parse(argv)
    found = [(path, _read(path)) for name in args.folders for path in _files(Path(name))]
    if args.json:
        print_json([{"file": str(path), **results, "timing": _timing(path)} for path, results in found])
        return 0
    print(_table([_row(path, results) for path, results in found]))
    for path, results in found:
        name = results["run"].get("protocol")
        if args.compare and name is not None:
            from unmask.evals.protocols import find

            print(f"\n{compared(results, find(name), path.parent)}")
    return 0


def _files(path: Path) -> list[Path]:
    """Results files of a folder, the full run first."""
    if path.is_file():
        return [path]
    found = sorted(path.glob("results*.json"), key=lambda p: (len(p.name), p.name))
    if not found:
        got = "a run that is not finished" if (path / "run.json").is_file() else "none"
        remedy = "Give its command again to go on with it." if got.startswith("a run") else ""
        raise InputError(f"{path}", expected="a folder with results.json", got=got, remedy=remedy)
    return found


def _read(path: Path) -> dict[str, Any]:
    from unmask.evals.runner.folder import read_json
    from unmask.evals.runner.results import is_results

    found = read_json(path)
    if not is_results(found):
        raise InputError(f"{path}", expected="the results of `unmask eval run`", got="another JSON file")
    return found


def _timing(results: Path) -> dict[str, Any] | None:
    """The timing file beside a results file."""
    from unmask.evals.runner.folder import read_json

    path = results.with_name(results.name.replace("results", "timing", 1))
    found = read_json(path) if path.is_file() else None
    shape = {"decoding": dict, "sessions": list}
    if found is not None and not all(isinstance(found.get(name), kind) for name, kind in shape.items()):
        raise InputError(f"{path}", expected="the times of `unmask eval run`", got="another JSON file")
    return found


def _row(path: Path, results: Mapping[str, Any]) -> tuple[str, ...]:
    run, cost, timing = results["run"], results["cost"], _timing(path)
    speed = None if timing is None else timing["decoding"]["tokens_per_second"]
    return (
        str(path.parent),
        run["protocol"] or run["task"],
        results["model"],
        _items(results),
        _score(results),
        f"{cost['nfe']:.1f}",
        f"{cost['tokens_per_forward']:.2f}" if "tokens_per_forward" in cost else NONE,
        f"{cost['row_layers']:.0f}" if "row_layers" in cost else NONE,
        NONE if not speed else f"{speed:.1f}",
    )


def _items(results: Mapping[str, Any]) -> str:
    return f"first {results['n']} of {results['items_in_data']}" if results["limited"] else str(results["n"])


def _score(results: Mapping[str, Any]) -> str:
    low, high = results["low"], results["high"]
    return f"{results['metric']} {results['score']:.1%} ({low:.1%} to {high:.1%})"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    head = (
        "run",
        "task",
        "model",
        "items",
        "score (95 %)",
        "forwards",
        "tokens per forward",
        "rows x layers",
        "tokens/s",
    )
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(one_line(cell) for cell in row) + " |" for row in lines)


def line_of(results: Mapping[str, Any]) -> str:
    """A run in a few lines: the score, its other scores, what it cost, and how far it drifted."""
    cost, part = results["cost"], " - A PART OF THE ITEMS" if results["limited"] else ""
    lines = [f"{results['run']['task']} on {results['model']}: {_score(results)}, {_items(results)} items{part}"]
    others = [f"{n} {s['score']:.1%}" for n, s in results["scores"].items() if n != results["metric"]]
    others += [
        f"pass@{k} {p['score']:.1%} ({p['low']:.1%} to {p['high']:.1%})"
        for k, p in results.get("pass_at", {}).items()
        if f"pass@{k}" != results["metric"]
    ]
    if others:
        lines.append("  other scores: " + ", ".join(others))
    if "programs" in results:
        lines.append("  programs: " + _programs(results["programs"]))
    costs = f"  per answer: {cost['nfe']:.1f} forwards, {cost['tokens']:.1f} tokens"
    if "tokens_per_forward" in cost:
        costs += f", {cost['tokens_per_forward']:.2f} tokens per forward, {cost['row_layers']:.0f} rows x layers"
    lines.append(costs)
    audit = results.get("audit")
    if audit is not None:
        lines.append(
            f"  against {audit['against']} on {audit['n']} items: {audit['token_agreement']:.1%} of the tokens agree; "
            f"{audit['texts_that_differ']['share']:.1%} of the texts differ, "
            f"{audit['answers_that_differ']['share']:.1%} of the answers"
        )
    return "\n".join(lines)


def _programs(ends: Mapping[str, int]) -> str:
    """How the programs ended; a time limit on a busy machine says little about a program."""
    late = "; time is the wall clock's: on a busy machine raise --timeout or lower --workers"
    return ", ".join(f"{count} {status}" for status, count in ends.items()) + (late if "timeout" in ends else "")


def compared(results: Mapping[str, Any], protocol: Protocol, folder: Path | None) -> str:
    """Published and own figures, each with what it is. Nothing of ours stands here that was not run."""
    score = results["scores"].get(protocol.score or results["metric"])
    name = "results.json" if not results["limited"] else f"results.limit-{results['n']}.json"
    timing = None if folder is None else _timing(folder / name)
    speed = None if timing is None else timing["decoding"]
    ours = (
        "ours" if not results["limited"] else f"ours, {_items(results)} items only",
        NONE
        if score is None
        else f"{100 * score['score']:.1f} ({100 * score['low']:.1f} to {100 * score['high']:.1f})",
        NONE if not speed else f"{speed['tokens_per_second']:.1f}",
        f"{results['model']}, {results['run']['dtype']}" + ("" if timing is None else f", {_processor(timing)}"),
    )
    figures = protocol.published
    theirs = (
        "published",
        NONE if figures is None or figures.accuracy is None else f"{figures.accuracy:g}",
        NONE if figures is None or figures.tokens_per_s is None else f"{figures.tokens_per_s:g}",
        f"{protocol.model}; " + ("no figure was published for it" if figures is None else figures.source),
    )
    head = (protocol.name, protocol.score or results["metric"], "tokens/s", "what")
    lines = ["| " + " | ".join(one_line(c) for c in row) + " |" for row in (head, ("---",) * 4, theirs, ours)]
    return "\n".join([*lines, *([f"note: {protocol.note}"] if protocol.note else [])])


def _processor(timing: Mapping[str, Any]) -> str:
    return str(timing["sessions"][0]["processor"]) if timing["sessions"] else "unknown machine"
