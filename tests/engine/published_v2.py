"""Fast-dLLM v2's two published samplers in our own words (block_diffusion.md, B.1 to B.5), on dense tensors.

Enters: a transformer, prompts, the call's arguments. Leaves: ids, and [rows, mask ids] of every model call.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from unmask.models.transformer import Transformer

KV = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Call:
    """Arguments of a call: new tokens, block and sub-block size, block cache, threshold, stop and pad id."""

    new: int
    block: int
    small: int
    cached: bool
    threshold: float
    stop: int
    pad: int = 0


@dataclass
class Net:
    """The model with its growing cache of finished rows (keys and values [B, T, KV, D] per layer)."""

    model: Transformer
    mask_id: int
    kept: KV = field(default_factory=list)
    calls: list[list[int]] = field(default_factory=list)

    def __call__(
        self, ids: Tensor, rule: int | None = 32, keep: bool = False, held: KV | None = None, offset: int = 0
    ) -> tuple[Tensor, KV]:
        """Logits of rows behind the kept ones, and their keys and values; `held` is changed in place."""
        self.calls.append([ids.shape[1], int((ids == self.mask_id).sum())])
        before = self.kept[0][0].shape[1] if self.kept else 0
        n, fresh = ids.shape[1], []

        def attend(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if held is not None:
                for whole, part in zip(held[i], (k, v), strict=True):
                    whole[:, offset : offset + n] = part
                k, v = held[i]
            fresh.append((k, v))
            if self.kept:
                k, v = torch.cat([self.kept[i][0], k], 1), torch.cat([self.kept[i][1], v], 1)
            seen = None
            if rule is not None:
                seen = (before + torch.arange(n))[:, None] // rule >= torch.arange(k.shape[1])[None] // rule
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True).transpose(1, 2)

        with torch.no_grad():
            at = before + offset + torch.arange(n)
            hidden = self.model.norm(self.model.run(self.model.embed_ids(ids), at, attend))
        if keep:
            self.kept = [
                tuple(torch.cat(pair, 1) for pair in zip(old, new, strict=True))
                for old, new in zip(self.kept, fresh, strict=True)
            ] if self.kept else fresh  # fmt: skip
        return self.model.logits(hidden), fresh

    def drop(self, gone: list[bool]) -> None:
        stay = ~torch.tensor(gone)
        self.kept = [(k[stay], v[stay]) for k, v in self.kept]


def shifted(logits: Tensor) -> Tensor:
    return torch.cat([logits[:, :1], logits[:, :-1]], 1)


def small_step(net: Net, call: Call, block: Tensor, s: int, held: KV | None) -> tuple[Tensor, KV | None]:
    """One denoising forward for the sub-block at s; block [B, D] is changed. Also which rows committed the stop id."""
    part = slice(s, s + call.small)
    if call.cached and held is not None and not bool((block[:, s] == net.mask_id).any()):
        logits, _ = net(block[:, part], None, held=held, offset=s)
        y = shifted(logits)
    else:
        logits, fresh = net(block)
        held = [(k.clone(), v.clone()) for k, v in fresh] if call.cached else None
        y = shifted(logits)[:, part]
    prob, token = y.softmax(-1).max(-1)
    open_ = block[:, part] == net.mask_id
    prob = torch.where(open_, prob, -torch.inf)
    take = prob > call.threshold
    take[torch.arange(len(take)), prob.argmax(1)] = True
    take &= open_
    block[:, part][take] = token[take]
    return ((token == call.stop) & take).any(1), held


def generate(net: Net, prompt: list[int], call: Call) -> list[int]:
    size, ids, answer = call.block, list(prompt), len(prompt)
    if len(ids) > size:
        logits, _ = net(torch.tensor([ids[: len(ids) // size * size]]), size, keep=True)
        if len(ids) % size == 0:
            ids.append(int(logits[0, -1].argmax()))
    for _ in range(call.new // size):
        if call.stop in ids[answer:]:
            break
        start, held = len(ids), None
        ids += [net.mask_id] * (size - start % size)
        block = torch.tensor([ids[-size:]])
        first = size - (len(ids) - start)

        def stopped(block: Tensor = block, first: int = first) -> bool:
            new = block[0, first:].tolist()
            return call.stop in new and net.mask_id not in new[: new.index(call.stop)]

        for s in range(0, size, call.small):
            while bool((block[0, s : s + call.small] == net.mask_id).any()) and not stopped():
                _, held = small_step(net, call, block, s, held)
        ids[-size:] = block[0].tolist()
        if stopped():
            break
        logits, _ = net(block, size, keep=True)
        ids.append(int(logits[0, -1].argmax()))
    return ids[: ids.index(call.stop, answer) + 1] if call.stop in ids[answer:] else ids


def batch_sample(net: Net, prompts: list[list[int]], call: Call) -> list[list[int]]:
    size, lengths = call.block, [len(p) for p in prompts]
    least, width = min(lengths), max(lengths)
    x = torch.tensor([p + [net.mask_id] * (width - len(p)) for p in prompts])
    last = call.new // size + width // size
    if least > size:
        logits, _ = net(x[:, : least // size * size], size, keep=True)
        if least % size == 0:
            best = logits[:, -1].argmax(-1)
            if width == least:
                x = torch.cat([x, best[:, None]], 1)
            else:
                shortest = torch.tensor(lengths) == least
                x[shortest, least] = best[shortest]
    at, names = torch.tensor(lengths) // size, list(range(len(prompts)))
    starts, done, out = list(lengths), torch.zeros(len(prompts), dtype=torch.bool), {}
    for b in range(least // size, last):
        if not names:
            break
        if bool((at == b).all()):
            x = F.pad(x, (0, size - x.shape[1] % size), value=net.mask_id)
        end = (b + 1) * size
        block, held = x[:, end - size : end].clone(), None
        for s in range(0, size, call.small):
            while bool((block[:, s : s + call.small] == net.mask_id).any()):
                stop, held = small_step(net, call, block, s, held)
                done |= stop
        row = torch.cat([x[:, : end - size], block], 1)
        for i in done.nonzero().flatten().tolist():
            new = row[i, starts[i] :].tolist()
            row[i, starts[i] + new.index(call.stop) + 1 :] = call.pad
        if not bool(done.all()):
            logits, _ = net(block, size, keep=True)
            bonus = torch.where(done, call.pad, logits[:, -1].argmax(-1))
            row = torch.cat([row, bonus[:, None]], 1)
            here = at == b
            if x.shape[1] <= end + 1:
                x = row
            else:
                x[:, :end] = row[:, :end]
                x[here, end] = bonus[here]
        at[at == b] = b + 1
        for i in done.nonzero().flatten().tolist():
            out[names[i]] = row[i].tolist()
        stay = [i for i in range(len(names)) if not bool(done[i])]
        if len(stay) < len(names) and stay:
            net.drop(done.tolist())
        names, starts = [names[i] for i in stay], [starts[i] for i in stay]
        x, at, row, done = x[stay], at[stay], row[stay], done[stay]
    for i, name in enumerate(names):
        out[name] = row[i].tolist()
    return [out[i] for i in range(len(prompts))]
