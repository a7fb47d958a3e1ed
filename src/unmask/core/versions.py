"""The versions that decide about numbers, for recordings, reports and pages."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")


def versions(*packages: str) -> dict[str, str | None]:
    """Versions of this package, Python and what it computes with (None: not installed); nothing is imported for it.

    Args:
        packages: the others; none takes those that every model runs on.
    """
    names = packages or PACKAGES
    return {"unmask": _version("unmask"), "python": platform.python_version()} | {n: _version(n) for n in names}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
