"""Where the items of a benchmark come from: a local file or directory, or the hub by name.

Enters: what `--data` said (None: the hub), and a `Benchmark`, which says how its records look. Leaves: `Data`, with a
SHA-256 of the bytes that were read. A file that is missing, damaged, empty or of another benchmark is refused by name
and line, and so are two items of one id. Needs no torch; `pyarrow`, `zstandard` and `datasets` only where a file or the
hub asks for them.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unmask.core.errors import ConfigError
from unmask.evals.task import Data, Item

EXTRA = "pip install 'unmask[eval]'"
_FORMATS = (".jsonl", ".json", ".parquet")
_PACKED = (".gz", ".zst")
_SPLITS = {
    "train": ("train", "training"),
    "test": ("test",),
    "validation": ("validation", "valid", "val", "dev"),
    "dev": ("dev", "validation", "val"),
    "prompt": ("prompt",),
}
_SPLIT_WORDS = {word for words in _SPLITS.values() for word in words}
_SHARD = re.compile(r"-\d+-of-\d+")
_GOT = 60
"""Characters of a wrong value that an error repeats."""


@dataclass(frozen=True)
class Record:
    """One record of a file, with the words that find it again. number: its place in the data, from 0."""

    where: str
    number: int
    fields: Mapping[str, Any]

    def refuse(self, expected: str, got: str) -> ConfigError:
        return ConfigError(self.where, expected=expected, got=got[:_GOT], remedy="Give the benchmark's own file.")

    def text(self, *names: str) -> str:
        """The first of these fields that is there, which must be text."""
        value = self.value(*names)
        if not isinstance(value, str) or not value.strip():
            raise self.refuse(f"text in {names[0]!r}", repr(value))
        return value

    def texts(self, *names: str) -> list[str]:
        """The same for a list of texts."""
        value = self.value(*names)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise self.refuse(f"a list of texts in {names[0]!r}", repr(value))
        return list(value)

    def value(self, *names: str) -> Any:
        for name in names:
            if self.fields.get(name) is not None:
                return self.fields[name]
        raise self.refuse(f"a field {' or '.join(map(repr, names))}", "fields " + (", ".join(self.fields) or "none"))


@dataclass(frozen=True)
class Benchmark:
    """How the data of a benchmark looks.

    Args:
        name: as in errors, and as its files are called when several lie in one directory.
        fields: what a record must have, in words.
        parse: a record's fields as the task uses them, with "id" if the record has one of its own; refuses a record of
            another benchmark.
        hub, subset: its name on the hub; "" if it is not there.
        splits: published names where they differ from ours, such as {"test": "validation"}.
        shots: the split that worked examples are taken from.
    """

    name: str
    fields: str
    parse: Callable[[Record], dict[str, Any]]
    hub: str = ""
    subset: str | None = None
    splits: Mapping[str, str] | None = None
    shots: str = "train"

    def load(self, data: str | None, split: str, shots: int | None = 0) -> Data:
        """Items of a split, with the first `shots` records of the other split to take worked examples from (None: all).

        Raises:
            ConfigError: a file that is missing, damaged, empty or of another benchmark; two items of one id.
        """
        split = (self.splits or {}).get(split, split)
        table = self._hub(split) if data is None else _local(Path(data).expanduser(), self, split)
        items = self._items(table, self.name)
        if shots == 0:
            return Data(items, table.source, table.sha256)
        if split == self.shots:
            raise ConfigError(
                f"{self.name}: the split {split!r} is where worked examples come from",
                expected="another split, or shots=0",
            )
        other = self._hub(self.shots) if data is None else _beside(Path(data).expanduser(), self, split)
        if shots is not None and len(other.records) < shots:
            raise ConfigError(f"{self.name}: {other.source}", expected=f"{shots} records", got=str(len(other.records)))
        worked = self._items(replace(other, records=other.records[:shots]), f"{self.name}/{self.shots}")
        both = hashlib.sha256((table.sha256 + other.sha256).encode()).hexdigest()
        return Data(items, f"{table.source}; worked examples: {other.source}", both, worked)

    def items(self, records: Sequence[Mapping[str, Any]], where: str) -> tuple[Item, ...]:
        """Items from records that were read already."""
        named = tuple(Record(f"{where}, record {n + 1}", n, fields) for n, fields in enumerate(records))
        return self._items(Table(named, where, ""), f"{self.name}/worked")

    def has(self, data: str | None, split: str) -> bool:
        """Whether there is a split of its own name: on the hub, or as a file in a directory."""
        if data is None:
            return bool(self.hub)
        words = set(_SPLITS.get(split, (split,)))
        return any(_words(p) & words for p in _find(Path(data).expanduser(), self, split))

    def _items(self, table: Table, prefix: str) -> tuple[Item, ...]:
        seen: dict[str, str] = {}
        items = []
        for record in table.records:
            fields = self._parsed(record)
            name = str(fields.pop("id", f"{prefix}/{record.number}"))
            if name in seen:
                raise ConfigError(
                    f"{record.where}: the id {name!r} is taken", got=f"the same in {seen[name]}", remedy="Remove one."
                )
            seen[name] = record.where
            items.append(Item(name, {**record.fields, **fields}))
        return tuple(items)

    def _parsed(self, record: Record) -> dict[str, Any]:
        try:
            return self.parse(record)
        except ConfigError as e:
            expected = f"{self.fields} ({e.expected})"
            raise ConfigError(f"{e.what} is not {self.name}", expected=expected, got=e.got, remedy=e.remedy) from None

    def _hub(self, split: str) -> Table:
        if not self.hub:
            raise ConfigError(f"{self.name} is not on the hub", expected=f"--data, {self.fields}")
        return from_hub(self.hub, self.subset, split)


@dataclass(frozen=True)
class Table:
    """Records with their source and the SHA-256 of their bytes."""

    records: tuple[Record, ...]
    source: str
    sha256: str


def from_hub(name: str, subset: str | None, split: str) -> Table:
    """A split of a hub dataset; the hash is of its records as canonical JSON."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise ConfigError(
            f"{name!r} is a hub dataset, and `datasets` is missing", remedy=f"{EXTRA}, or give a local file by --data"
        ) from None
    try:
        rows = list(datasets.load_dataset(name, subset, split=split))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as e:
        got = " ".join(str(e).split())[:200]
        raise ConfigError(f"cannot open the dataset {name!r}", got=got, remedy="Give a local file by --data.") from None
    where = f"hub:{name}{'/' + subset if subset else ''}/{split}"
    records = tuple(Record(f"{where}, record {n + 1}", n, row) for n, row in enumerate(rows))
    canonical = json.dumps(rows, sort_keys=True, ensure_ascii=False, default=str)
    return Table(records, where, hashlib.sha256(canonical.encode()).hexdigest())


