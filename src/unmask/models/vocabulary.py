"""Room for a new token in the embedding and the head of a loaded model.

Enters: a backbone and an id. Leaves: the backbone, in place, with a row for that id. Published vocabularies are padded
(Qwen2.5 has 151,665 tokens in 151,936 rows), so that most often a row is there and no shape changes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from unmask.models.transformer import Layer, Transformer

MULTIPLE = 64
"""A vocabulary that grows does so to a multiple of this, as the published ones are padded."""


def make_room(model: Transformer, token: int, tokens: int, fresh: bool = True) -> int:
    """A row for id `token` in the embedding and, if it is a matrix of its own, in the head; other rows keep their bits.

    Args:
        tokens: rows that were trained, from 0 on; new rows begin as their mean.
        fresh: begin the row anew also where there is one (among the padding).

    Returns:
        Rows added; the model's config has the new vocab_size then.
    """
    rows = model.cfg.vocab_size
    wanted = rows if token < rows else -(-(token + 1) // MULTIPLE) * MULTIPLE
    with torch.no_grad():
        model.embed.weight = _with_rows(model.embed.weight, wanted, token, tokens, fresh)
        if model.head is not None:
            model.head.weight = _with_rows(model.head.weight, wanted, token, tokens, fresh)
    if wanted > rows:
        _resize(model, wanted)
    return wanted - rows


def _with_rows(weight: Tensor, rows: int, token: int, tokens: int, fresh: bool) -> nn.Parameter:
    assert isinstance(weight, nn.Parameter)
    mean = weight[:tokens].float().mean(0).to(weight.dtype)
    if rows > len(weight):
        return nn.Parameter(torch.cat([weight, mean.expand(rows - len(weight), -1)]), weight.requires_grad)
    if fresh:
        weight[token] = mean
    return weight


def _resize(model: Transformer, rows: int) -> None:
    """Every place that states the size."""
    model.cfg = replace(model.cfg, vocab_size=rows)
    model.embed.num_embeddings = rows
    if model.head is not None:
        model.head.out_features = rows
    for layer in model.layers:
        assert isinstance(layer, Layer)
        layer.cfg = model.cfg
