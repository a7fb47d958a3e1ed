"""The page's server: static files, the stream of a run, and what is kept of it.

Enters: HTTP. Leaves: the page, JSON, and recording lines as server-sent events. The connection of a run is its life:
when it closes, the work ends.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.datastructures import State
from starlette.requests import ClientDisconnect

from unmask import __version__
from unmask.core.errors import InputError, RequestError, RunError
from unmask.core.versions import versions
from unmask.demo import asks
from unmask.demo.asks import Asked, Limits
from unmask.demo.controls import controls, describe
from unmask.demo.guard import App, Guard, TooLarge
from unmask.demo.hub import NAME, Full, Hub, Line, to_loop
from unmask.demo.runs import Finished, Shelf, as_html
from unmask.demo.words import in_page_words
from unmask.engine.engine import accepted, sequence_of
from unmask.pipeline.model import Model
from unmask.pipeline.record import header, piece_of
from unmask.sinks.recorder import Lines, as_text

TICK = 0.5
"""Seconds between two looks at whether the visitor is still there."""
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}


def make_app(
    model: Model,
    hub: Hub,
    *,
    max_tokens: int | None = None,
    folder: Path | None = None,
    token: str | None = None,
) -> App:
    """The ASGI application.

    Args:
        hub: the engine and the queue before it; it is closed by whoever made it.
        max_tokens: of an answer at most; None is what the model can.
        folder: where runs may be kept for the gallery.
        token: asked of every visitor; None for a loopback address.
    """
    limits = Limits.of(model, max_tokens)
    app = FastAPI(title="unmask demo", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    state: State = app.state
    state.model, state.limits, state.hub = model, limits, hub
    state.finished, state.shelf = Finished(), Shelf(folder)
    state.labels = {c.name: c.label for c in controls(model, limits)}
    _add_errors(app)
    _add_files(app)
    _add_runs(app)
    _add_gallery(app)
    guarded: App = Guard(app, token, limits.body)
    return guarded


# ---- what a page is made of ------------------------------------------------------------------------------------------


def _add_files(app: FastAPI) -> None:
    root = Path(str(resources.files("unmask")))
    folders = {"static": root / "demo" / "static", "view": root / "assets" / "web"}

    @app.get("/")
    def index() -> Response:
        return FileResponse(folders["static"] / "index.html", headers={"cache-control": "no-cache"})

    @app.get("/favicon.ico")
    def icon() -> Response:
        return FileResponse(folders["static"] / "icon.svg", media_type=TYPES[".svg"])

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        return _file(folders["static"], name)

    @app.get("/view/{name}")
    def view(name: str) -> Response:
        return _file(folders["view"], name)

    @app.get("/api/model")
    def about() -> Any:
        table = describe(app.state.model, app.state.limits, __version__, app.state.shelf.folder is not None)
        return {**table, "limits": {**table["limits"], "queue": app.state.hub.queue}}

    @app.get("/api/status")
    def status() -> Any:
        return app.state.hub.status()

    @app.get("/api/versions")
    def numbers() -> Any:
        return versions()


def _file(folder: Path, name: str) -> Response:
    path = next((p for p in folder.iterdir() if p.name == name and p.suffix in TYPES), None)
    if path is None:
        return _error(404, InputError(name[:100], expected="a file of the page", got="none of that name"))
    return FileResponse(path, media_type=TYPES[path.suffix], headers={"cache-control": "no-cache"})


# ---- a run -----------------------------------------------------------------------------------------------------------


def _add_runs(app: FastAPI) -> None:
    @app.post("/api/prepare")
    async def prepare(request: Request) -> Any:
        asked = await _asked(app, request, NAME)
        return {"lines": _first_lines(app.state.model, asked), "settings": asked.prepared.settings.table}

    @app.post("/api/generate")
    async def generate(request: Request) -> Response:
        id = secrets.token_hex(8)
        asked = await _asked(app, request, id)
        lines: asyncio.Queue[list[Line] | None] = asyncio.Queue()
        client = asked.client or (request.client.host if request.client else "")
        app.state.hub.submit(id, client, asked.prepared, asked.alone, to_loop(lines))
        return StreamingResponse(
            _stream(app, request, id, lines),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )

    @app.post("/api/stop")
    async def stop(request: Request) -> Any:
        body = await _json(request)
        job = body.get("job") if isinstance(body, dict) else None
        if not isinstance(job, str):
            raise RequestError("job", expected="the id of a run", got=repr(job)[:80])
        return {"stopped": app.state.hub.stop(job)}

    @app.get("/api/runs/{name}")
    def run(name: str) -> Response:
        id, _, form = name.rpartition(".")
        return _recording(app.state.finished.get(id), form, id)


async def _stream(
    app: FastAPI, request: Request, id: str, lines: asyncio.Queue[list[Line] | None]
) -> AsyncIterator[str]:
    """Server-sent events of one run. However this ends, the run ends with it."""
    hub, kept = app.state.hub, list[str]()
    try:
        yield _event({"job": id})
        place = 0
        while True:
            try:
                async with asyncio.timeout(TICK):
                    more = await lines.get()
            except TimeoutError:
                if await request.is_disconnected():
                    return
                now = hub.place(id)
                yield _event({"waiting": now}) if now and now != place else ": waiting\n\n"
                place = now
                continue
            if more is None:
                if kept and '"end"' in kept[-1][:6]:
                    app.state.finished.add(id, "\n".join(kept) + "\n")
                return
            kept += [as_text(line) for line in more if "error" not in line or "event" in line]
            yield "".join(_event(line) for line in more)
    finally:
        hub.stop(id)


def _event(line: Line) -> str:
    return f"data: {as_text(line)}\n\n"


async def _asked(app: FastAPI, request: Request, id: str) -> Asked:
    body = await _json(request)
    state = app.state
    try:
        return await asyncio.to_thread(asks.read, body, state.model, state.limits, id)
    except InputError as error:
        raise in_page_words(error, state.labels) from None


def _first_lines(model: Model, asked: Asked) -> list[Line]:
    """What a recording of this request would begin with: header, pieces, the canvas as it would be accepted."""
    prepared = asked.prepared
    lines = Lines(header(model, [prepared], prepared.request.seed), piece_of(model))
    return [lines.begin(), *lines.of(accepted(sequence_of(prepared.request, model.traits)))]


# ---- the gallery -----------------------------------------------------------------------------------------------------


def _add_gallery(app: FastAPI) -> None:
    @app.get("/api/gallery")
    def gallery() -> Any:
        return app.state.shelf.list()

    @app.get("/api/gallery/{name}")
    def recording(name: str) -> Response:
        stem, _, form = name.rpartition(".")
        return _recording(app.state.shelf.text(stem), form, stem)

    @app.post("/api/gallery")
    async def keep(request: Request) -> Any:
        body = await _json(request)
        if not isinstance(body, dict) or not all(isinstance(body.get(k), str) for k in ("job", "name")):
            raise RequestError("body", expected='{"job": id, "name": text}', got=repr(body)[:80])
        text = app.state.finished.get(body["job"])
        if text is None:
            raise RequestError("job", expected="a run that has just ended", got=body["job"][:80])
        return {"name": await asyncio.to_thread(app.state.shelf.keep, body["name"].strip(), text)}


def _recording(text: str | None, form: str, name: str) -> Response:
    if text is None or form not in ("jsonl", "html"):
        return _error(
            404, InputError(f"recording {name[:80]!r}", expected="one that is kept, .jsonl or .html", got="none")
        )
    if form == "html":
        return Response(as_html(text), media_type="text/html", headers=_as_file(name, form))
    return PlainTextResponse(text, media_type="application/jsonl", headers=_as_file(name, form))


def _as_file(name: str, form: str) -> dict[str, str]:
    """Always a download: shown in place, the file's own scripts would have to run with the page's rights."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name) or "run"
    return {"content-disposition": f'attachment; filename="unmask-{plain}.{form}"'}


