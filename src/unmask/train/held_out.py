"""Records for an adaptation: each checked before anything is trained, some set apart for the comparison.

Enters: files of conversations (`messages`) or pairs (`prompt`, `answer`), and perhaps a held-out file. Leaves:
train.jsonl and held_out.jsonl; no record of the second is in the first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unmask.core.errors import ConfigError
from unmask.sinks.files import WholeFile
from unmask.train.records import Files, Record, messages_field, text_field

EVERY = 50
MOST = 500
Kind = Literal["chat", "pairs"]


@dataclass(frozen=True)
class Apart:
    """kind: of all records. held: how many are set apart. repeated: further records equal to one of them, in neither
    file.
    """

    train: Path
    held_out: Path
    kind: Kind
    held: int
    repeated: int


def set_apart(files: Sequence[str | Path], held_out: str | Path | None, out: Path) -> Apart:
    """Writes both files into `out`.

    Args:
        held_out: its records are held out; None takes every 50th of `files` (at most 500).

    Raises:
        ConfigError: a record that is neither a conversation nor a pair, or not of the first one's kind, by file and
            number; or nothing left to train on.
    """
    kind = _first_kind(files)
    if held_out is None:
        chosen = [r for i, r in enumerate(_checked(files, kind)) if i % EVERY == 0 and i < EVERY * MOST]
    else:
        chosen = list(_checked([held_out], kind))
    known = set(chosen)
    out.mkdir(parents=True, exist_ok=True)
    total = kept = 0
    with WholeFile(out / "train.jsonl") as train:
        for record in _checked(files, kind):
            total += 1
            if record not in known:
                train.write(record + "\n")
                kept += 1
        if not kept:
            got = f"{total}, all of them held out"
            raise ConfigError("--data", expected="at least two different records", got=got)
    with WholeFile(out / "held_out.jsonl") as held:
        held.write("".join(record + "\n" for record in chosen))
    repeated = total - kept - (len(chosen) if held_out is None else 0)
    return Apart(out / "train.jsonl", out / "held_out.jsonl", kind, len(chosen), repeated)


def found_apart(out: Path) -> Apart:
    """What `set_apart` left in `out`."""
    train, held = out / "train.jsonl", out / "held_out.jsonl"
    return Apart(train, held, _first_kind([held]), sum(1 for _ in _records([held])), 0)


def _records(files: Sequence[str | Path]) -> Iterator[tuple[str, Record]]:
    """Every record with the words that find it again."""
    source = Files(tuple(str(f) for f in files)).open()
    for shard, file in enumerate(files):
        for number, record in enumerate(source.read(shard, 0), 1):
            yield f"{file} record {number}", record


def _first_kind(files: Sequence[str | Path]) -> Kind:
    where, record = next(_records(files))
    try:
        return _kind_of(record)
    except ConfigError as e:
        raise _at(where, e) from None


def _checked(files: Sequence[str | Path], kind: Kind) -> Iterator[str]:
    """Every record as one line, without fields that nothing reads."""
    for where, record in _records(files):
        try:
            if _kind_of(record) != kind:
                raise ConfigError("its fields", expected=f"{kind}, as in the first record", got=_kind_of(record))
            line = _chat(record) if kind == "chat" else _pair(record)
        except ConfigError as e:
            raise _at(where, e) from None
        yield json.dumps(line)


def _at(where: str, error: ConfigError) -> ConfigError:
    return ConfigError(f"{where}: {error.what}", expected=error.expected, got=error.got, remedy=error.remedy)


def _kind_of(record: Record) -> Kind:
    if "messages" in record:
        return "chat"
    if {"prompt", "answer"} <= set(record):
        return "pairs"
    raise ConfigError("its fields", expected="messages, or prompt and answer", got=", ".join(record) or "none")


def _chat(record: Record) -> Record:
    messages = messages_field(record, "messages")
    roles = [m["role"] for m in messages]
    if "assistant" not in roles or roles[0] == "assistant":
        got = ", ".join(roles[:8])
        raise ConfigError("its messages", expected="an assistant's that answers another", got=got)
    return {"messages": [{"role": m["role"], "content": m["content"]} for m in messages]}


def _pair(record: Record) -> Record:
    return {name: text_field(record, name) for name in ("prompt", "answer")}
