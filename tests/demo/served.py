"""The page's server on a real port."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Served:
    url: str
    hub: Any


@contextmanager
def serving(model: Any, make: Any = None, *, slots: int = 8, **options: Any) -> Iterator[Served]:
    from unmask.demo.app import make_app
    from unmask.demo.hub import Hub
    from unmask.demo.serve import Server

    hub = Hub(model, slots)
    server = Server((make or make_app)(model, hub, **options), hub)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", hub)
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
    assert not thread.is_alive()


@contextmanager
def gradio_serving(model: Any, **options: Any) -> Iterator[tuple[str, Any]]:
    """The Gradio app: its address and its hub."""
    pytest.importorskip("gradio")
    from unmask.demo.gradio_app import make_gradio_app

    with serving(model, make_gradio_app, **options) as served:
        yield f"{served.url}/", served.hub
