"""`unmask ls`: what exists. The short list imports nothing; one kind in full (`unmask ls models`) looks inside."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from unmask.cli.output import columns, print_json
from unmask.cli.parsing import Parser
from unmask.core import catalog
from unmask.core.errors import InputError
from unmask.core.spec import range_words

KINDS = {plural: kind for kind, plural in catalog.KINDS.items()}
EXAMPLES = """\
  unmask ls                one line for everything
  unmask ls models         those inside this package, then the families: recommended settings, known problems
  unmask ls policies       with the arguments of each: --policy "threshold(threshold=0.8)"
  unmask ls caches --experimental   also those without a measured win yet, marked
  unmask ls ops            which kernel would run here, and why
  unmask ls protocols      published evaluations: unmask eval --protocol NAME
  unmask ls sandbox        what protects this machine when a model's code is run, tried out"""


def main(argv: Sequence[str]) -> int:
    """Prints the list."""
    parser = Parser("unmask ls", "Models, policies, caches, schedules, profiles and benchmarks by name.", EXAMPLES)
    parser.add_argument(
        "kind", nargs="?", choices=(*KINDS, *TRIED), metavar="KIND", help=f"one of: {', '.join((*KINDS, *TRIED))}"
    )
    parser.add_argument("--experimental", action="store_true", help="also what has no measured win yet, marked")
    parser.add_argument("--json", action="store_true", help="one JSON value on stdout")
    args = parser.parse(argv)
    if args.kind in TRIED and args.experimental:
        raise InputError("--experimental", expected=f"one of: {', '.join(KINDS)}", got=args.kind, remedy="leave it out")
    if args.kind in TRIED:
        return TRIED[args.kind](args.json)
    if args.kind is None:
        return _short(args.json, args.experimental)
    rows = [_details(KINDS[args.kind], e) for e in _shown(KINDS[args.kind], args.experimental)]
    if args.kind == "models":
        rows = [*_embedded(), *rows]
    if args.json:
        print_json(rows)
    else:
        for row in rows:
            _print(row)
    return 0


def _shown(kind: str, experimental: bool) -> list[catalog.Entry]:
    """The lines of a kind; experimental ones only if asked for."""
    return [e for e in catalog.entries(kind).values() if experimental or not e.experimental]


def _short(as_json: bool, experimental: bool) -> int:
    table = {plural: {e.name: _meaning(e) for e in _shown(kind, experimental)} for plural, kind in KINDS.items()}
    if as_json:
        print_json(table)
        return 0
    for plural, lines in table.items():
        print(f"{plural}:\n{columns(list(lines.items()))}")
    print("\nmore: unmask ls models | policies | caches | schedules | tasks | noises | protocols | ops | sandbox")
    return 0


def _meaning(entry: catalog.Entry) -> str:
    return f"{entry.meaning} (experimental)" if entry.experimental else entry.meaning


def _embedded() -> list[dict[str, Any]]:
    from unmask.models.embedded import EMBEDDED

    return [{"name": name, "meaning": meaning, "inside this package": True} for name, meaning in EMBEDDED.items()]


def _details(kind: str, entry: catalog.Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"name": entry.name, "meaning": _meaning(entry)}
    if kind == "model":
        return {**row, **_family(catalog.load(kind, entry.name))}
    if kind == "profile":
        return row
    component = catalog.load(kind, entry.name)
    fields = dataclasses.fields(component) if dataclasses.is_dataclass(component) else ()
    row["arguments"] = [_argument(f) for f in fields if f.init]
    if kind == "cache":
        row["published as"] = _switches(entry.name)
    return row


def _switches(cache: str) -> dict[str, str]:
    """Switches of published scripts that mean this cache -> on which families."""
    from unmask.engine.profiles import SWITCHES

    found: dict[str, str] = {}
    for kind, meanings in SWITCHES.items():
        families = ", ".join(n for n in catalog.entries("model") if catalog.load("model", n).kind == kind)
        for switches, meaning in meanings.items():
            if meaning == cache:
                words = " ".join(f"--{s}" for s in switches)
                words += " (Fast-dLLM v2: --use_block_cache)" if switches == ("dual_cache",) else ""
                found[words] = ", ".join(f for f in (found.get(words), families) if f)
    return found


