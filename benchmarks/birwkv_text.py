"""What a BiRWKV model learned of a text: bits per character by masks and by continuous diffusion, samples, conditions.

    unmask train recipes/birwkv_text.yaml 'data.source.paths=[train.jsonl]' --out runs/birwkv-text
    python benchmarks/birwkv_text.py runs/birwkv-text/model --train train.jsonl --data held_out.jsonl

Both files have one JSON object with a field `text` a line. The numbers are those of docs/benchmarks/birwkv.md; with a
tokenizer of single bytes (as the recipe's) and ASCII text a token is a character. Bits are log base 2, per character of
held-out text. "Bayes-unigram" is the best answer without any context: character frequencies and the noised vector's own
evidence.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unmask import load
from unmask.models.birwkv_net import MASKED, NOISY, BiRWKV
from unmask.noise.gaussian import snr_threshold
from unmask.ops import vp
from unmask.pipeline.model import Model

LENGTH, ROWS = 128, 48
RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
AROUND = (-5.0, -3.0, -2.0, -1.0, -0.4, 0.0, 0.6, 1.6)
SAMPLERS = {
    "ddpm-32": {"policy": "ddpm(steps=32)"},
    "ddpm-128": {"policy": "ddpm(steps=128)"},
    "ddpm-128 at 0.8": {"policy": "ddpm(steps=128)", "temperature": 0.8},
    "ddim-32": {"policy": "ddim(steps=32)"},
    "ddim-128": {"policy": "ddim(steps=128)"},
    "dpmpp-32": {"policy": "dpmpp(steps=32)"},
    "masks-32": {"policy": "dream(alg='origin', steps=32)", "temperature": 0.9},
    "masks-128": {"policy": "dream(alg='origin', steps=128)", "temperature": 0.9},
}
BITS = math.log(2.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a trained birwkv model")
    parser.add_argument("--train", required=True, help="the text it learned: words and frequencies")
    parser.add_argument("--data", required=True, help="held-out text")
    parser.add_argument("--samples", type=int, default=24, help="texts per sampler (default: 24)")
    parser.add_argument("--chars", type=int, default=64, help="characters of each (default: 64)")
    parser.add_argument("--rounds", type=int, default=8, help="draws of noise per number (default: 8)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load(args.model, dtype="fp32", device="cpu", slots=args.samples)
    found = measure(model, texts(args.train), texts(args.data), args)
    print(json.dumps(found, indent=2) if args.json else shown(found))
    return 0


def texts(path: str) -> list[str]:
    """The records' texts."""
    return [json.loads(line)["text"] for line in Path(path).read_text("utf-8").splitlines()]


