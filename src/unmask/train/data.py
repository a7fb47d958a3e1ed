"""Training data as endless, resumable batches.

Enters: a data section of a recipe and a tokenizer. Leaves: `Batch`es. Every stream can say where it stands in plain
JSON values and be put back there; that, not luck, makes a resumed run bit-equal.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from unmask.core.errors import ConfigError
from unmask.text.codec import Codec
from unmask.train.batch import Batch, Row, Span, collate
from unmask.train.chat import encode_conversation
from unmask.train.records import TEXT, Files, Hub, Shuffled, messages_field, text_field
from unmask.train.tokenizer import ASSISTANT, EOS, SYSTEM, USER

State = dict[str, Any]
NO_ROW_LIMIT = 1000  # records in a row that may be too long before the data counts as unusable


class Item(Protocol):
    """What a generator of problems yields: a prompt and its answer."""

    @property
    def prompt(self) -> str: ...
    @property
    def answer(self) -> str: ...


Generate = Callable[[random.Random, Mapping[str, float]], Iterator[Item]]


class Stream(Protocol):
    """Endless batches with a position that can be saved, and texts to train a tokenizer on (before `bind`).

    left_out: records passed over so far because they are too long.
    """

    left_out: int

    def bind(self, codec: Codec) -> None: ...
    def next(self) -> Batch: ...
    def texts(self) -> Iterator[str]: ...
    def state(self) -> State: ...
    def restore(self, state: State) -> None: ...


class _Bound:
    """The tokenizer arrives after the stream: it may have been trained on the stream's own texts."""

    _codec: Codec | None = None
    left_out = 0

    def bind(self, codec: Codec) -> None:
        self._codec = codec

    @property
    def codec(self) -> Codec:
        assert self._codec is not None, "bind a tokenizer first"
        return self._codec

    @property
    def eos(self) -> int:
        return special(self.codec, EOS)