def _argument(f: dataclasses.Field[Any]) -> dict[str, Any]:
    default = "required" if f.default is dataclasses.MISSING else f.default
    return {"name": f.name, "default": default, "range": range_words(f), "help": f.metadata.get("help", "")}


def _family(family: Any) -> dict[str, Any]:
    """What a family recommends, Base and Instruct, from its own class defaults; two lines where the length matters."""
    settings: dict[str, str] = {}
    for name, chat in (("base", False), ("instruct", True)):
        short, long = _advice(family, chat, 128), _advice(family, chat, 1024)
        if short == long:
            settings[name] = short
        else:
            settings |= {f"{name}, 128 tokens": short, f"{name}, 1024 tokens": long}
    issues = list(dict.fromkeys([*family.known_issues, *_issues(family)]))
    return {
        "format": family.architecture,
        "recommended": {k: v for k, v in settings.items() if v},
        "known issues": issues,
    }


def _advice(family: Any, chat: bool, tokens: int) -> str:
    """Recommended settings as specs, with N for the answer's length."""
    from unmask.core.errors import CheckpointError

    try:
        r = family.recommended({}, chat, tokens)
    except CheckpointError:  # a family of a package outside may need a whole config for its advice
        return ""
    extra = "".join(f" {k}={v}" for k, v in r.sampling.items())
    text = f"schedule={r.schedule} policy={r.policy} cache={r.cache}{extra}"
    return f"{text.replace(str(tokens), 'N')}. {r.note}".rstrip()


def _issues(family: Any) -> tuple[str, ...]:
    from unmask.core.errors import CheckpointError

    try:
        return tuple(family.recommended({}, True, 128).known_issues)
    except CheckpointError:
        return ()


def _print(row: dict[str, Any]) -> None:
    print(f"{row['name']}: {row['meaning']}{' (inside this package)' if 'inside this package' in row else ''}")
    for a in row.get("arguments", ()):
        bounds = f" ({a['range']})" if a["range"] else ""
        print(f"    {a['name']} = {a['default']}{bounds}{'  ' + a['help'] if a['help'] else ''}")
    for switches, families in row.get("published as", {}).items():
        print(f"    published as {switches} on {families}")
    for name, text in row.get("recommended", {}).items():
        print(f"    {name}: {text}")
    for issue in row.get("known issues", ()):
        print(f"    known: {issue}")


def _ops(as_json: bool) -> int:
    """Every op's kernels: `describe()` of its folder where it has several, else the plain torch reference."""
    import importlib
    import pkgutil

    import unmask.ops

    rows = []
    for found in pkgutil.iter_modules(unmask.ops.__path__):
        if found.ispkg:
            module = importlib.import_module(f"unmask.ops.{found.name}")
            meaning = (module.__doc__ or "").strip().splitlines()[0]
            why = module.describe() if "describe" in vars(module) else "plain torch (the reference)"
            rows.append({"name": found.name, "kernel": str(why), "meaning": meaning})
    if as_json:
        print_json(rows)
    else:
        print(columns([(r["name"], r["kernel"].splitlines()[0], r["meaning"]) for r in rows], ""))
        for line in (f"{r['name']}: {more}" for r in rows for more in r["kernel"].splitlines()[1:]):
            print(line)
    return 0


def _sandbox(as_json: bool) -> int:
    """Every protection of the code sandbox: available, or why not."""
    from unmask.evals.sandbox import PROTECTIONS, protections

    found = protections()
    if as_json:
        print_json(found)
    else:
        print(columns([(name, found[name], meaning) for name, meaning in PROTECTIONS.items()], ""))
    return 0


def _protocols(as_json: bool) -> int:
    """Published evaluations by name, with the figures that were printed for them."""
    from unmask.evals.protocols import protocols

    if as_json:
        print_json([dataclasses.asdict(p) for p in protocols().values()])
    else:
        print(columns([(p.name, _figures(p.published), p.meaning) for p in protocols().values()], ""))
    return 0


def _figures(found: Any) -> str:
    """Published accuracy and tokens per second; "-" where none was printed."""
    accuracy = None if found is None else found.accuracy
    speed = None if found is None else found.tokens_per_s
    return f"{'-' if accuracy is None else f'{accuracy:g} %'} {'' if speed is None else f'{speed:g} tokens/s'}".strip()


TRIED = {"ops": _ops, "sandbox": _sandbox, "protocols": _protocols}
"""Lists that look at this machine, or beyond the catalog."""
