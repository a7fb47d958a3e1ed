"""The seam matrix: every legal combination of model traits, schedule, policy and cache, on the fake model.

`python tests/engine/matrix.py --write` writes the golden table anew; nothing else ever does. One line per combination:
rows computed, rows kept, forwards, model calls, rows through the head, and a checksum of the answers.
"""

from __future__ import annotations

import json
import sys
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from unmask import testing as t
from unmask.core import catalog
from unmask.core.types import Traits

TABLE = Path(__file__).with_name("matrix_golden.json")

TRAITS: dict[str, Traits] = {**t.TRAITS, "autoregressive": replace(t.TRAITS["causal"], mask_id=None)}
SCHEDULES = ("whole", "blocks(4)", "blocks(5)", "growing(3)", "growing(1)", "blocks(2)",
             "pipelined(3, window=3, add=0.3)", "v2_blocks(2, block=4)")  # fmt: skip
POLICIES = (
    "threshold(0.6)",
    "factor(1.0)",
    "low_confidence(steps=10)",
    "low_confidence(steps=10, all_passes=True)",
    "random(steps=5)",
    "entropy(steps=5)",
    "margin(steps=5)",
    "dream('origin', steps=6)",
    "dream('maskgit_plus', steps=6)",
    "dream('topk_margin', steps=6, empty_passes=True)",
    "dream('entropy', steps=6, alg_temp=0.5)",
    "dream_block",
    "dream_carry(steps=5)",
    "left_to_right",
    "entropy_bound(0.8)",
    "slow_fast(0.5, reach=0.2, explore=3)",
    "pipelined_threshold(0.6)",
    "commit_ahead(0.6, extra=2)",
    "v2_threshold(0.6, block=4)",
    "ddpm(steps=5)",
    "ddim(steps=5, eta=0.5)",
    "dpmpp(steps=5, clamp=0.4)",
)
LATENT = POLICIES[-3:]
CACHES = (
    "none",
    "prefix",
    "prefix(refresh=1)",
    "prefix(refresh=2)",
    "dual",
    "dual(refresh=1)",
    "dual(refresh=2)",
    "block",
    "sub_block",
    "sub_block(refresh=1)",
    "trim(1)",
    "trim(2)",
    "trim",
    "trim(None, verify=0.9)",
    "vicinity(0, 2)",
    "vicinity(1, 2, refresh=1)",
    "delayed(refresh=3)",
    "delayed(refresh=None)",
    "delayed(refresh=None, open_block=True)",
    "delayed(refresh=1)",
    "drift(0.05)",
    "drift(0.0)",
    "window(2)",
    "window(1, every=3, inside='dual')",
    "window(1, inside='prefix', refresh=2)",
    "window(None, inside='dual', refresh=1)",
    "light_entry(1, 1, full_every=2)",
    "light_entry(1, 1, refresh=1)",
    "fixed_reuse(1)",
    "fixed_reuse(2, 'last')",
    "early_exit(1, threshold=0.3)",
    "early_exit(1, every=1)",
    "depth_split(1)",
    "depth_split(2, refresh=None, inside='dual')",
    "delta_reuse('first', refresh=2)",
    "delta_reuse('middle', refresh=None)",
    "v2_cache(4, length=2)",
    "v2_cache(4, length=2, sub_blocks=True)",
    "boundary",
    "boundary(refresh=1)",
    "boundary(refresh=2)",
)
LATER = (
    "entropy_bound(0.8)",
    "slow_fast(0.5, reach=0.2, explore=3)",
    "pipelined_threshold(0.6)",
    "commit_ahead(0.6, extra=2)",
)
"""Policies that are tried with one cache of each kind."""
ONE_OF_EACH = ("none", "prefix", "dual", "block", "sub_block", "trim", "boundary")
ADAPTIVE = ("vicinity", "delayed", "drift", "window", "light_entry", "fixed_reuse", "early_exit", "depth_split",
            "delta_reuse")  # fmt: skip
"""Caches that are tried with a few policies, and with several open blocks."""
SUB_BLOCKS = ("block-causal", "block-causal-off-grid", "context-causal")


