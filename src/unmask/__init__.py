"""unmask: diffusion language models - load, decode fast, watch, verify and train them.

    import unmask
    print(unmask.generate("Leo has 24 stamps and gets 15 more. How many stamps does Leo have?").text)  # embedded model
    model = unmask.load("GSAI-ML/LLaDA-8B-Instruct")                  # a directory or a hub id
    print(model.generate("Why is the sky blue?", max_tokens=128, threshold=0.9, cache="dual").text)

Importing this package imports neither torch nor any room; names below are fetched on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmask.core.errors import InputError, RunError, UnmaskError
    from unmask.core.events import Canvas, Event, fold
    from unmask.core.types import Request, Strategy, Traits
    from unmask.engine.engine import Engine
    from unmask.engine.options import DecodeOptions
    from unmask.pipeline import ChatSession, Generation, Model, generate, load

__version__ = "0.1.0"

_WHERE = {
    "UnmaskError": "core.errors",
    "InputError": "core.errors",
    "RunError": "core.errors",
    "Canvas": "core.events",
    "Event": "core.events",
    "fold": "core.events",
    "Request": "core.types",
    "Strategy": "core.types",
    "Traits": "core.types",
    "Engine": "engine.engine",
    "DecodeOptions": "engine.options",
    "ChatSession": "pipeline",
    "Generation": "pipeline",
    "Model": "pipeline",
    "generate": "pipeline",
    "load": "pipeline",
}

__all__ = [
    "Canvas",
    "ChatSession",
    "DecodeOptions",
    "Engine",
    "Event",
    "Generation",
    "InputError",
    "Model",
    "Request",
    "RunError",
    "Strategy",
    "Traits",
    "UnmaskError",
    "__version__",
    "fold",
    "generate",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'unmask' has no attribute {name!r}")
    return getattr(importlib.import_module(f"unmask.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