@torch.no_grad()
def measure(model: Model, train: Sequence[str], held: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """All numbers."""
    net = model.denoiser.model
    assert isinstance(net, BiRWKV) and model.codec is not None, "a birwkv model with a tokenizer"
    eos = model.traits.eos_ids[0]
    ids = rows_of([*(i for t in held for i in [*model.codec.encode(t), eos])])
    frequency = frequencies([*(i for t in train for i in [*model.codec.encode(t), eos])], net.cfg.vocab_size)
    out: dict[str, Any] = {"unigram": float(-frequency[ids].log().mean() / BITS)}
    out["mask_nelbo"], out["mask_nelbo_se"] = spread([nelbo(net, ids, s) for s in range(args.rounds)])
    out["ce_by_ratio"] = {r: mean(lambda s, r=r: masked_ce(net, ids, r, s), args.rounds) for r in RATIOS}
    centre = snr_threshold(net.cfg.vocab_size, net.cfg.embed_dim)
    out["identified_at"] = centre
    out["by_level"] = [level_row(net, ids, frequency, centre + a, args.rounds) for a in AROUND]
    out["by_level"].append(level_row(net, ids, frequency, -1.0, args.rounds))
    out["conditioning"] = conditioning(net, ids, args.rounds)
    words = known_words(train)
    out["held_out_text"] = quality([t[: args.chars] for t in held[: args.samples]], words, held, args.chars)
    out["boundary"] = boundary(model, words, held, args)
    out["samples"] = {name: sampled(model, options, words, held, args) for name, options in SAMPLERS.items()}
    return out


# ---- likelihood ------------------------------------------------------------------------------------------------------


def rows_of(ids: list[int]) -> Tensor:
    """Rows of LENGTH from the start of the text."""
    count = min(ROWS, len(ids) // LENGTH)
    return torch.tensor(ids[: count * LENGTH]).view(count, LENGTH)


def frequencies(ids: list[int], vocab: int) -> Tensor:
    counts = torch.bincount(torch.tensor(ids), minlength=vocab).double() + 0.1
    return (counts / counts.sum()).float()


def logits_at(
    net: BiRWKV,
    ids: Tensor,
    kinds: Tensor,
    level: float | None,
    vectors: Tensor,
    hint: Tensor | None,
    tau: Tensor | None = None,
) -> Tensor:
    """Logits [B, T, V] for kinds [B, T]; a level where some rows are noised."""
    rows, length = ids.shape
    noised = torch.full((rows,), level is not None)
    if tau is None:
        tau = net.condition(torch.full((rows,), level or 0.0), noised)
    hidden = net.run(net.enter(vectors, hint, kinds), tau)
    each = torch.where(kinds == NOISY, level if level is not None else torch.inf, torch.inf)
    return net.speak(hidden.flatten(0, 1), vectors.flatten(0, 1), each.flatten()).view(rows, length, -1)


def masked_ce(net: BiRWKV, ids: Tensor, ratio: float, seed: int) -> float:
    """Bits per hidden character with this share hidden."""
    hidden = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)) < ratio
    logits = logits_at(net, ids, hidden.long() * MASKED, None, net.table[ids], None)
    return float(F.cross_entropy(logits[hidden], ids[hidden])) / BITS


def nelbo(net: BiRWKV, ids: Tensor, seed: int) -> float:
    """LLaDA's bound, bits per character: share hidden t, cross-entropy / t, t spread over the rows."""
    rng = torch.Generator().manual_seed(1000 + seed)
    rows = ids.shape[0]
    t = (torch.arange(rows) + torch.rand(1, generator=rng)) / rows
    t = (1e-3 + (1 - 1e-3) * t[torch.randperm(rows, generator=rng)])[:, None].expand(ids.shape)
    hidden = torch.rand(ids.shape, generator=rng) < t
    logits = logits_at(net, ids, hidden.long() * MASKED, None, net.table[ids], None)
    ce = F.cross_entropy(logits[hidden], ids[hidden], reduction="none")
    return float((ce / t[hidden]).sum() / ids.numel()) / BITS


def level_row(net: BiRWKV, ids: Tensor, frequency: Tensor, level: float, rounds: int) -> dict[str, float]:
    """Bits per character at one noise level: without context, the model, the model with its own estimate as hint."""
    names = ("unigram", "net", "hinted")
    found = [_level(net, ids, frequency, level, seed) for seed in range(rounds)]
    return {"level": level, **{n: sum(f[i] for f in found) / rounds for i, n in enumerate(names)}}


def _level(net: BiRWKV, ids: Tensor, frequency: Tensor, level: float, seed: int) -> tuple[float, float, float]:
    clean = net.table[ids].float()
    z = vp.add_noise(clean, torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)), level)
    kinds = torch.full(ids.shape, NOISY)
    plain = logits_at(net, ids, kinds, level, z, None)
    tau = net.condition(torch.full((ids.shape[0],), level), torch.ones(ids.shape[0], dtype=torch.bool))
    if net.cfg.prediction == "sample":
        hint = torch.softmax(plain, -1) @ net.table.float()
    else:
        hidden = net.run(net.enter(z, None, kinds), tau).flatten(0, 1)
        each = torch.full((ids.numel(),), level)
        wide = tau[:, None].expand(-1, ids.shape[1], -1).flatten(0, 1)
        hint = net.denoised(hidden, wide, plain.flatten(0, 1), z.flatten(0, 1), each).view(z.shape)
    hinted = logits_at(net, ids, kinds, level, z, hint)
    alone = frequency.log() + vp.evidence(torch.tensor(level)) * (z @ net.table.float().T)
    return tuple(float(F.cross_entropy(x.flatten(0, 1), ids.flatten())) / BITS for x in (alone, plain, hinted))  # type: ignore[return-value]


