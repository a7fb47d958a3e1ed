"""Strategies on the same prompt, side by side. Usage: race.py [PROMPT] [MODEL]"""

from __future__ import annotations

import sys

import unmask
from unmask.core.types import Full

STRATEGIES: dict[str, dict[str, object]] = {
    "one token per forward": {"policy": "low_confidence(steps=32)"},
    "threshold 0.9": {"policy": "threshold(0.9)"},
    "factor 1": {"policy": "factor(1.0)"},
}


def main() -> None:
    prompt = sys.argv[1] if len(sys.argv) > 1 else "Sort these numbers: 42 7 19 3"
    model = unmask.load(sys.argv[2] if len(sys.argv) > 2 else None)
    if model.traits.mask_id is None:
        sys.exit(f"{model.name} writes left to right: there is nothing to race. Take a diffusion model.")
    caches = ("prefix", "dual") if model.traits.attention == Full() else ("block", "sub_block")
    cached = {f"threshold 0.9, {c} cache": {"policy": "threshold(0.9)", "cache": c} for c in caches}
    schedule = model.recommended().schedule
    first: list[int] | None = None
    print(f"{'strategy':30} {'forwards':>8} {'tokens/forward':>14} {'seconds':>8} {'as the first':>12}")
    for name, given in {**STRATEGIES, **cached}.items():
        options = {"max_tokens": 32, "schedule": schedule, "cache": "none", **given}
        found = model.generate(prompt, **options)
        assert isinstance(found, unmask.Generation)
        first = list(found.ids) if first is None else first
        same = sum(a == b for a, b in zip(first, found.ids, strict=False))
        rate = found.completion_tokens / found.nfe
        share = f"{same}/{len(first)}"
        print(f"{name:30} {found.nfe:8} {rate:14.2f} {found.seconds:8.3f} {share:>12}")


if __name__ == "__main__":
    main()
