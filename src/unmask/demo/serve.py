"""Running the page: the engine goes first when the server ends, so that every open run ends by itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import uvicorn

from unmask.demo.guard import App
from unmask.demo.hub import Hub

PATIENCE = 2
"""Seconds that open connections have when the server ends."""


class Server(uvicorn.Server):
    """uvicorn, for an application with a hub."""

    def __init__(self, app: App, hub: Hub) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                ws="none",  # the door is for HTTP: nothing comes in beside it
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=PATIENCE,
            )
        )
        self._hub = hub

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop every run, then close the connections."""
        await asyncio.to_thread(self._hub.close)
        await super().shutdown(sockets)


def serve(app: App, hub: Hub, listener: socket.socket) -> None:
    """Serve on this socket until an interrupt or a polite kill."""
    with contextlib.suppress(KeyboardInterrupt):  # everyone has been let go by then
        Server(app, hub).run(sockets=[listener])