def conditioning(net: BiRWKV, ids: Tensor, rounds: int) -> dict[str, float]:
    """Does a given first half help the second, and does the model look at the noise level?"""
    half, found = ids.shape[1] // 2, []
    for seed in range(rounds):
        rng = torch.Generator().manual_seed(seed)
        kinds = torch.zeros_like(ids)
        kinds[:, half:] = MASKED
        other = torch.cat([ids[torch.randperm(len(ids), generator=rng), :half], ids[:, half:]], 1)
        near = [first_bits(net, x, kinds, ids[:, half : half + 8]) for x in (ids, other)]
        levels = torch.empty(len(ids)).uniform_(-3.0, 1.0, generator=rng)
        clean = net.table[ids].float()
        z = vp.add_noise(clean, torch.randn(clean.shape, generator=rng), levels)
        noisy, every = torch.full(ids.shape, NOISY), torch.ones(len(ids), dtype=torch.bool)
        right = net.condition(levels, every)
        both = []
        for tau in (right, right[torch.randperm(len(ids), generator=rng)]):
            hidden = net.run(net.enter(z, None, noisy), tau)
            each = levels[:, None].expand(ids.shape).flatten()
            both.append(
                float(F.cross_entropy(net.speak(hidden.flatten(0, 1), z.flatten(0, 1), each), ids.flatten())) / BITS
            )
        found.append((*near, *both))
    names = ("true_prompt", "shuffled_prompt", "right_level", "permuted_level")
    return {n: sum(f[i] for f in found) / rounds for i, n in enumerate(names)}


def first_bits(net: BiRWKV, given: Tensor, kinds: Tensor, target: Tensor) -> float:
    """Bits of the first hidden characters."""
    start = given.shape[1] // 2
    logits = logits_at(net, given, kinds, None, net.table[given], None)[:, start : start + target.shape[1]]
    return float(F.cross_entropy(logits.flatten(0, 1), target.flatten())) / BITS


# ---- samples ---------------------------------------------------------------------------------------------------------


def sampled(
    model: Model, options: dict[str, Any], words: set[str], held: Sequence[str], args: argparse.Namespace
) -> dict[str, Any]:
    """Texts from nothing but an end of text before them."""
    prompt = [model.traits.eos_ids[0]]
    made = model.generate(
        [prompt], samples=args.samples, max_tokens=args.chars, schedule="whole", logits_eos_inf=True, **options
    )
    assert isinstance(made, list) and model.codec is not None
    written = [model.codec.decode(list(m.ids)) for m in made]
    assert all(model.traits.mask_id not in m.ids for m in made), "a mask is left"
    nfe = sum(m.nfe for m in made) / len(made)
    return {**quality(written, words, held, args.chars), "nfe": nfe, "texts": written[:4]}


