"""Does a small BiRWKV learn eight sequences by heart, and do both samplers write them again?

    python benchmarks/birwkv_overfit.py --data text.jsonl        # one JSON object with a field `text` a line

Eight rows of 64 characters, 400 steps, masks and continuous diffusion at once; a part of the rows keeps a clean
beginning. Then 32 samples from nothing and 32 after the first 16 characters of a row, by continuous diffusion and by
masks: a sample counts if it is one of the eight rows, character for character (after a beginning: the right one).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from unmask import testing
from unmask.core.events import fold
from unmask.core.types import LatentSpace, Recurrent, Request, Sampling, Traits
from unmask.engine.engine import Engine
from unmask.models.birwkv_denoiser import BiRWKVDenoiser
from unmask.models.birwkv_net import NOISY, BiRWKV
from unmask.models.config import BiRWKVConfig
from unmask.ops import vp
from unmask.train.batch import Batch
from unmask.train.forward import Net
from unmask.train.objectives.embedding_diffusion import EmbeddingDiffusion
from unmask.train.optim import OptimConfig, build_optimizers, lr_factor, set_lr

ROWS, LENGTH, GIVEN, SAMPLES = 8, 64, 16, 32
SAMPLERS = {
    "ddpm(steps=64)": 0.0,
    "ddpm(steps=128)": 0.0,
    "dpmpp(steps=64)": 0.0,
    "low_confidence(steps=64)": 1.0,
    "threshold(0.9)": 1.0,
}
"""Policies and temperatures."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=160, help="rows of a batch, copies of the eight (default: 160)")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--token-share", type=float, default=0.45)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows, vocab = read(Path(args.data))
    model, objective, seconds = train(rows, vocab, args)
    print(json.dumps({"cpu_seconds": round(seconds, 1), **measure(model, objective, rows)}, indent=1))
    return 0


def read(path: Path) -> tuple[Tensor, int]:
    """Eight rows of ids from places far apart, and the number of characters, mask and end included."""
    text = "\n".join(json.loads(line)["text"] for line in path.read_text("utf-8").splitlines())
    chars = sorted(set(text))
    apart = (len(text) - LENGTH) // ROWS
    rows = [[chars.index(c) for c in text[i * apart : i * apart + LENGTH]] for i in range(ROWS)]
    return torch.tensor(rows), len(chars) + 2


def train(rows: Tensor, vocab: int, args: argparse.Namespace) -> tuple[BiRWKV, EmbeddingDiffusion, float]:
    objective = EmbeddingDiffusion(
        token_share=args.token_share,
        schedule="logsnr_linear(high=1, low=-6)",
        centre=False,
        self_conditioning=0.8,
        prefix=0.4,
        prompt_dropout=0.0,
    ).bound(vocab - 1, vocab - 2)
    cfg = BiRWKVConfig(vocab, args.dim, 2, int(2.5 * args.dim), 16, tied=False, positions=True, max_len=LENGTH)
    model = BiRWKV(replace(cfg, levels=objective.range(vocab, 16)))
    model.init_weights(args.seed, 0.03)
    ids = rows[torch.arange(args.batch) % ROWS]
    every, none = torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    batch, rng = Batch(ids, every, every, none, none), torch.Generator().manual_seed(args.seed + 1)
    optim = OptimConfig("muon", 5e-3, 0.05, (0.9, 0.98), weight_decay=0.0, warmup=20, decay=0.7, floor=0.02)
    optimizers, begun = build_optimizers(model, optim), time.process_time()
    for step in range(args.steps):
        set_lr(optimizers, lr_factor(optim, step, args.steps))
        objective(Net(model), batch, rng).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return model.eval(), objective, time.process_time() - begun


@torch.no_grad()
def measure(model: BiRWKV, objective: EmbeddingDiffusion, rows: Tensor) -> dict[str, object]:
    """Bits per character by masks and at a noise level, and what the samplers write."""
    every, none = torch.ones_like(rows, dtype=torch.bool), torch.zeros_like(rows, dtype=torch.bool)
    batch = Batch(rows, every, every, none, none)
    seeds = (torch.Generator().manual_seed(100 + s) for s in range(60))
    nats = [n / c for n, c in (objective.held_out(Net(model), batch, rng) for rng in seeds)]
    written = {
        f"{p}, temperature {t:g}": [wrote(model, rows, p, t, g) for g in (0, GIVEN)] for p, t in SAMPLERS.items()
    }
    return {
        "mask_bits": sum(nats) / len(nats) / math.log(2),
        "bits_at_-1": noised(model, rows, -1.0),
        "written (from nothing, after 16 characters)": written,
    }


def noised(model: BiRWKV, rows: Tensor, level: float) -> float:
    """Bits per character at one noise level, without a hint."""
    clean, found = model.table[rows].float(), []
    for seed in range(10):
        z = vp.add_noise(clean, torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)), level)
        tau = model.condition(torch.full((ROWS,), level), torch.ones(ROWS, dtype=torch.bool))
        hidden = model.run(model.enter(z, None, torch.full(rows.shape, NOISY)), tau).flatten(0, 1)
        logits = model.speak(hidden, z.flatten(0, 1), torch.full((rows.numel(),), level))
        found.append(float(F.cross_entropy(logits, rows.flatten())) / math.log(2))
    return sum(found) / len(found)


def wrote(model: BiRWKV, rows: Tensor, policy: str, temperature: float, given: int) -> float:
    """Share of the samples that are a row; after a beginning, the row that begins so."""
    space = LatentSpace(model.cfg.embed_dim, *model.cfg.levels)
    denoiser = BiRWKVDenoiser(
        model, Traits(model.cfg.vocab_size - 1, attention=Recurrent(), max_len=LENGTH, latent=space)
    )
    engine = Engine(denoiser, SAMPLES)
    for i in range(SAMPLES):
        canvas, fixed = rows[i % ROWS].clone(), torch.arange(LENGTH) < given
        strategy = testing.strategy("whole", policy, sampling=Sampling(temperature=temperature))
        engine.submit(Request(str(i), canvas, fixed, given, strategy, seed=i))
    done = fold(engine.run())
    right = 0
    for i in range(SAMPLES):
        wanted = [rows[i % ROWS].tolist()] if given else rows.tolist()
        right += [int(x) for x in done[str(i)].ids] in wanted
    return right / SAMPLES


if __name__ == "__main__":
    raise SystemExit(main())