# --- problems from a generator ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """From step `start` on, items are drawn by the weights of `mix`; None keeps the data's own share and tail.

    `cut_share` of the rows are masked from a cut to the end and nowhere else, as decoding from left to right leaves
    them.
    """

    start: int
    mix: Mapping[str, float]
    gen_share: float | None = None
    short_tail: int | None = None
    cut_share: float = 0.0


@dataclass(frozen=True)
class GeneratorData:
    """Problems from a generator function, framed as one turn of a chat: batch i depends on (seed, i) alone.

    Args:
        source: "package.module:function", called with (rng, mix).
        stages: the mixture over time, first `start` 0.
        batch_tokens: a batch is full once it holds so many tokens.
        gen_lengths, gen_share, short_tail: the answer is followed by EOS up to one of `gen_lengths` in `gen_share` of
            the rows, and by 0 to `short_tail` EOS in the others: so every generation length is in distribution. With
            gen_share 0 and short_tail 0 a row ends with its one EOS, as autoregressive and block models want it.
        whole_share: rows whose prompt may be masked too (infilling).
        cut_after: where a cut (see `Stage`) falls: behind one of these tokens, or anywhere in an answer without one.
        history_share, system_share: rows with one earlier turn, rows with a system prompt out of `systems`.
    """

    kind: ClassVar[str] = "generator"
    source: str
    stages: tuple[Stage, ...]
    batch_tokens: int = 3072
    gen_lengths: tuple[int, ...] = (16, 32, 48, 64, 96, 128)
    gen_share: float = 0.3
    short_tail: int = 7
    whole_share: float = 0.0
    history_share: float = 0.0
    system_share: float = 0.0
    cut_after: tuple[str, ...] = ()
    systems: tuple[str, ...] = ("You are a helpful assistant.",)

    def __post_init__(self) -> None:
        starts = [s.start for s in self.stages]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ConfigError("data.stages must begin at step 0 and rise", got=str(starts))
        for stage in self.stages:
            if not stage.mix or min(stage.mix.values()) < 0 or sum(stage.mix.values()) <= 0:
                raise ConfigError(f"data.stages: mix of start {stage.start} is unusable", expected="weights above 0")
        for name in ("gen_share", "whole_share", "history_share", "system_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"data.{name} is out of range", expected="0 to 1", got=str(getattr(self, name)))
        _positive(self, "batch_tokens")

    def stage_at(self, step: int) -> Stage:
        """The stage of a step, with every value filled in."""
        stage = [s for s in self.stages if s.start <= step][-1]
        share = self.gen_share if stage.gen_share is None else stage.gen_share
        tail = self.short_tail if stage.short_tail is None else stage.short_tail
        return replace(stage, gen_share=share, short_tail=tail)

    def open(self, seed: int, per_step: int = 1) -> Stream:
        """The stream; the generator is found and asked for one item now, so that a wrong name fails early."""
        stream = GeneratorStream(self, seed, per_step)
        for stage in self.stages:
            next(stream.source(random.Random(0), stage.mix))
        return stream


class GeneratorStream(_Bound):
    """`per_step` batches a step; batch i is drawn by Random("seed/i"), so the position is one number."""

    def __init__(self, cfg: GeneratorData, seed: int, per_step: int) -> None:
        self.cfg, self.seed, self.per_step, self.at = cfg, seed, per_step, 0
        self.source: Generate = load_function(cfg.source)

    def next(self) -> Batch:
        rng = random.Random(f"{self.seed}/{self.at}")
        stage = self.cfg.stage_at(self.at // self.per_step)
        self.at += 1
        items, rows, tokens = self.source(rng, stage.mix), [], 0
        while tokens < self.cfg.batch_tokens:
            rows.append(self._row(items, rng, stage))
            tokens += len(rows[-1].ids)
        return collate(rows, self.eos)

    def _row(self, items: Iterator[Item], rng: random.Random, stage: Stage) -> Row:
        cfg, codec, eos, prompt = self.cfg, self.codec, self.eos, []
        if rng.random() < cfg.system_share:
            prompt += [special(codec, SYSTEM), *codec.encode(rng.choice(cfg.systems))]
        if rng.random() < cfg.history_share:
            item = next(items)
            prompt += [*_turn(codec, item.prompt), *codec.encode(item.answer), eos]
        item = next(items)
        prompt += _turn(codec, item.prompt)
        answer = [*codec.encode(item.answer), eos]
        tail = self._tail(len(answer), rng, stage)
        whole = rng.random() < cfg.whole_share
        cut = self._cut(answer, rng) if stage.cut_share and rng.random() < stage.cut_share else None
        whole = whole and cut is None
        ids = (*prompt, *answer, *([eos] * tail))
        return Row(ids, len(prompt), tail, whole, None if cut is None else len(prompt) + cut)

    def _cut(self, answer: list[int], rng: random.Random) -> int:
        """A place in the answer: behind a token of `cut_after`, else anywhere."""
        ids = {i for token in self.cfg.cut_after for i in self.codec.encode(token)}
        places = [at + 1 for at, token in enumerate(answer[:-1]) if token in ids]
        return rng.choice(places or range(len(answer)))

    def _tail(self, length: int, rng: random.Random, stage: Stage) -> int:
        assert stage.gen_share is not None
        assert stage.short_tail is not None
        if rng.random() < stage.gen_share:
            return max(0, rng.choice(self.cfg.gen_lengths) - length)
        return rng.randint(0, stage.short_tail)

    def texts(self) -> Iterator[str]:
        for item in self.source(random.Random(f"{self.seed}/tokenizer"), self.cfg.stages[0].mix):
            yield item.prompt
            yield item.answer

    def state(self) -> State:
        return {"at": self.at}

    def restore(self, state: State) -> None:
        self.at = int(state["at"])


def _turn(codec: Codec, prompt: str) -> list[int]:
    """One user turn up to the place where the assistant answers, as the tokenizer's chat template writes it."""
    return [special(codec, USER), *codec.encode(prompt), special(codec, ASSISTANT)]