def boundary(model: Model, words: set[str], held: Sequence[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """The boundary cache against none: 32 given characters of held-out texts, 128 new ones in blocks."""
    assert model.codec is not None
    prompts = [model.codec.encode(t)[:32] for t in held[: args.samples]]
    rows = []
    for schedule, policy in (("blocks(16)", "low_confidence(steps=64)"), ("blocks(32)", "threshold(0.9)")):
        plain: list[list[int]] = []
        for cache in ("none", "boundary", "boundary(refresh=4)", "boundary(refresh=1)"):
            begun = time.process_time()
            made = model.generate(
                prompts, max_tokens=128, schedule=schedule, policy=policy, cache=cache, logits_eos_inf=True
            )
            assert isinstance(made, list)
            seconds, ids = time.process_time() - begun, [list(m.ids) for m in made]
            plain = plain or ids
            pairs = [list(zip(a, b, strict=True)) for a, b in zip(plain, ids, strict=True)]
            first = sorted(next((i for i, (a, b) in enumerate(p) if a != b), 128) for p in pairs)
            same = sum(a == b for p in pairs for a, b in p) / sum(map(len, pairs))
            known = quality([model.codec.decode(i) for i in ids], words, held, 128)["known_words"]
            row = {
                "schedule": schedule,
                "policy": policy,
                "cache": cache,
                "same": same,
                "first": first[len(first) // 2],
            }
            rows.append({**row, "known_words": known, "cpu_seconds": seconds})
    return rows


def known_words(train: Sequence[str]) -> set[str]:
    return {w for t in train for w in re.findall(r"[a-z]{3,}", t.lower())}


def quality(made: Sequence[str], words: set[str], held: Sequence[str], chars: int) -> dict[str, float]:
    """Share of known words among those of three letters or more (the last one, cut by the length, is left out),
    entropy of characters, distinct 4-grams against the data's."""
    inner = [w for t in made for w in re.findall(r"[A-Za-z]{3,}", re.sub(r"[A-Za-z]+$", "", t))]
    data = [t[:chars] for t in held if len(t) >= chars][: len(made)]
    return {
        "known_words": sum(w.lower() in words for w in inner) / max(1, len(inner)),
        "entropy": entropy("".join(made)),
        "distinct_4": distinct(made) / max(1e-9, distinct(data)),
    }


def entropy(text: str) -> float:
    counts = Counter(text)
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values())


def distinct(made: Sequence[str]) -> float:
    grams = [t[i : i + 4] for t in made for i in range(len(t) - 3)]
    return len(set(grams)) / max(1, len(grams))


def mean(f: Callable[[int], float], rounds: int) -> float:
    return sum(f(s) for s in range(rounds)) / rounds


def spread(values: Sequence[float]) -> tuple[float, float]:
    t = torch.tensor(values, dtype=torch.float64)
    return float(t.mean()), float(t.std() / len(values) ** 0.5)


def shown(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"Unigram entropy {found['unigram']:.2f} bits; "
        f"mask bound {found['mask_nelbo']:.3f} ± {found['mask_nelbo_se']:.3f} bits",
        "",
        "| share hidden | " + " | ".join(f"{r:g}" for r in found["ce_by_ratio"]) + " |",
        "|---" * (len(found["ce_by_ratio"]) + 1) + "|",
        "| bits per hidden character | " + " | ".join(f"{v:.2f}" for v in found["ce_by_ratio"].values()) + " |",
        "",
        f"Tokens can be told apart from {found['identified_at']:.2f} nats on.",
        "",
        "| log SNR | Bayes-unigram | model | with its own estimate |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {r['level']:.2f} | {r['unigram']:.3f} | {r['net']:.3f} | {r['hinted']:.3f} |" for r in found["by_level"]
    ]
    c = found["conditioning"]
    lines += [
        "",
        f"First 8 hidden characters after 64 given ones: {c['true_prompt']:.2f} bits; "
        f"after another text's: {c['shuffled_prompt']:.2f}. "
        f"Noised, levels -3 to 1: {c['right_level']:.2f} bits; told another row's level: {c['permuted_level']:.2f}.",
        "",
        "| samples | forwards | known words | character entropy | distinct 4-grams / data's |",
        "|---|---|---|---|---|",
    ]
    table = {"held-out text": found["held_out_text"], **found["samples"]}
    for name, q in table.items():
        nfe = f"{q['nfe']:.0f}" if "nfe" in q else ""
        lines.append(f"| {name} | {nfe} | {q['known_words']:.2f} | {q['entropy']:.2f} | {q['distinct_4']:.2f} |")
    lines += ["", "| schedule, policy | cache | tokens as without | first other one (median) | known words | CPU s |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in found["boundary"]:
        said = f"| {row['schedule']}, {row['policy']} | {row['cache']} | {row['same']:.2f} | {row['first']} "
        lines.append(f"{said}| {row['known_words']:.2f} | {row['cpu_seconds']:.1f} |")
    for name, q in found["samples"].items():
        lines += ["", f"{name}:", "", *(f"    {json.dumps(t)}" for t in q["texts"][:2])]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