# ---- errors ----------------------------------------------------------------------------------------------------------


async def _json(request: Request) -> Any:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError("content-type", expected="application/json", got=kind or "none")
    body = await request.body()
    try:
        return json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, a number of thousands of digits, a deep nest
        raise RequestError("body", expected="JSON in UTF-8", got=str(error)[:120]) from None


def _error(status: int, error: InputError) -> JSONResponse:
    table = {k: getattr(error, k) for k in ("what", "expected", "got", "remedy")}
    return JSONResponse({"error": {"message": str(error), **table}}, status_code=status)


def _plain(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, status_code=status)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(InputError)
    def refused(_: Request, error: InputError) -> Response:
        return _error(400, error)

    @app.exception_handler(Full)
    def full(_: Request, error: Full) -> Response:
        return _plain(429, str(error))

    @app.exception_handler(RunError)
    def ended(_: Request, error: RunError) -> Response:
        return _plain(503, str(error))

    @app.exception_handler(TooLarge)
    def large(_: Request, error: TooLarge) -> Response:
        return _plain(413, f"request body; expected {error}")

    @app.exception_handler(ClientDisconnect)
    def gone(_: Request, __: ClientDisconnect) -> Response:
        return _plain(400, "the connection closed before the request was complete")  # nobody reads it

    @app.exception_handler(405)
    def unfit(request: Request, _: Exception) -> Response:
        return _plain(405, f"{request.method[:20]} {request.url.path[:100]}: not a way to ask for this")

    @app.exception_handler(404)
    def missing(request: Request, _: Exception) -> Response:
        return _plain(404, f"{request.url.path[:100]}: nothing here")
