"""The versions that decide about numbers, for recordings, reports and pages."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")


def versions() -> dict[str, str | None]:
    """Versions of this package, Python and what it computes with (None: not installed); nothing is imported for it."""
    return {"unmask": _version("unmask"), "python": platform.python_version()} | {n: _version(n) for n in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