def of_generator(name: str, items: Sequence[Item], shots: Sequence[Item] = ()) -> Data:
    """Generated items; the hash is of their content."""
    content = json.dumps([[i.id, dict(i.fields)] for i in (*items, *shots)], sort_keys=True, ensure_ascii=False)
    return Data(tuple(items), f"generated: {name}", hashlib.sha256(content.encode()).hexdigest(), tuple(shots))


# --- local files ------------------------------------------------------------------------------------------------------


def _local(path: Path, bench: Benchmark, split: str) -> Table:
    if path.is_dir():
        return _table(_found(path, bench, split, "items"))
    return _table([path])


def _beside(path: Path, bench: Benchmark, split: str) -> Table:
    """The file of worked examples: in the directory, or beside the file under the other split's name."""
    if path.is_dir():
        return _table(_found(path, bench, bench.shots, "worked examples"))
    for old in _SPLITS.get(split, (split,)):
        for new in _SPLITS[bench.shots]:
            other = path.with_name(re.sub(rf"(?i)(?<![a-z]){old}(?![a-z])", new, path.name, count=1))
            if other.name != path.name and other.exists():
                return _table([other])
    raise ConfigError(
        f"{bench.name}: no worked examples beside {path}",
        expected=f"a file of the split {bench.shots!r} of the same name",
        remedy="Give the directory that holds both, or shots=0.",
    )


def _found(folder: Path, bench: Benchmark, split: str, what: str) -> list[Path]:
    """The file of a split in a directory (all its shards)."""
    files = _find(folder, bench, split)
    if files:
        return files
    form = f"a file of {bench.name} ({', '.join(_FORMATS)}, plain or {' or '.join(_PACKED)})"
    raise ConfigError(f"{folder}: no {what} of the split {split!r}", expected=form, remedy="Give the file itself.")


