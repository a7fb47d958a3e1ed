"""bf16 golden vectors of the norm's cast order and both RoPE precisions, by the published formulas cast by cast.

`python tests/ops/bf16_golden.py --write` writes the table anew; nothing else does. Numbers are hex of the 16 bits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

TABLE = Path(__file__).with_name("bf16_golden.json")
BF16 = torch.bfloat16


def bits(x: Tensor) -> str:
    """Row-major hex of the 16-bit words."""
    return "".join(f"{v & 0xFFFF:04x}" for v in x.contiguous().view(torch.int16).flatten().tolist())


def tensor(text: str, *shape: int) -> Tensor:
    words = [int(text[i : i + 4], 16) for i in range(0, len(text), 4)]
    signed = [w - 0x10000 if w >= 0x8000 else w for w in words]
    return torch.tensor(signed, dtype=torch.int16).view(BF16).reshape(shape)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """float32 statistics, back to bf16, then times the weight in bf16."""
    wide = x.to(torch.float32)
    variance = (wide * wide).sum(-1, keepdim=True) / x.shape[-1]
    return (wide / torch.sqrt(variance + eps)).to(BF16) * weight


def norm_late_cast(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The other order, which no published model uses: times the weight first, then back to bf16."""
    wide = x.to(torch.float32)
    variance = (wide * wide).sum(-1, keepdim=True) / x.shape[-1]
    return (wide / torch.sqrt(variance + eps) * weight.float()).to(BF16)


def rope(x: Tensor, positions: Tensor, theta: float, full_precision: bool) -> Tensor:
    """x [n, H, D]: dimension j turns with j + D/2; in float32 (LLaDA), or with everything in bf16 (Dream)."""
    half = x.shape[-1] // 2
    frequency = 1.0 / theta ** (torch.arange(half, dtype=torch.float32) * 2 / x.shape[-1])
    angle = positions[:, None, None].float() * frequency
    cos, sin = angle.cos(), angle.sin()
    if full_precision:
        x = x.float()
    else:
        cos, sin = cos.to(BF16), sin.to(BF16)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos + (-b) * sin, b * cos + a * sin), -1).to(BF16)


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [6, 48], weight [48], q [5, 2, 16], positions [5]."""
    draw = torch.Generator().manual_seed(2024)
    x = (torch.randn(6, 48, generator=draw) * torch.logspace(-3, 3, 6)[:, None]).to(BF16)
    weight = (1 + 0.5 * torch.randn(48, generator=draw)).to(BF16)
    q = (3 * torch.randn(5, 2, 16, generator=draw)).to(BF16)
    return x, weight, q, torch.tensor([0, 1, 7, 500, 4095])


def stored(saved: dict[str, str]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The inputs as the table holds them (drawing them again may differ on another machine)."""
    return tensor(saved["x"], 6, 48), tensor(saved["weight"], 48), tensor(saved["q"], 5, 2, 16), inputs()[3]


def table(x: Tensor, weight: Tensor, q: Tensor, positions: Tensor) -> dict[str, str]:
    made = {
        "x": x,
        "weight": weight,
        "q": q,
        "norm": norm(x, weight, 1e-5),
        "norm_late_cast": norm_late_cast(x, weight, 1e-5),
        "rope_float32": rope(q, positions, 500_000.0, True),
        "rope_hidden": rope(q, positions, 500_000.0, False),
    }
    return {name: bits(value) for name, value in made.items()}


def main() -> int:
    if sys.argv[1:] != ["--write"]:
        print(__doc__)
        return 2
    TABLE.write_text(json.dumps(table(*inputs()), indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