# --- plain text -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextData:
    """Documents for pretraining.

    Args:
        source: local files or a hub dataset. field: the text of a record.
        length: tokens of a row. rows: rows of a batch.
        packed: documents run on across rows, each ended by EOS, and every row is full; otherwise one document a row,
            cut at `length`.
        document_mask: the documents of a packed row do not see each other; otherwise each sees the earlier ones.
        window: records shuffled together.
    """

    kind: ClassVar[str] = "text"
    source: Files | Hub
    field: str = TEXT
    length: int = 512
    rows: int = 16
    packed: bool = True
    document_mask: bool = False
    window: int = 10_000

    def __post_init__(self) -> None:
        _positive(self, "length", "rows", "window")
        _needs_packing(self, self.document_mask, "document_mask")

    def open(self, seed: int, per_step: int = 1) -> Stream:
        return TextStream(self, Shuffled(self.source.open(), seed, self.window))


class TextStream(_Bound):
    """Rows of text; the position is that of the records plus the documents that wait for the next row."""

    def __init__(self, cfg: TextData, records: Shuffled) -> None:
        self.cfg, self.records = cfg, records
        self.waiting: list[list[int]] = []

    def next(self) -> Batch:
        batch = collate([self._row() for _ in range(self.cfg.rows)], self.eos)
        return batch.split_documents() if self.cfg.document_mask else batch

    def _row(self) -> Row:
        length = self.cfg.length
        if not self.cfg.packed:
            return Row(tuple(self._document()[:length]), 0)
        parts: list[list[int]] = []
        while room := length - sum(map(len, parts)):
            document = self.waiting.pop(0) if self.waiting else self._document()
            parts.append(document[:room])
            if document[room:]:
                self.waiting.insert(0, document[room:])
        return Row(tuple(i for part in parts for i in part), 0, documents=tuple(map(len, parts)))

    def _document(self) -> list[int]:
        return [*self.codec.encode(text_field(self.records.next(), self.cfg.field)), self.eos]

    def texts(self) -> Iterator[str]:
        return _texts(self.records, self.cfg.field)

    def state(self) -> State:
        return {"records": self.records.state(), "waiting": self.waiting}

    def restore(self, state: State) -> None:
        self.records.restore(state["records"])
        self.waiting = [list(d) for d in state["waiting"]]


# --- pairs of prompt and answer ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairData:
    """Prompts and answers for SFT, written by the tokenizer's chat template where it has one.

    Args:
        source: local files or a hub dataset. prompt, answer: the fields of a record.
        length: longest row in tokens; longer pairs are left out. rows: rows of a batch.
        pad_to_longest: EOS padding up to the longest row is part of the canvas (published); otherwise only one EOS is.
        window: records shuffled together.
    """

    kind: ClassVar[str] = "pairs"
    source: Files | Hub
    prompt: str = "prompt"
    answer: str = "answer"
    length: int = 512
    rows: int = 16
    pad_to_longest: bool = True
    window: int = 10_000

    def __post_init__(self) -> None:
        _positive(self, "length", "rows", "window")

    def open(self, seed: int, per_step: int = 1) -> Stream:
        return PairStream(self, Shuffled(self.source.open(), seed, self.window))