def _find(folder: Path, bench: Benchmark, split: str) -> list[Path]:
    """The same, empty if there is none; never a guess between several."""
    for place in (folder / (bench.subset or "."), folder / "data", folder):
        files = sorted(p for p in place.iterdir() if p.is_file() and _format(p)) if place.is_dir() else []
        chosen = _chosen(files, bench.name, split)
        if len({_SHARD.sub("", p.name) for p in chosen}) > 1:
            names = ", ".join(p.name for p in chosen)
            raise ConfigError(
                f"{folder}: which file has {bench.name}?", expected="one", got=names, remedy="Give the file."
            )
        if chosen:
            return chosen
    return []


def _chosen(files: Sequence[Path], name: str, split: str) -> list[Path]:
    """By name and split, else by name where the file names no split, else by split, else the only file there is."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    named = [p for p in files if plain in re.sub(r"[^a-z0-9]", "", p.name.lower())]
    of_split = [p for p in files if _words(p) & set(_SPLITS.get(split, (split,)))]
    both = [p for p in named if p in of_split]
    without = [p for p in named if not _words(p) & _SPLIT_WORDS]
    return both or without or of_split


def _words(path: Path) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", path.name.lower()))


def _format(path: Path) -> str:
    """Its suffix without packing, "" if it is none of ours."""
    suffixes = [s for s in path.suffixes if s not in _PACKED]
    return suffixes[-1] if suffixes and suffixes[-1] in _FORMATS else ""


def _table(paths: Sequence[Path]) -> Table:
    records: list[Record] = []
    hashes = []
    for path in paths:
        raw = _bytes(path)
        hashes.append(hashlib.sha256(raw).hexdigest())
        for where, value in _values(path, unpacked(path, raw)):
            if not isinstance(value, dict):
                raise ConfigError(where, expected="a JSON object", got=type(value).__name__)
            records.append(Record(where, len(records), value))
    if not records:
        raise ConfigError(f"{paths[0]} is empty", expected="at least one item")
    digest = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return Table(tuple(records), ", ".join(p.name for p in paths), digest)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"no file {path}", remedy="Check --data.") from None
    except OSError as e:
        raise ConfigError(f"cannot read {path}", got=e.strerror or str(e)) from None


def unpacked(path: Path, raw: bytes) -> bytes:
    """The content of a file that may be .gz or .zst."""
    try:
        if path.suffix == ".gz":
            return gzip.decompress(raw)
        return _zst(path, raw) if path.suffix == ".zst" else raw
    except (OSError, EOFError, zlib.error) as e:
        raise ConfigError(f"{path} is damaged", expected="a .gz file", got=str(e)) from None


def _zst(path: Path, raw: bytes) -> bytes:
    try:
        import zstandard
    except ModuleNotFoundError:
        raise ConfigError(f"{path} needs `zstandard`, which is missing", remedy=f"{EXTRA}, or unpack it") from None
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(raw), read_across_frames=True) as stream:
            return bytes(stream.read())
    except zstandard.ZstdError as e:
        raise ConfigError(f"{path} is damaged", expected="a .zst file", got=str(e)) from None


def decoded(path: Path, content: bytes) -> str:
    """Text of a file in UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is not UTF-8 text", got=f"byte {content[e.start]:#04x}") from None


def _values(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    form = _format(path)
    if form == ".parquet":
        return _parquet(path, content)
    if form == ".jsonl":
        return _lines(path, decoded(path, content))
    if form == ".json":
        return _array(path, decoded(path, content))
    form = ", ".join(_FORMATS)
    raise ConfigError(f"{path} is of an unknown format", expected=f"{form}, plain or {' or '.join(_PACKED)}")


def _lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    # not splitlines: U+2028 and its like may stand inside a JSON string
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path} line {number}", _json(f"{path} line {number}", line)


def _array(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    values = _json(str(path), text)
    if not isinstance(values, list):
        raise ConfigError(str(path), expected="a JSON list of objects (or name it .jsonl)", got=type(values).__name__)
    yield from ((f"{path} record {n}", value) for n, value in enumerate(values, 1))


def _json(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise ConfigError(f"{where} is not JSON", got=str(e)[:_GOT]) from None
    except RecursionError:
        raise ConfigError(
            f"{where} cannot be read", expected="JSON nested some hundred levels deep at most", got="deeper brackets"
        ) from None


def _parquet(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ConfigError(f"{path} needs `pyarrow`, which is missing", remedy=EXTRA) from None
    try:
        rows = parquet.read_table(io.BytesIO(content)).to_pylist()
    except pa.ArrowInvalid as e:
        raise ConfigError(f"{path} is not a parquet file", got=" ".join(str(e).split())[:200]) from None
    yield from ((f"{path} record {n}", row) for n, row in enumerate(rows, 1))
