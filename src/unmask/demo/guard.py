"""The door of the page: who may come in, from where, with how much, and what every answer says to the browser.

Enters: ASGI requests. Leaves: the same, or a refusal in JSON. On this machine alone (a loopback address) no token is
needed, but a foreign Host is refused, so that no other web site can reach the page through its visitor's browser.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote

COOKIE = "unmask_token"
"""Its name goes on with the port: browsers send the cookies of all ports of a host."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Guard:
    """An ASGI layer around the page.

    Args:
        token: asked of everybody; None on a loopback address.
        body: bytes a request may bring.
        headers: what every answer says to the browser.
    """

    app: App
    token: str | None
    body: int
    headers: Headers = HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {k.lower(): v for k, v in scope["headers"]}
        refusal = self._refusal(scope, headers)
        sent = _with_headers(send, self.headers)
        if refusal is not None:
            await refusal(sent)
        else:
            with suppress(asyncio.CancelledError):  # the server is going down, and says so itself
                await self.app(scope, _limited(receive, self.body), sent)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> Callable[[Send], Awaitable[None]] | None:
        host = headers.get(b"host", b"").decode("latin-1")
        if self.token is None and _name(host) not in LOOPBACK:
            return _refuse(403, f"host {host[:80]!r}", "127.0.0.1 or localhost", "Open the address that was printed.")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if scope["method"] not in ("GET", "HEAD") and origin and origin.partition("://")[2] != host:
            return _refuse(403, f"origin {origin[:80]!r}", "a page of this server", "")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.body:
            return _refuse(413, "request body", f"at most {self.body} bytes", "Shorten the text.")
        if self.token is None or self._knows(headers, _cookie(scope)):
            return None
        if scope["method"] == "GET" and self._same(
            parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        ):
            return self._welcome(scope["path"], _cookie(scope))
        return _refuse(401, "token", "the token of the printed address", "Open the address that the server printed.")

    def _knows(self, headers: dict[bytes, bytes], name: str) -> bool:
        scheme, _, bearer = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() == "bearer" and self._same(bearer.strip()):
            return True
        pairs = (part.partition("=") for part in headers.get(b"cookie", b"").decode("latin-1").split(";"))
        return any(key.strip() == name and self._same(value.strip()) for key, _, value in pairs)

    def _same(self, given: str) -> bool:
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())

    def _welcome(self, path: str, name: str) -> Callable[[Send], Awaitable[None]]:
        """Take the token out of the address bar and into a cookie."""
        cookie = f"{name}={self.token}; Path=/; HttpOnly; SameSite=Strict".encode()
        place = "/" + quote(path.lstrip("/"))  # of this server, whatever the path says

        async def answer(send: Send) -> None:
            headers = [(b"location", place.encode()), (b"set-cookie", cookie), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 303, "headers": headers})
            await send({"type": "http.response.body", "body": b""})

        return answer


class TooLarge(Exception):
    """A body that grew beyond its limit while it was read."""


def _limited(receive: Receive, most: int) -> Receive:
    """Counts what arrives: a body without a length is limited too."""
    seen = 0

    async def counted() -> Any:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b"")) if message["type"] == "http.request" else 0
        if seen > most:
            raise TooLarge(f"at most {most} bytes")
        return message

    return counted


def _with_headers(send: Send, own: Headers) -> Send:
    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *own]}
        await send(message)

    return sent


def _refuse(status: int, what: str, expected: str, remedy: str) -> Callable[[Send], Awaitable[None]]:
    error = {"message": f"{what}; expected {expected}", "what": what, "expected": expected, "got": "", "remedy": remedy}
    body = json.dumps({"error": error}).encode()

    async def answer(send: Send) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 413:  # what is left of the body is not read
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return answer


def _name(host: str) -> str:
    """A Host without its port and the brackets of an address."""
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdigit():
        name = host
    return name[1:-1] if name.startswith("[") and name.endswith("]") else name


def _cookie(scope: Scope) -> str:
    """The name of this server's cookie."""
    server = scope.get("server")
    return f"{COOKIE}_{server[1]}" if server else COOKIE