class PairStream(_Bound):
    """Rows of prompt, answer, EOS and EOS padding."""

    def __init__(self, cfg: PairData, records: Shuffled) -> None:
        self.cfg, self.records = cfg, records

    def next(self) -> Batch:
        eos = self.eos
        rows = [self._row() for _ in range(self.cfg.rows)]
        if self.cfg.pad_to_longest:
            longest = max(len(r.ids) for r in rows)
            rows = [Row((*r.ids, *([eos] * (n := longest - len(r.ids)))), r.prompt, n) for r in rows]
        return collate(rows, eos)

    def _row(self) -> Row:
        for _ in range(NO_ROW_LIMIT):
            record = self.records.next()
            prompt = self._prompt(text_field(record, self.cfg.prompt))
            answer = self.codec.encode(text_field(record, self.cfg.answer))
            if len(prompt) + len(answer) < self.cfg.length:
                return Row((*prompt, *answer, self.eos), len(prompt))
            self.left_out += 1
        raise _all_too_long(f"pairs of up to {self.cfg.length} tokens")

    def _prompt(self, text: str) -> list[int]:
        codec = self.codec
        return codec.encode_chat([{"role": "user", "content": text}]) if codec.has_template else codec.encode(text)

    def texts(self) -> Iterator[str]:
        for record in self.records.once():
            yield text_field(record, self.cfg.prompt)
            yield text_field(record, self.cfg.answer)

    def state(self) -> State:
        return {"records": self.records.state(), "left_out": self.left_out}

    def restore(self, state: State) -> None:
        self.records.restore(state["records"])
        self.left_out = int(state["left_out"])


# --- conversations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChatData:
    """Conversations, written by the tokenizer's own chat template; scored is what the assistant says and the token that
    ends its turn, in every turn.

    Args:
        source: local files or a hub dataset. messages: the field that holds `[{role, content}, ...]`.
        length: tokens of a row. rows: rows of a batch.
        packed: several conversations share a row of up to `length` tokens; otherwise each is a row.
        block: every conversation of a packed row is padded to a multiple of this (`Batch.pads`), so that it begins on
            the grid of a block model.
        document_mask: the conversations of a row do not see each other, and none is cut: one that does not fit any more
            begins the next row. Otherwise rows are full, each conversation sees the earlier ones of its row, and one
            that runs over the end goes on in the next row (published Fast-dLLM v2).
        window: records shuffled together.

    A conversation longer than a row is left out and counted (`Stream.left_out`), except where rows run on.
    """

    kind: ClassVar[str] = "chat"
    source: Files | Hub
    messages: str = "messages"
    length: int = 512
    rows: int = 16
    packed: bool = False
    block: int = 1
    document_mask: bool = False
    window: int = 10_000

    def __post_init__(self) -> None:
        _positive(self, "length", "rows", "block", "window")
        _needs_packing(self, self.block > 1, "block")
        _needs_packing(self, self.document_mask, "document_mask")
        if self.length % self.block:
            expected = f"a multiple of data.block = {self.block}"
            raise ConfigError("data.length is out of range", expected=expected, got=str(self.length))

    def open(self, seed: int, per_step: int = 1) -> Stream:
        return ChatStream(self, Shuffled(self.source.open(), seed, self.window))


@dataclass(frozen=True)
class _Sample:
    """A conversation, or the part of one that fell into a row: ids (the last `pad` only fill a block), scored spans."""

    ids: tuple[int, ...]
    answers: tuple[Span, ...]
    pad: int = 0

    def padded(self, block: int, fill: int) -> _Sample:
        more = -len(self.ids) % block
        return _Sample((*self.ids, *([fill] * more)), self.answers, more)

    def part(self, start: int, stop: int) -> _Sample:
        """The places from `start` to `stop`."""
        last = len(self.ids) - self.pad
        clipped = [(max(a, start) - start, min(b, stop) - start) for a, b in self.answers]
        ids = self.ids[start:stop]
        return _Sample(ids, tuple((a, b) for a, b in clipped if a < b), max(0, start + len(ids) - max(last, start)))


