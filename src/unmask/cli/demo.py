"""`unmask demo`: the web page, on this machine or, with a token, for others."""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import socket
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.cli.decoding import add_model
from unmask.cli.output import Notices
from unmask.cli.parsing import Parser, integer
from unmask.core.errors import ConfigError, InputError
from unmask.sinks.files import reason

if TYPE_CHECKING:
    from unmask.demo.guard import App
    from unmask.demo.hub import Hub
    from unmask.pipeline import Model

DESCRIPTION = """\
A page that shows a model write: live canvas, chat, infilling, races of strategies, a gallery of recordings. Everything
comes from this machine; nothing is sent anywhere else."""
EXAMPLES = """\
  unmask demo                                          the default embedded model, on this machine only
  unmask demo --model ./LLaDA-8B-Instruct --max-tokens 512
  unmask demo --host 0.0.0.0                           for others too: the printed address carries a token
  unmask demo --recordings runs/                       runs can be kept there, and are shown in the gallery"""
PORT = 7860
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN_SIGNS = frozenset(string.ascii_letters + string.digits + "-_")


def main(argv: Sequence[str]) -> int:
    """Serves until it is interrupted."""
    parser = Parser("unmask demo", DESCRIPTION, EXAMPLES, usage="unmask demo [options]")
    add_model(parser)
    _add_options(parser)
    args = parser.parse(argv)
    _check(args)
    if args.gradio:
        _need("gradio", "uvicorn", extra="gradio")
    else:
        _need("fastapi", "uvicorn", extra="demo")
    notices = Notices(args.quiet)
    with _bound(args.host, args.port) as listener:
        model = _load(args, notices)
        _serve(args, model, listener)
    return 0


def _add_options(parser: Parser) -> None:
    g = parser.add_argument_group("the page")
    parser.option(g, "--host", default="127.0.0.1", metavar="H", help="address to listen on (default: 127.0.0.1)")
    parser.option(
        g, "--port", type=integer(0, 65535), default=PORT, metavar="N", help=f"0 takes a free one (default: {PORT})"
    )
    parser.option(
        g,
        "--token",
        metavar="T",
        help="what visitors must know; made up for an address others can reach (default: none here)",
    )
    parser.option(g, "--open", flag=True, dest="open", help="open the page in the browser of this machine")
    parser.option(
        g, "--recordings", metavar="DIR", help="a folder for runs that visitors keep; it is shown in the gallery"
    )
    parser.option(g, "--quiet", "-q", flag=True, dest="quiet", help="print the address and nothing else")
    parser.option(
        g, "--gradio", flag=True, dest="gradio", help="the Gradio app instead, as for Hub Spaces (extra gradio)"
    )
    g = parser.add_argument_group("limits")
    parser.option(
        g, "--max-tokens", type=integer(1, 1 << 20), metavar="N", help="longest answer (default: what the model can)"
    )
    parser.option(
        g, "--slots", type=integer(1, 256), default=8, metavar="N", help="answers written at the same time (default: 8)"
    )
    parser.option(
        g,
        "--queue",
        type=integer(0, 10_000),
        default=64,
        metavar="N",
        help="requests that may wait, in all (default: 64)",
    )
    parser.option(
        g,
        "--share",
        type=integer(1, 1000),
        default=4,
        metavar="N",
        help="requests one visitor may have waiting (default: 4)",
    )


def _check(args: argparse.Namespace) -> None:
    if not args.host:
        raise ConfigError("--host", expected="an address, such as 127.0.0.1 or 0.0.0.0", got="nothing")
    if args.token is not None and (len(args.token) < 8 or not set(args.token) <= TOKEN_SIGNS):
        raise ConfigError(
            "--token",
            expected="at least 8 letters, digits, - or _",
            got=f"{len(args.token)} signs",
            remedy="Leave it out: one is made up.",
        )
    if args.recordings is not None:
        if args.gradio:
            raise ConfigError("--recordings", expected="the page, which has a gallery", got="--gradio, which has none")
        folder = Path(args.recordings)
        if not folder.is_dir():
            raise InputError(f"--recordings {folder}", expected="a folder", remedy=f"Create it: mkdir -p {folder}")


def _need(*names: str, extra: str) -> None:
    """The extra's packages are asked for by name before anything else is done."""
    from importlib.util import find_spec

    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"unmask demo needs {', '.join(missing)}", remedy=f'Install the extra: pip install "unmask[{extra}]"'
        )


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket, so that a taken port is said before a model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)  # visitors who come before the model is loaded wait
    except OSError as error:
        listener.close()
        if isinstance(error, socket.gaierror):
            raise InputError(f"--host {host}", expected="an address of this machine", got=reason(error)) from None
        remedy = "Take another one: --port 0 finds a free one." if port else ""
        raise InputError(
            f"--host {host} --port {port}", expected="a free address", got=reason(error), remedy=remedy
        ) from None
    return listener


def _load(args: argparse.Namespace, notices: Notices) -> Model:
    from unmask.pipeline import load

    if args.model is not None:
        notices.say(f"loading {args.model} ...")
    model = load(args.model, revision=args.revision, dtype=args.dtype, device=args.device, slots=args.slots)
    if args.model is not None and Path(args.model).is_dir():
        model = dataclasses.replace(model, name=Path(args.model).resolve().name)  # visitors need no paths of ours
    if model.codec is None:
        raise ConfigError("unmask demo", expected="a model with a tokenizer", got=f"none in {model.name}")
    return model


def _serve(args: argparse.Namespace, model: Model, listener: socket.socket) -> None:
    from unmask.demo.hub import Hub
    from unmask.demo.serve import serve

    token = args.token or (None if args.host in LOOPBACK else secrets.token_urlsafe(24))
    hub = Hub(model, args.slots, args.queue, args.share)
    app = _app(args, model, hub, token)
    address = _address(args.host, listener.getsockname()[1], token)
    print(address, flush=True)
    Notices(args.quiet).say(f"{model.name} ({model.family}) - Ctrl-C ends it")
    if args.open:
        import webbrowser

        webbrowser.open(address)
    serve(app, hub, listener)


def _app(args: argparse.Namespace, model: Model, hub: Hub, token: str | None) -> App:
    """The page, or the Gradio app behind the same door."""
    if args.gradio:
        from unmask.demo.gradio_app import make_gradio_app

        return make_gradio_app(model, hub, max_tokens=args.max_tokens, token=token)
    from unmask.demo.app import make_app

    folder = None if args.recordings is None else Path(args.recordings)
    return make_app(model, hub, max_tokens=args.max_tokens, folder=folder, token=token)


def _address(host: str, port: int, token: str | None) -> str:
    shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    shown = f"[{shown}]" if ":" in shown else shown
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
