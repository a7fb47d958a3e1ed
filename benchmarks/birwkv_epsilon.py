"""Does noise prediction learn more than the closed-form linear answer?

    unmask train recipes/birwkv_text.yaml 'data.source.paths=[train.jsonl]' model.prediction_type=epsilon \
        objective.mode=diffusion run.steps=1500 run.threads=1 --out runs/epsilon
    python benchmarks/birwkv_epsilon.py runs/epsilon/model --train train.jsonl --data held_out.jsonl

At low signal the noised vector is nearly the noise itself, so a small error of the noise means nothing by itself. Mean
squared error per number of held-out text, at levels spread evenly over the model's range as in training, for: the
scaled input (sigma z, the best answer for vectors of unit variance), the best linear answer for the tokens' true mean
and covariance, the best answer without context (Bayes-unigram), and the model, without and with its own estimate.
"""

from __future__ import annotations

import argparse
import json

import torch
from birwkv_text import frequencies, rows_of, texts
from torch import Tensor

from unmask import load
from unmask.models.birwkv_net import NOISY, BiRWKV
from unmask.ops import vp

NAMES = ("scaled", "linear", "unigram", "net", "hinted")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a birwkv model with prediction_type epsilon")
    parser.add_argument("--train", required=True, help="the text it learned: frequencies")
    parser.add_argument("--data", required=True, help="held-out text")
    parser.add_argument("--levels", type=int, default=25, help="noise levels over the range (default: 25)")
    parser.add_argument("--rounds", type=int, default=2, help="draws of noise per level (default: 2)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load(args.model, dtype="fp32", device="cpu")
    net = model.denoiser.model
    assert isinstance(net, BiRWKV) and net.cfg.prediction == "epsilon" and model.codec is not None
    codec, eos = model.codec, model.traits.eos_ids[0]
    train, held = ([i for t in texts(p) for i in [*codec.encode(t), eos]] for p in (args.train, args.data))
    frequency = frequencies(train, net.cfg.vocab_size)
    levels = torch.linspace(*net.cfg.levels, args.levels).tolist()
    rows = [errors(net, rows_of(held), frequency, level, args.rounds) for level in levels]
    found = {"levels": rows, "mean": {n: sum(r[n] for r in rows) / len(rows) for n in NAMES}}
    print(json.dumps(found, indent=2) if args.json else shown(found))
    return 0


@torch.no_grad()
def errors(net: BiRWKV, ids: Tensor, frequency: Tensor, level: float, rounds: int) -> dict[str, float]:
    """Mean squared error of the noise per number, by each answer."""
    clean, table = net.table[ids].float(), net.table.float()
    totals = dict.fromkeys(NAMES, 0.0)
    for seed in range(rounds):
        eps = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
        z = vp.add_noise(clean, eps, level)
        said = without_context(z, table, frequency, level) | of_model(net, z, level)
        for name in NAMES:
            totals[name] += float((said[name] - eps).square().mean()) / rounds
    return {"level": level, **totals}


def without_context(z: Tensor, table: Tensor, frequency: Tensor, level: float) -> dict[str, Tensor]:
    """The answers that look at one position only."""
    alpha, sigma = (float(x) for x in vp.alpha_sigma(level))
    mean = frequency @ table
    away = table - mean
    spread = alpha**2 * (away.T * frequency) @ away + sigma**2 * torch.eye(table.shape[1])
    linear = sigma * torch.linalg.solve(spread, (z - alpha * mean).flatten(0, 1).T).T.view(z.shape)
    posterior = torch.softmax(frequency.log() + vp.evidence(torch.tensor(level)) * (z @ table.T), -1)
    return {"scaled": sigma * z, "linear": linear, "unigram": vp.to_epsilon(posterior @ table, z, level)}


def of_model(net: BiRWKV, z: Tensor, level: float) -> dict[str, Tensor]:
    """What the model says, without and with its own estimate of the clean vectors."""
    rows = z.shape[0]
    tau = net.condition(torch.full((rows,), level), torch.ones(rows, dtype=torch.bool))
    kinds = torch.full(z.shape[:2], NOISY)
    wide = tau[:, None].expand(-1, z.shape[1], -1)

    def said(hint: Tensor | None) -> Tensor:
        return net.vector(net.run(net.enter(z, hint, kinds), tau), wide)

    first = said(None)
    return {"net": first, "hinted": said(vp.to_clean(first, z, level, "epsilon"))}


def shown(found: dict[str, object]) -> str:
    """Markdown."""
    lines = ["| log SNR | sigma z | best linear | Bayes-unigram | model | with its own estimate |", "|---" * 6 + "|"]
    rows, mean = found["levels"], found["mean"]
    assert isinstance(rows, list) and isinstance(mean, dict)
    lines += [f"| {r['level']:.2f} | " + " | ".join(f"{r[n]:.4f}" for n in NAMES) + " |" for r in rows]
    lines.append("| mean | " + " | ".join(f"{mean[n]:.4f}" for n in NAMES) + " |")
    lines += ["", *(f"the model's mean is {1 - mean['net'] / mean[n]:.1%} below {n}'s" for n in NAMES[:3])]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
