"""A GGUF file as a checkpoint directory, tokenizer included. Weights and text meet here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unmask.models.gguf import convert_gguf, read_gguf
from unmask.text.files import copied_tokenizer
from unmask.text.gguf_tokenizer import tokenizer_files

if TYPE_CHECKING:
    import torch


def import_gguf(
    file: str | Path, out: str | Path, dtype: torch.dtype | None = None, tokenizer: str | Path | None = None
) -> Path:
    """Writes `out`: config.json, safetensors, tokenizer and chat template of a Llama- or Qwen2-shaped GGUF file.

    Args:
        dtype: store as this; None changes no number (quantised ones become float32).
        tokenizer: take this directory's tokenizer instead of the one in the file.

    Raises:
        CheckpointError: the extra `gguf` is missing, or the file cannot be read as such a model; nothing is written.
    """
    found = read_gguf(file)
    files = tokenizer_files(found.metadata) if tokenizer is None else copied_tokenizer(Path(tokenizer))
    return convert_gguf(found, out, dtype, files)
