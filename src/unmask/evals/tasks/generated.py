"""Items of a generator: seeded, without repeats, and on one side of the split by a hash of their content.

Enters: a function that draws a record from an explicit `random.Random`. Leaves: `Data` whose worked examples come from
the training side. Needs no torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from unmask.core.errors import ConfigError
from unmask.evals.task import Data, Item
from unmask.evals.tasks.data import of_generator
from unmask.evals.tasks.synthetic import Split, split_of

Draw = Callable[[random.Random], dict[str, Any] | None]
"""A record with its content without wording as "key"; None: draw again."""
_PATIENCE = 20_000
"""Draws in a row without a new item, after which a generator has nothing left to give."""


def side(split: str) -> Split:
    """The side of the split by its name."""
    if split == "test":
        return "test"
    if split == "train":
        return "train"
    raise ConfigError(f"the split {split!r} of generated items", expected="test or train")


def generated(name: str, split: str, count: int, shots: int, draw: Draw) -> Data:
    """The first `count` items of a side, and `shots` of the training side as worked examples.

    Args:
        name: what decides the items (kind and seed, not how many), as in "countdown/4/seed 0".

    Raises:
        ConfigError: there are not that many different items.
    """
    wanted = side(split)
    train = _drawn(name, "train", shots + (count if wanted == "train" else 0), draw)
    items = train[shots:] if wanted == "train" else _drawn(name, "test", count, draw)
    return of_generator(name, items, train[:shots])


def _drawn(name: str, wanted: Split, count: int, draw: Draw) -> list[Item]:
    rng = random.Random(f"{name}/{wanted}")
    found: dict[str, Item] = {}
    misses = 0
    while len(found) < count:
        record = draw(rng)
        if record is None or record["key"] in found or split_of(record["key"]) != wanted:
            misses += 1
            if misses == _PATIENCE:
                raise ConfigError(f"{name}: items", expected=f"{count}", got=f"{len(found)} different ones exist")
            continue
        misses = 0
        found[record["key"]] = Item(f"{wanted}/{len(found)}", record)
    return list(found.values())


def with_first_as_shots(data: Data, shots: int) -> Data:
    """A file whose first records are its worked examples, as Dream's planning files are used."""
    if len(data.items) <= shots:
        expected = f"more than the {shots} records that are worked examples"
        raise ConfigError(data.source, expected=expected, got=str(len(data.items)))
    return Data(data.items[shots:], data.source, data.sha256, data.items[:shots])
