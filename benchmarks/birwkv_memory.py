"""What a mixer can remember: a bit over a long distance, and which value belonged to which key.

    python benchmarks/birwkv_memory.py --task bit                       # position 0 decides what is asked for at 255
    python benchmarks/birwkv_memory.py --task recall --mixer biwkv      # 8 pairs of key and value, then one key again
    python benchmarks/birwkv_memory.py --task recall --mixer attention   # or hybrid: one layer of each

Two layers learn from masks only: the asked position is the one mask, everything else is given. Accuracy is on fresh
sequences. Bi-WKV weighs positions by distance and key alone, never by what is asked, so recall by content is beyond it;
attention is the control. Results: docs/benchmarks/birwkv.md.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from unmask.models.birwkv_net import MASKED, BiRWKV
from unmask.models.config import BiRWKVConfig
from unmask.train.optim import OptimConfig, build_optimizers, lr_factor, set_lr


def bit(rows: int, length: int, rng: torch.Generator) -> Tensor:
    """Noise of 16 tokens between a first token of two and its copy at the end."""
    ids = torch.randint(2, 18, (rows, length), generator=rng)
    ids[:, 0] = ids[:, -1] = torch.randint(0, 2, (rows,), generator=rng)
    return ids


def recall(rows: int, length: int, rng: torch.Generator) -> Tensor:
    """8 pairs (key, value) at random even places between noise, then one of the keys and, asked for, its value."""
    keys = torch.stack([torch.randperm(16, generator=rng)[:8] for _ in range(rows)])
    values = torch.randint(16, 32, (rows, 8), generator=rng)
    ids = torch.randint(32, 36, (rows, length), generator=rng)
    for row in range(rows):
        places = 2 * torch.randperm(length // 2 - 1, generator=rng)[:8]
        ids[row, places], ids[row, places + 1] = keys[row], values[row]
    asked = torch.randint(0, 8, (rows, 1), generator=rng)
    ids[:, -2], ids[:, -1] = keys.gather(1, asked)[:, 0], values.gather(1, asked)[:, 0]
    return ids


MIXERS = {"biwkv": 0, "attention": 1, "hybrid": 2}
"""Every which layer attends; in the hybrid the second of the two."""
TASKS = {"bit": (bit, 256, 300), "recall": (recall, 64, 1500)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=tuple(TASKS), default="bit")
    parser.add_argument("--mixer", choices=tuple(MIXERS), default="biwkv")
    parser.add_argument("--steps", type=int, help="default: 300 for bit, 1500 for recall")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps(run(args.task, args.mixer, args.steps, args.dim, args.seed)))
    return 0


def run(task: str, mixer: str, steps: int | None, dim: int, seed: int) -> dict[str, float | str | int]:
    """Trains and tests."""
    make, length, usual = TASKS[task]
    steps = steps or usual
    cfg = BiRWKVConfig(40, dim, 2, int(2.5 * dim), 16, tied=False, max_len=length, heads=dim // 16)
    model = BiRWKV(replace(cfg, attention_every=MIXERS[mixer]))
    model.init_weights(seed, 0.03)
    optim = OptimConfig("muon", lr=4e-3, betas=(0.9, 0.98), weight_decay=0.0, warmup=20, decay=0.5, floor=0.02)
    optimizers, rng, begun = build_optimizers(model, optim), torch.Generator().manual_seed(seed), time.process_time()
    for step in range(steps):
        set_lr(optimizers, lr_factor(optim, step, steps))
        ids = make(32, length, rng)
        F.cross_entropy(answer(model, ids), ids[:, -1]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    model.eval()
    with torch.no_grad():
        tests = [make(100, length, torch.Generator().manual_seed(10_000 + i)) for i in range(10)]
        right = sum(int((answer(model, ids).argmax(-1) == ids[:, -1]).sum()) for ids in tests)
    found = {"task": task, "mixer": mixer, "steps": steps, "accuracy": right / 1000}
    return {**found, "cpu_seconds": round(time.process_time() - begun, 1)}


def answer(model: BiRWKV, ids: Tensor) -> Tensor:
    """Logits [B, V] at the last position, the only one that is hidden."""
    kinds = torch.zeros_like(ids)
    kinds[:, -1] = MASKED
    rows = ids.shape[0]
    tau = model.condition(torch.zeros(rows), torch.zeros(rows, dtype=torch.bool))
    return model.speak(model.run(model.enter(model.table[ids], None, kinds), tau)[:, -1])


if __name__ == "__main__":
    raise SystemExit(main())