@dataclass(frozen=True)
class Cell:
    """One combination."""

    traits: str
    schedule: str
    policy: str
    cache: str

    @property
    def key(self) -> str:
        return " | ".join((self.traits, self.schedule, self.policy, self.cache))

    @property
    def exact(self) -> bool:
        return bool(catalog.parse("cache", self.cache).exact_for(TRAITS[self.traits]))


def legal(cell: Cell) -> bool:
    """A model without a mask id has no hole that others could see: it only writes left to right, one at a time.

    Sub-blocks are tried where the model's own blocks are larger; the published sampler's three parts only together.
    """
    published = [axis.startswith("v2_") for axis in (cell.schedule, cell.policy, cell.cache)]
    if any(published) and not (all(published) and cell.traits == "block-causal"):
        return False
    if cell.cache == "sub_block(refresh=1)" and (cell.traits not in SUB_BLOCKS or cell.policy not in POLICIES[:3]):
        return False
    if cell.schedule == "blocks(2)" and (cell.traits not in SUB_BLOCKS or cell.policy not in POLICIES[:3]):
        return False
    if cell.schedule == "growing(1)" and cell.policy != "left_to_right":
        return False
    if cell.cache.startswith(ADAPTIVE):
        some = ("threshold(0.6)", "low_confidence(steps=10)", "left_to_right")
        if cell.schedule.startswith("pipelined"):
            some = ("threshold(0.6)", "pipelined_threshold(0.6)")
        return cell.policy in some and t.serves(catalog.parse("cache", cell.cache), TRAITS[cell.traits])
    if cell.schedule == SCHEDULES[6] and (cell.policy not in (*POLICIES[:4], *LATER) or cell.cache not in ONE_OF_EACH):
        return False
    if cell.policy in LATER and (
        cell.cache not in ONE_OF_EACH or cell.schedule not in ("whole", "blocks(4)", "growing(3)", SCHEDULES[6])
    ):
        return False
    if cell.cache.startswith("trim") and cell.policy not in (*POLICIES[:3], *LATER, "left_to_right"):
        return False
    if cell.traits == "autoregressive" and (cell.schedule, cell.policy) != ("growing(1)", "left_to_right"):
        return False
    if cell.policy in LATENT and cell.traits != "recurrent":
        return False
    if cell.traits == "recurrent" and cell.policy not in (*POLICIES[:3], "dream('origin', steps=6)", *LATENT):
        return False
    if (
        cell.cache.endswith("(refresh=2)") and cell.policy not in POLICIES[:3]
    ):  # enough to see a refresh between entries
        return False
    return t.serves(catalog.parse("cache", cell.cache), TRAITS[cell.traits])


def cells(traits: str, schedule: str) -> list[Cell]:
    found = [Cell(traits, schedule, p, c) for p in POLICIES for c in CACHES]
    return [c for c in found if legal(c)]


def run(cell: Cell) -> t.Outcome:
    """Three requests of mixed lengths, one with given tokens in its answer, decoded together."""
    denoiser = t.FakeDenoiser(TRAITS[cell.traits])
    return t.decode(denoiser, t.crowd(t.strategy(cell.schedule, cell.policy, cell.cache)))


def line(found: t.Outcome) -> list[int]:
    answers = zlib.crc32(json.dumps(sorted(found.answers.items())).encode())
    return [found.rows, found.kept, sum(found.nfe.values()), found.calls, found.head_rows, answers]


def golden() -> dict[str, list[int]]:
    return json.loads(TABLE.read_text("utf-8"))


def all_cells() -> list[Cell]:
    return [c for traits in TRAITS for schedule in SCHEDULES for c in cells(traits, schedule)]


def main() -> int:
    if sys.argv[1:] != ["--write"]:
        print(__doc__)
        return 2
    lines = [f"{json.dumps(c.key)}: {json.dumps(line(run(c)))}" for c in all_cells()]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    print(f"{TABLE}: {len(lines)} combinations")
    return 0


if __name__ == "__main__":
    sys.exit(main())
