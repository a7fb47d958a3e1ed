"""Low-rank adapters (LoRA, arXiv 2106.09685): train a few percent of a checkpoint, then fold them into its tensors.

Enters: a loaded backbone and a `LoraConfig`. Leaves: the same backbone with frozen weights and small trainable ones
beside them; after `merge` (or with `folded` weights) a plain one again, to be saved under the published names. The
frozen parameters keep their names, so that every name map of the project still holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.core.errors import ConfigError
from unmask.models.transformer import Transformer

TARGETS = ("qkv", "out", "gate_up", "down")


@dataclass(frozen=True)
class LoraConfig:
    """Args:
    rank: width of an adapter. alpha: its output is scaled by alpha / rank.
    targets: the projections of every layer that get one, by our fused names (q, k, v share one; so do gate and up).
    dropout: share of an adapter's inputs dropped in training. It draws from torch's global generator, so a resumed run
        is bit-equal to an uninterrupted one only without it.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = TARGETS
    dropout: float = 0.0

    def __post_init__(self) -> None:
        known = ", ".join(TARGETS)
        checks = (
            ("rank", self.rank >= 1, "1 or more"),
            ("alpha", self.alpha > 0, "above 0"),
            ("targets", bool(self.targets) and set(self.targets) <= set(TARGETS), f"one or more of {known}"),
            ("dropout", 0.0 <= self.dropout < 1.0, "0 <= dropout < 1"),
        )
        for name, good, expected in checks:
            if not good:
                raise ConfigError(f"lora.{name} is out of range", expected=expected, got=str(getattr(self, name)))


class LoraLinear(nn.Linear):
    """A frozen linear map plus B A x * scale. A [rank, in], B [out, rank], B zero at first."""

    def __init__(self, base: nn.Linear, cfg: LoraConfig, rng: torch.Generator) -> None:
        nn.Module.__init__(self)  # the parameters are the base's own: nothing is allocated twice
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.scale, self.dropout = cfg.alpha / cfg.rank, cfg.dropout
        bound = 1 / math.sqrt(base.in_features)
        a = torch.rand(cfg.rank, base.in_features, generator=rng) * (2 * bound) - bound
        self.lora_a = nn.Parameter(a.to(base.weight.device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, cfg.rank, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.weight, self.bias)
        inner = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return out + (F.linear(F.linear(inner.to(self.lora_a.dtype), self.lora_a), self.lora_b) * self.scale).to(
            out.dtype
        )


class LoraEmbedding(nn.Embedding):
    """A frozen embedding with trainable additions to a few rows (a new mask token). rows [n], delta [n, C], zero at
    first.

    A tied head reads the frozen row until the merge; a mask token is never an answer.
    """

    def __init__(self, base: nn.Embedding, rows: Sequence[int]) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = base.num_embeddings, base.embedding_dim
        self.padding_idx, self.max_norm, self.norm_type = None, None, 2.0
        self.scale_grad_by_freq = self.sparse = False
        self.weight = base.weight
        self.rows = tuple(rows)
        self.lora_rows = nn.Parameter(torch.zeros(len(rows), base.embedding_dim, device=base.weight.device))

    def forward(self, ids: Tensor) -> Tensor:
        out = F.embedding(ids, self.weight)
        for row, delta in zip(self.rows, self.lora_rows, strict=True):
            out = out + (ids == row).unsqueeze(-1) * delta.to(out.dtype)
        return out


def inject(model: Transformer, cfg: LoraConfig, seed: int, rows: Sequence[int] = ()) -> None:
    """Freezes the model and gives the targets of every layer an adapter; the outputs stay as they are.

    Args:
        seed: of the adapters' first values.
        rows: embedding rows that are trained too, such as a new mask token's.

    Raises:
        ConfigError: adapters there already, or a row outside the vocabulary.
    """
    if lora_state(model):
        raise ConfigError("the model has adapters already", remedy="merge them first")
    outside = [r for r in rows if not 0 <= r < model.cfg.vocab_size]
    if outside:
        raise ConfigError("lora rows", expected=f"ids from 0 to {model.cfg.vocab_size - 1}", got=str(outside[0]))
    rng = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for layer in model.layers:
        for name in (t for t in TARGETS if t in cfg.targets):
            setattr(layer, name, LoraLinear(getattr(layer, name), cfg, rng))
    if rows:
        model.embed = LoraEmbedding(model.embed, rows)


def lora_state(model: Transformer) -> dict[str, Tensor]:
    """The trained tensors by name: what a checkpoint of a LoRA run needs beside the parent."""
    return {n: p.detach() for n, p in model.named_parameters() if _is_adapter(n)}


def load_lora_state(model: Transformer, state: Mapping[str, Tensor]) -> None:
    """Puts back what `lora_state` took.

    Raises:
        ConfigError: adapters of another shape or on other targets.
    """
    mine = lora_state(model)
    if {n: t.shape for n, t in mine.items()} != {n: t.shape for n, t in state.items()}:
        raise ConfigError("adapters to load", expected=f"the {len(mine)} tensors of this LoraConfig", got="others")
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(state[name])


def folded(model: nn.Module, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The parameters of the plain model by our names, adapters folded in; the model stays as it is.

    Args:
        weights: values to use instead of the model's own (a moving average), adapters among them.
    """
    given = weights or {n: p.detach() for n, p in model.named_parameters()}
    out = {n: t for n, t in given.items() if not _is_adapter(n)}
    for prefix, module in model.named_modules():
        name = f"{prefix}.weight"
        if isinstance(module, LoraLinear):
            a, b = given[f"{prefix}.lora_a"].float(), given[f"{prefix}.lora_b"].float()
            out[name] = (out[name].float() + module.scale * (b @ a)).to(out[name].dtype)
        elif isinstance(module, LoraEmbedding):
            rows = torch.tensor(module.rows, device=out[name].device)
            delta = given[f"{prefix}.lora_rows"].to(out[name].dtype)
            out[name] = out[name].index_add(0, rows, delta)
    return out


def merge(model: Transformer) -> None:
    """Folds the adapters into the weights, in place; the model is plain again, and all of it trainable."""
    with torch.no_grad():
        for name, value in folded(model).items():
            parameter = model.get_parameter(name)
            if value.data_ptr() != parameter.data_ptr():
                parameter.copy_(value)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, LoraLinear | LoraEmbedding):
                setattr(module, name, _plain(child))
    model.requires_grad_(True)


def _plain(module: LoraLinear | LoraEmbedding) -> nn.Module:
    """The layer without its adapter, around the same parameters."""
    plain: nn.Module
    if isinstance(module, LoraLinear):
        plain = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
        plain.weight, plain.bias = module.weight, module.bias
    else:
        plain = nn.Embedding(module.num_embeddings, module.embedding_dim, device="meta")
        plain.weight = module.weight
    return plain


def _is_adapter(name: str) -> bool:
    return name.rpartition(".")[2].startswith("lora_")
