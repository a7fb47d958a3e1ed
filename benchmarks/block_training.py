"""Block-diffusion training: the blocks the loss needs against the published [noisy; clean] layout under a dense mask.

    python benchmarks/block_training.py            # the table of docs/benchmarks/block-training.md

One step = forward and backward of Fast-dLLM v2's loss, bfloat16 autocast, one thread, the same rows, masks and weights
on both sides. Times are processor time, interleaved (A B A B), medians. Memory is what the peak of a fresh process
grows by during one step (Linux).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from unmask.models.config import TransformerConfig
from unmask.models.transformer import Transformer
from unmask.ops.attention.blocks import training_mask
from unmask.train.batch import Batch, Row, collate
from unmask.train.forward import Net
from unmask.train.objectives.block_diffusion import BlockDiffusion

MASK, EOS, VOCAB = 1020, 1, 1024


def model() -> Transformer:
    cfg = TransformerConfig(
        vocab_size=VOCAB, dim=512, layers=4, heads=8, kv_heads=2, head_dim=64, mlp_dim=1408, qkv_bias=True, tied=True
    )
    made = Transformer(cfg)
    made.init_weights(0)
    return made


def rows(length: int, count: int) -> Batch:
    """Full rows, a quarter of each is prompt."""
    gen = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 1000, (count, length), generator=gen).tolist()
    return collate([Row(tuple(r), length // 4) for r in ids], EOS)


def dense(net: Net, objective: BlockDiffusion, batch: Batch, rng: torch.Generator) -> Tensor:
    """All views as [noisy; clean] rows of 2L; the noisy half goes through the head."""
    cut = objective.blocks(batch)
    masked, _ = objective.noise.masks(cut.scored, cut.count, rng)
    hole, clean = masked.flatten(2).flatten(0, 1), cut.ids.flatten(1).repeat(2, 1)
    length = clean.shape[1]
    ids = torch.cat([clean.masked_fill(hole, MASK), clean], dim=1)
    mask = training_mask(length, objective.block)

    def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.to(v.dtype).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)

    x = net.model.run(net.model.embed_ids(ids), torch.arange(length).repeat(2), attend)
    speaks = F.pad(hole[:, 1:], (0, 1))
    return net.losses(net.model.norm(x[:, :length])[speaks], clean[:, 1:][hole[:, 1:]]).mean()


def step(path: str, net: Net, objective: BlockDiffusion, batch: Batch) -> float:
    rng = torch.Generator().manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(net, batch, rng).total if path == "ours" else dense(net, objective, batch, rng)
    loss.backward()
    net.model.zero_grad(set_to_none=False)
    return loss.item()


def memory(path: str, length: int, count: int, block: int) -> None:
    """Prints the growth of this process's peak in MiB."""
    net, objective = Net(model()), BlockDiffusion(block).bound(MASK, EOS)
    step(path, net, objective, rows(block * 2, 1))
    before = peak()
    step(path, net, objective, rows(length, count))
    print(peak() - before)


def peak() -> float:
    """MiB; a child starts from nothing here, unlike with getrusage."""
    line = next(x for x in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def compare(length: int, count: int, block: int, rounds: int) -> None:
    net, objective, batch = Net(model()), BlockDiffusion(block).bound(MASK, EOS), rows(length, count)
    seconds: dict[str, list[float]] = {"ours": [], "dense": []}
    losses = {path: step(path, net, objective, batch) for path in seconds}
    for _ in range(rounds):
        for path, taken in seconds.items():
            begun = time.process_time()
            step(path, net, objective, batch)
            taken.append(time.process_time() - begun)
    positions = {
        "ours": objective(net, batch, torch.Generator().manual_seed(1)).metrics["positions"],
        "dense": 4.0 * batch.ids.numel(),
    }
    for path, taken in seconds.items():
        command = [sys.executable, __file__, "--memory", path, str(length), str(count), str(block)]
        grown = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        spread = f"{min(taken):.2f} to {max(taken):.2f}"
        cells = (f"{count} x {length}", path, f"{positions[path]:.0f}", f"{statistics.median(taken):.2f} ({spread})")
        print(f"| {' | '.join(cells)} | {grown:.0f} | {losses[path]:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        path, *numbers = args.memory
        memory(path, *map(int, numbers))
        return
    print(
        f"| rows x length | path | positions | CPU seconds a step, median of {args.rounds} (range) | peak MiB | loss |"
    )
    print("|---|---|---|---|---|---|")
    for length, count in ((128, 16), (512, 4), (2048, 1)):
        compare(length, count, args.block, args.rounds)


if __name__ == "__main__":
    main()
