"""The models inside the package, by name: what each is, and where its files are."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from unmask.core.errors import CheckpointError

DEFAULT = "nano"
EMBEDDED = {
    DEFAULT: "block diffusion (Fast-dLLM v2 format), adapted from nano-ar; the default",
    "nano-ar": "autoregressive (Qwen2 format), the parent of nano",
    "nano-llada": "masked diffusion with full attention (LLaDA format), trained from scratch",
    "nano-birwkv": "recurrent (BiRWKV format), masks and continuous diffusion, trained from scratch; stories only",
}
"""Name -> one line of meaning."""
NAMES = ", ".join(EMBEDDED)


def embedded(name: str = DEFAULT) -> Path:
    """The directory of a model that ships with the package.

    Raises:
        CheckpointError: a package built without it.
    """
    path = Path(str(files("unmask") / "assets" / name))
    if not path.is_dir():
        remedy = "Name another model (--model DIR or a hub id), or install a complete package."
        raise CheckpointError(f"the embedded model {name}", expected=str(path), got="no such directory", remedy=remedy)
    return path
