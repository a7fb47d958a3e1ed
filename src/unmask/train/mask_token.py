"""A model and its tokenizer that get a mask token: what an autoregressive parent needs to become a diffusion model.

Enters: a backbone and its tokenizer's directory. Leaves: the backbone with a row for the token, the tokenizer's files
and the token's id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unmask.core.errors import CheckpointError
from unmask.models.transformer import Transformer
from unmask.models.vocabulary import make_room
from unmask.text.mask_token import MASK_TOKEN, mask_token


@dataclass(frozen=True)
class WithMaskToken:
    """files: the tokenizer's, by name. added: it knew no mask token before. rows: rows added to the vocabulary."""

    model: Transformer
    files: Mapping[str, bytes]
    mask_id: int
    token: str
    added: bool
    rows: int


def with_mask_token(
    model: Transformer,
    tokenizer_dir: str | Path,
    token: str = MASK_TOKEN,
    row: Literal["auto", "mean", "keep"] = "auto",
    config: Mapping[str, Any] | None = None,
) -> WithMaskToken:
    """The model, changed in place, and its tokenizer with a mask token.

    The tokenizer's own mask token is used where it has one; otherwise `token` gets the first free id.

    Args:
        row: how the embedding (and head) row begins: "mean" of the rows of all tokens, "keep" what is there, "auto"
            keeps it only for a token that the tokenizer knew. Rows that are added always begin as the mean.
        config: the checkpoint's; a new token must not take an id that it names as EOS, BOS or padding.

    Raises:
        CheckpointError: no tokenizer there, or an id that means something else.
    """
    found = mask_token(tokenizer_dir, token)
    for role in ("eos", "bos", "pad") if found.added else ():
        ids = (config or {}).get(f"{role}_token_id")
        if found.id in (ids if isinstance(ids, list) else [ids]):
            expected, got = f"id {found.id}, free in the tokenizer, to be free", f"{role}_token_id {ids}"
            remedy = "The config and the tokenizer do not belong together."
            raise CheckpointError("config.json", expected=expected, got=got, remedy=remedy)
    rows = make_room(model, found.id, found.size, found.added if row == "auto" else row == "mean")
    return WithMaskToken(model, found.files, found.id, found.token, found.added, rows)
