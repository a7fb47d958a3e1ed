"""A recording as one HTML file that plays anywhere: from disk, without a network, without this package.

Enters: a recording. Leaves: the page's text, with the view (assets/web), the recording and the facts of its header
inside. Text of prompts and answers is data on the page: it enters the document through `textContent` or escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from unmask.core.events import Canvas, fold
from unmask.sinks.recorder import Lines, Recording, as_text, read_lines

SCRIPTS = ("recording.js", "canvas.js", "player.js")
"""The view, in the order in which it loads."""
STYLES = ("view.css",)

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def web_asset(name: str) -> str:
    """The text of one file of the view.

    Args:
        name: a file name of `assets/web`, such as "player.js".

    Raises:
        FileNotFoundError: there is no such file.
    """
    return files("unmask").joinpath("assets", "web", name).read_text(encoding="utf-8")


def page(recording: Recording | Iterable[str], *, title: str = "") -> str:
    """One self-contained page that replays a recording.

    Args:
        recording: a read recording, or its JSON lines.
        title: the page's title; "" names the model.

    Raises:
        RecordingError: the lines are not a whole recording of a version this package reads.
    """
    found = recording if isinstance(recording, Recording) else read_lines(recording)
    canvases = fold(found.events)
    return Template(web_asset("export.html")).substitute(
        title=_text(title or _name(found.header)),
        facts="".join(f"<span>{_text(fact)}</span>" for fact in _facts(found.header, bool(title))),
        css="\n".join(web_asset(name) for name in (*STYLES, "export.css")),
        js="\n".join(web_asset(name) for name in (*SCRIPTS, "export.js")),
        answers="\n".join(f"<p>{_text(_answer(found, i, c))}</p>" for i, c in canvases.items()),
        made=_made(found.header),
        lines="\n".join(_embedded(line) for line in _lines(found)),
    )


def _lines(recording: Recording) -> Iterable[str]:
    lines = Lines(recording.header, recording.pieces.__getitem__)
    yield as_text(lines.begin())
    for event in recording.events:
        yield from (as_text(line) for line in lines.of(event))
    yield from (as_text(line) for line in lines.finish(recording.answers))


def _embedded(line: str) -> str:
    """A JSON line that can neither end its script element nor break the file's encoding."""
    line = line.replace("<", "\\u003c")
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", line)


def _text(value: object) -> str:
    """Escaped, without signs that HTML does not have."""
    return escape(_CONTROL.sub("\ufffd", str(value)), quote=True)


def _name(header: Mapping[str, Any]) -> str:
    model = header.get("model")
    return f"A run of {model}" if model else "A recorded run"


def _answer(recording: Recording, request: str, canvas: Canvas) -> str:
    """The answer as it was printed; where a recording does not say, its pieces joined."""
    if request in recording.answers:
        return recording.answers[request].text
    ids = canvas.ids[canvas.prompt_len : canvas.end]
    return "".join("░" if i < 0 else recording.pieces[i] for i in ids)


def _facts(header: Mapping[str, Any], titled: bool) -> list[str]:
    """The line under the title: who wrote it, and when if the header says so."""
    versions = header.get("versions")
    ours = versions.get("unmask") if isinstance(versions, Mapping) else None
    facts = [
        header.get("model") if titled else None,
        header.get("family"),
        header.get("date"),
        f"unmask {ours}" if ours else None,
    ]
    return [str(fact) for fact in facts if fact]


def _made(header: Mapping[str, Any]) -> str:
    """Everything else the header says: plain values, versions, and the settings of every request."""
    plain = {k: v for k, v in header.items() if isinstance(v, str | int | float) and k not in ("format", "version")}
    versions = header.get("versions")
    if isinstance(versions, Mapping):
        plain["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    parts = [_list(plain)]
    settings, strategies = header.get("settings"), header.get("strategies")
    for names, table in _same(settings if isinstance(settings, Mapping) else {}):
        strategy = strategies.get(names[0]) if isinstance(strategies, Mapping) else None
        heading = "Settings" if len(settings or ()) == len(names) else f"Settings of {', '.join(map(str, names))}"
        parts.append(f"<h3>{_text(heading)}</h3>" + _list({**table, **({"strategy": strategy} if strategy else {})}))
    return "\n".join(parts)


def _same(settings: Mapping[str, Any]) -> list[tuple[list[str], Mapping[str, Any]]]:
    """Requests that share their settings, together."""
    groups: list[tuple[list[str], Mapping[str, Any]]] = []
    for name, table in settings.items():
        if not isinstance(table, Mapping):
            continue
        group = next((names for names, known in groups if known == table), None)
        if group is None:
            groups.append(([name], table))
        else:
            group.append(name)
    return groups


def _list(values: Mapping[str, Any]) -> str:
    pairs = "".join(f"<dt>{_text(str(k).replace('_', ' '))}</dt><dd>{_text(v)}</dd>" for k, v in values.items())
    return f"<dl>{pairs}</dl>"