class ChatStream(_Bound):
    """Rows of conversations; the position is that of the records plus the conversation that waits for the next row."""

    def __init__(self, cfg: ChatData, records: Shuffled) -> None:
        self.cfg, self.records = cfg, records
        self.waiting: _Sample | None = None

    def bind(self, codec: Codec) -> None:
        if not codec.has_template:
            remedy = "use kind: pairs, or a tokenizer with a chat template"
            raise ConfigError(
                "data.kind is chat", expected="a tokenizer with a chat template", got="none", remedy=remedy
            )
        super().bind(codec)

    def next(self) -> Batch:
        if not self.cfg.packed:
            return collate([_row([self._sample()]) for _ in range(self.cfg.rows)], self.eos)
        batch = collate([_row(self._window()) for _ in range(self.cfg.rows)], self.eos)
        return batch.split_documents() if self.cfg.document_mask else batch

    def _window(self) -> list[_Sample]:
        """Conversations that fill a row: whole ones under a document mask, else exactly `length` tokens."""
        cfg, parts = self.cfg, list[_Sample]()
        while room := cfg.length - sum(len(p.ids) for p in parts):
            sample = self.waiting or self._sample().padded(cfg.block, self.eos)
            self.waiting = None
            if len(sample.ids) > room:
                self.waiting = sample if cfg.document_mask else sample.part(room, len(sample.ids))
                return parts if cfg.document_mask else [*parts, sample.part(0, room)]
            parts.append(sample)
        return parts

    def _sample(self) -> _Sample:
        for _ in range(NO_ROW_LIMIT):
            messages = messages_field(self.records.next(), self.cfg.messages)
            found = encode_conversation(self.codec, messages, self.eos)
            if len(found.ids) <= self.cfg.length or (self.cfg.packed and not self.cfg.document_mask):
                return _Sample(found.ids, found.answers)
            self.left_out += 1
        raise _all_too_long(f"conversations of up to {self.cfg.length} tokens")

    def texts(self) -> Iterator[str]:
        for record in self.records.once():
            yield from (m["content"] for m in messages_field(record, self.cfg.messages))

    def state(self) -> State:
        waiting = None if self.waiting is None else [self.waiting.ids, self.waiting.answers, self.waiting.pad]
        return {"records": self.records.state(), "waiting": waiting, "left_out": self.left_out}

    def restore(self, state: State) -> None:
        self.records.restore(state["records"])
        self.left_out = int(state["left_out"])
        self.waiting = None
        if state["waiting"] is not None:
            ids, answers, pad = state["waiting"]
            self.waiting = _Sample(tuple(ids), tuple((a, b) for a, b in answers), pad)


def _row(parts: list[_Sample]) -> Row:
    """One row of several samples."""
    ids: list[int] = []
    answers: list[Span] = []
    pads: list[Span] = []
    for part in parts:
        at, end = len(ids), len(ids) + len(part.ids)
        answers += [(at + a, at + b) for a, b in part.answers]
        if part.pad:
            pads.append((end - part.pad, end))
        ids += part.ids
    return Row(tuple(ids), 0, answers=tuple(answers), pads=tuple(pads), documents=tuple(len(p.ids) for p in parts))


# --- shared -----------------------------------------------------------------------------------------------------------

Data = GeneratorData | TextData | PairData | ChatData


def _texts(records: Shuffled, field: str) -> Iterator[str]:
    return (text_field(record, field) for record in records.once())


def _positive(cfg: Any, *names: str) -> None:
    for name in names:
        if getattr(cfg, name) < 1:
            raise ConfigError(f"data.{name} is out of range", expected="1 or more", got=str(getattr(cfg, name)))


def _needs_packing(cfg: Any, given: bool, name: str) -> None:
    if given and not cfg.packed:
        raise ConfigError(f"data.{name} has no effect", expected="packed: true with it", got="packed: false")


def _all_too_long(expected: str) -> ConfigError:
    return ConfigError(f"{NO_ROW_LIMIT} records in a row are longer than data.length", expected=expected)


def load_function(name: str) -> Any:
    """The function behind "package.module:function". Strings keep the rooms apart: training never imports
    evaluation.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError, ValueError):
        raise ConfigError(
            f"cannot find {name!r}",
            expected="package.module:function",
            remedy="check the spelling; is the package installed?",
        ) from None


def special(codec: Codec, token: str) -> int:
    """The id of a special token. EOS and mask may also go by the names the tokenizer's config gives them."""
    found = codec.token_id(token)
    if found is None and token == EOS:
        found = codec.named("eos_token")
    if found is None:
        raise ConfigError(f"the tokenizer has no {token} token", remedy="train one with `unmask tokenizer train`")
    return found
