"""Infilling: a span taken out of a text, written again with both sides known.

Enters: records {"prefix", "middle", "suffix"}, or any text file, of which every long enough paragraph loses one span.
Leaves: a question with the text before the span and, as `suffix`, the text after it; two scores: `exact`, and `edges`,
the share of the span that is right from its two ends inwards.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

from unmask.core.errors import ConfigError
from unmask.core.spec import component, option
from unmask.evals.task import Data, Item, Question, Verdict
from unmask.evals.tasks.data import Benchmark, Record, decoded, unpacked
from unmask.evals.tasks.layout import Written

_TEXT = (".txt", ".md")


def _parse(record: Record) -> dict[str, Any]:
    parts = {name: record.value(name) for name in ("prefix", "middle", "suffix")}
    if not all(isinstance(part, str) for part in parts.values()) or not parts["middle"].strip():
        raise record.refuse("three texts, the middle one not empty", repr(parts))
    return parts


DATA = Benchmark("infilling", 'records {"prefix", "middle", "suffix": text}, or a text file', _parse)


@component("infilling")
class Infilling(Written):
    """Infilling of spans at their true length in tokens; `words` and `context` are for text files."""

    metric: ClassVar[str] = "exact"
    max_tokens: ClassVar[int] = 64
    default_shots: ClassVar[int] = 0
    words: int = option(8, low=1, high=256, help="words of the span that a paragraph loses")
    context: int = option(8, low=1, help="words that must stand on each side of it")

    def load(self, data: str | None, split: str) -> Data:
        if data is None:
            raise ConfigError("infilling has no data of its own", expected=f"--data, {DATA.fields}")
        path = Path(data).expanduser()
        if not {s for s in path.suffixes if s in _TEXT}:
            return DATA.load(data, split)
        try:
            raw = path.read_bytes()
        except OSError as e:
            raise ConfigError(f"cannot read {path}", got=e.strerror or str(e), remedy="Check --data.") from None
        items = self._spans(decoded(path, unpacked(path, raw)))
        if not items:
            expected = f"paragraphs of at least {self.words + 2 * self.context} words"
            raise ConfigError(f"{path} has nothing to take a span out of", expected=expected)
        return Data(items, path.name, hashlib.sha256(raw).hexdigest())

    def question(self, item: Item, shots: Sequence[Item]) -> Question:
        fields = item.fields
        return Question(str(fields["prefix"]), suffix=str(fields["suffix"]), span=str(fields["middle"]))

    def judge(self, item: Item, answer: str) -> Verdict:
        wanted = str(item.fields["middle"]).strip()
        found = answer.removesuffix(str(item.fields["suffix"])).strip()
        return Verdict({"exact": float(found == wanted), "edges": edges(found, wanted)}, extracted=found or None)

    def _spans(self, text: str) -> tuple[Item, ...]:
        """One span of each different paragraph that is long enough; its place is decided by the paragraph itself."""
        paragraphs = dict.fromkeys(p.strip() for p in re.split(r"\n\s*\n", text))
        found: list[Item] = []
        for paragraph in paragraphs:
            words = list(re.finditer(r"\S+", paragraph))
            room = len(words) - self.words - 2 * self.context
            if room < 0:
                continue
            first = self.context + random.Random(paragraph).randint(0, room)
            # the space belongs to the span: tokenizers join it to the word behind it
            start, end = words[first - 1].end(), words[first + self.words - 1].end()
            fields = {"prefix": paragraph[:start], "middle": paragraph[start:end], "suffix": paragraph[end:]}
            found.append(Item(f"infilling/{len(found)}", fields))
        return tuple(found)


def edges(found: str, wanted: str) -> float:
    """Characters right from the left plus characters right from the right of what is left, of the longer text."""
    if not wanted or not found:
        return float(found == wanted)
    left = _agreeing(found, wanted)
    right = _agreeing(found[left:][::-1], wanted[left:][::-1])
    return (left + right) / max(len(found), len(wanted))


def _agreeing(a: str, b: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))
