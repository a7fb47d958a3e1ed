"""Where training text comes from: local .txt, .jsonl and .parquet files, or a dataset of the hub, in resumable windows.

Enters: a source section of a recipe. Leaves: records (plain dicts) in an order that (seed, position) alone decides.
Shards are shuffled per epoch, records within a window. Files that are missing, empty, not UTF-8 or not JSON are
refused by name.
"""

from __future__ import annotations

import glob
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Protocol

from unmask.core.errors import ConfigError

Record = dict[str, Any]
TEXT = "text"


class Source(Protocol):
    """Shards of records."""

    def shards(self) -> int: ...
    def read(self, shard: int, start: int) -> Iterator[Record]: ...


@dataclass(frozen=True)
class Files:
    """Local files: .jsonl (one JSON object a line), .parquet, or text in UTF-8; each file is a shard.

    Args:
        paths: files or patterns such as "data/*.jsonl", relative to the working directory.
        separator: what divides the records of a text file; its records have one field, "text".
    """

    kind: ClassVar[str] = "files"
    paths: tuple[str, ...]
    separator: str = "\n\n"

    def open(self) -> Source:
        """Resolves the patterns and looks into every file once."""
        found = [Path(p) for pattern in self.paths for p in (sorted(glob.glob(pattern, recursive=True)) or [pattern])]
        if not found:
            raise ConfigError("data.source.paths is empty", expected="at least one file")
        source = _FileSource(tuple(found), self.separator)
        for shard in range(len(found)):
            if next(source.read(shard, 0), None) is None:
                raise ConfigError(f"{found[shard]} is empty", expected="text to train on")
        return source


@dataclass(frozen=True)
class Hub:
    """A dataset by its hub name (or a local directory that `datasets` understands), streamed.

    Args:
        name, subset, split: as `datasets.load_dataset` takes them. revision: branch, tag or commit.
    """

    kind: ClassVar[str] = "hub"
    name: str
    subset: str | None = None
    split: str = "train"
    revision: str | None = None

    def open(self) -> Source:
        try:
            import datasets
        except ModuleNotFoundError:
            raise ConfigError(
                "data.source is a hub dataset, and `datasets` is missing", remedy="pip install 'unmask[train]'"
            ) from None
        try:
            stream = datasets.load_dataset(
                self.name, self.subset, split=self.split, revision=self.revision, streaming=True
            )
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as e:
            raise ConfigError(f"cannot open the dataset {self.name!r}", got=" ".join(str(e).split())[:200]) from None
        return _HubSource(stream)


@dataclass(frozen=True)
class _FileSource:
    paths: tuple[Path, ...]
    separator: str

    def shards(self) -> int:
        return len(self.paths)

    def read(self, shard: int, start: int) -> Iterator[Record]:
        path = self.paths[shard]
        read = {".jsonl": _json_lines, ".parquet": _parquet}.get(path.suffix)
        records = read(path) if read is not None else _paragraphs(path, self.separator)
        return islice(_checked(records, path), start, None)


@dataclass(frozen=True)
class _HubSource:
    stream: Any

    def shards(self) -> int:
        return 1

    def read(self, shard: int, start: int) -> Iterator[Record]:
        return iter(self.stream.skip(start))


def _checked(records: Iterator[Record], path: Path) -> Iterator[Record]:
    """The records, with every way a file can fail turned into one clear error."""
    try:
        yield from records
    except FileNotFoundError:
        raise ConfigError(f"no file {path}", remedy="check data.source.paths") from None
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is not UTF-8 text", got=f"byte {e.object[e.start]:#04x}") from None
    except OSError as e:
        raise ConfigError(f"cannot read {path}", got=e.strerror or str(e)) from None


def _json_lines(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as e:
                raise ConfigError(f"{path} line {number} is not JSON", got=e.msg) from None
            if not isinstance(value, dict):
                raise ConfigError(f"{path} line {number} is not a JSON object", got=type(value).__name__)
            yield value


def _parquet(path: Path) -> Iterator[Record]:
    """Rows of a parquet file, a batch in memory at a time."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ConfigError(f"{path} needs `pyarrow`, which is missing", remedy="pip install 'unmask[train]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()
    except pa.ArrowInvalid as e:
        raise ConfigError(f"{path} is not a parquet file", got=" ".join(str(e).split())[:200]) from None


def _paragraphs(path: Path, separator: str) -> Iterator[Record]:
    """Pieces between separators, without reading the file as a whole."""
    rest = ""
    with path.open(encoding="utf-8-sig") as f:
        while chunk := f.read(1 << 20):
            *pieces, rest = (rest + chunk).split(separator)
            yield from ({TEXT: p.strip()} for p in pieces if p.strip())
    if rest.strip():
        yield {TEXT: rest.strip()}


class Shuffled:
    """Endless records: shards in a new order each epoch, records shuffled inside windows; the position is four numbers.

    Args:
        window: records shuffled together; 1 keeps the file's order.
    """

    def __init__(self, source: Source, seed: int, window: int) -> None:
        self.source, self.seed, self.window = source, seed, window
        self.epoch = self.shard = self.start = self.at = 0
        self._loaded: list[Record] | None = None

    def next(self) -> Record:
        while True:
            if self._loaded is None:
                self._loaded = self._load()
            if self.at < len(self._loaded):
                self.at += 1
                return self._loaded[self.at - 1]
            self._advance(len(self._loaded))

    def once(self) -> Iterator[Record]:
        """What is left of the current epoch, each record once. The stream stands in the next epoch afterwards."""
        epoch, record = self.epoch, self.next()
        while self.epoch == epoch:
            yield record
            record = self.next()

    def _load(self) -> list[Record]:
        order = list(range(self.source.shards()))
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        records = list(islice(self.source.read(order[self.shard], self.start), self.window))
        random.Random(f"{self.seed}/{self.epoch}/{self.shard}/{self.start}").shuffle(records)
        return records

    def _advance(self, count: int) -> None:
        """Past the window: the next window, the next shard after a short one, the next epoch after the last shard."""
        self._loaded, self.at, self.start = None, 0, self.start + count
        if count < self.window:
            self.shard, self.start = self.shard + 1, 0
        if self.shard == self.source.shards():
            self.shard, self.epoch = 0, self.epoch + 1

    def state(self) -> list[int]:
        return [self.epoch, self.shard, self.start, self.at]

    def restore(self, state: list[int]) -> None:
        self.epoch, self.shard, self.start, self.at = state
        self._loaded = None


def text_field(record: Record, name: str) -> str:
    """A text of a record, refused by name when it is missing or of another type."""
    if name not in record:
        raise ConfigError(
            f"a record has no field {name!r}", expected="one of " + ", ".join(record), remedy="set it under data:"
        )
    if not isinstance(record[name], str):
        raise ConfigError(f"the field {name!r} of a record is not text", got=type(record[name]).__name__)
    return str(record[name])


def messages_field(record: Record, name: str) -> list[Record]:
    """The conversation of a record, refused by name when it is missing or of another form."""
    if name not in record:
        raise ConfigError(
            f"a record has no field {name!r}", expected="one of " + ", ".join(record), remedy="set data.messages"
        )
    value = record[name]
    form = 'a list of {"role": "user", "content": "..."}'
    for message in value if isinstance(value, list) and value else [None]:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise ConfigError(f"the field {name!r} of a record is no conversation", expected=form, got=repr(value)[:80])
    return list(value)
