"""The same demo as a Gradio app, for Hub Spaces and for those who know the published demos.

Enters: a model. Leaves: Gradio blocks over the same checked requests, queue and recording lines as the page; Gradio
only draws. Nothing is asked of another host: system fonts, no analytics, no share link.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from unmask import __version__
from unmask.core.errors import ConfigError, InputError, UnmaskError
from unmask.demo import asks, spans
from unmask.demo.asks import CLIENT, Limits
from unmask.demo.controls import describe
from unmask.demo.guard import App, Guard
from unmask.demo.hub import Hub, Line, to_loop
from unmask.demo.words import in_page_words
from unmask.pipeline.model import Model
from unmask.sinks.palettes import Palette

TICK, FRAME = 0.5, 0.1
"""Seconds between two looks at a waiting request, and between two pictures of a running one when nothing is delayed."""
FONTS = ("Segoe UI", "Roboto", "Noto Sans", "Liberation Sans", "DejaVu Sans", "sans-serif")
MONO = ("Menlo", "Consolas", "DejaVu Sans Mono", "Liberation Mono", "monospace")
HEADERS = (
    (
        b"content-security-policy",
        # Gradio's own scripts are inline and compile templates; still nothing but this server may be reached.
        b"default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
        b"manifest-src 'self'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
BELOW = {"Speed": "Length"}
"""Short groups of settings, and the group in whose column they are drawn."""
PAGE_STYLE = """\
footer { display: none !important; }
.gradio-container { max-width: 1500px !important; margin: 0 auto !important; }
.gradio-container input[role="combobox"] { margin-right: 1.4em !important; text-overflow: ellipsis; }
.gradio-container .html-container { padding: 0 !important; }
.gradio-container .message-content { white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def make_gradio(model: Model, limits: Limits | None = None, hub: Hub | None = None) -> Any:
    """The blocks; in a Space: `make_gradio(model).launch(**look())`.

    Args:
        limits: what one request may ask for; None is what the model can.
        hub: the engine and its queue; None makes one of eight slots.
    """
    if model.codec is None:
        raise ConfigError("the demo", expected="a model with a tokenizer", got=f"none in {model.name}")
    return Page(model, limits or Limits.of(model), hub or Hub(model)).blocks


def make_gradio_app(
    model: Model,
    hub: Hub,
    *,
    max_tokens: int | None = None,
    token: str | None = None,
) -> App:
    """The ASGI application of `unmask demo --gradio`, behind the page's own door; arguments as of `app.make_app`."""
    limits = Limits.of(model, max_tokens)
    app = FastAPI(title="unmask demo", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    blocks = make_gradio(model, limits, hub)
    icon = Path(str(resources.files("unmask"))) / "demo" / "static" / "icon.svg"
    options: dict[str, Any] = {
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "max_file_size": 1,  # nothing here takes a file
    }
    gr.mount_gradio_app(app, blocks, path="/", favicon_path=icon, **options, **look())
    guarded: App = Guard(app, token, limits.body, HEADERS)
    return guarded


def look() -> dict[str, Any]:
    """Theme and style, as Gradio's `launch` takes them."""
    theme = gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=[gr.themes.Font(name) for name in FONTS],
        font_mono=[gr.themes.Font(name) for name in MONO],
    ).set(  # the theme's own greys and blue are too pale to read
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_800",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_cancel_background_fill="#b3261e",
        button_cancel_background_fill_dark="#b3261e",
        button_cancel_background_fill_hover="#8c1d18",
        button_cancel_background_fill_hover_dark="#8c1d18",
        button_cancel_text_color="white",
    )
    return {"theme": theme, "head": f"<style>{spans.style()}{PAGE_STYLE}</style>"}


@dataclass(eq=False)
class Turn:
    """One answer on its way. hurry: its pictures are no longer delayed."""

    id: str
    delay: float
    live: spans.Live = field(default_factory=spans.Live)
    lines: asyncio.Queue[list[Line] | None] = field(default_factory=asyncio.Queue)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)


class Page:
    """The form, the canvas, and what happens at a click. Turns under way are kept by tab."""

    def __init__(self, model: Model, limits: Limits, hub: Hub) -> None:
        self.model, self.limits, self.hub = model, limits, hub
        self.about = describe(model, limits, __version__, can_keep=False)
        self.turns: dict[str, set[Turn]] = {}
        self.controls: list[tuple[dict[str, Any], Any]] = []
        with gr.Blocks(title="unmask demo", analytics_enabled=False, fill_width=True) as self.blocks:
            gr.Markdown(self._title())
            with gr.Row():
                self._add_chat()
                self._add_view()
            self._add_settings()
            self._wire()
        self.blocks.queue(default_concurrency_limit=None, api_open=False)  # the hub's queue is the only one

    # ---- what the page is made of ------------------------------------------------------------------------------------

    def _title(self) -> str:
        kind = {"canvas": "full attention", "block": "block by block", "recurrent": "recurrent"}.get(self.about["kind"])
        return f"## unmask\n`{self.model.name}` · {self.model.family}" + (f" · {kind}" if kind else "")

    def _add_chat(self) -> None:
        with gr.Column(scale=5, min_width=320):
            self.history = gr.State([])
            self.chat = gr.Chatbot(
                label="Conversation", height=360, render_markdown=False, buttons=[], feedback_options=None
            )
            self.message = gr.Textbox(label="Message", lines=2, max_lines=8, placeholder=self.about["examples"][0])
            with gr.Row():
                self.send = gr.Button("Send", variant="primary", min_width=90)
                self.stop = gr.Button("Stop", variant="stop", min_width=90, interactive=False)
                self.clear = gr.Button("Clear", min_width=90)
            gr.Examples([[words] for words in self.about["examples"]], self.message, api_visibility="private")

    def _add_view(self) -> None:
        with gr.Column(scale=6, min_width=320):
            self.canvas = gr.HTML(spans.canvas_html(spans.Live()), label="Canvas", padding=False)
            self.counts = gr.HTML(spans.counts_html(spans.Live()), padding=False)

    def _add_settings(self) -> None:
        chat, holes = self.model.has_chat, self.about["kind"] != "autoregressive"
        with gr.Accordion("Settings", open=True), gr.Row():
            with gr.Column(min_width=240):
                gr.Markdown("### Prompt")
                self.system = gr.Textbox(
                    label="System prompt", lines=2, visible=chat, info="Said before the conversation."
                )
                self.constraints = gr.Textbox(
                    label="Constraints",
                    visible=holes,
                    placeholder="3:apple, 7:pear",
                    info="Words fixed in the answer, by position from 0.",
                )
                self.delay = gr.Slider(
                    0, 1, 0.05, step=0.01, label="Playback delay", info="Seconds per picture; changes the display only."
                )
                self.palette = gr.Radio(
                    [("published", "published"), ("colour-blind safe", "safe")], value="published", label="Colours"
                )
            groups = list(dict.fromkeys(c["group"] for c in self.about["controls"]))
            for group in (g for g in groups if g not in BELOW):
                with gr.Column(min_width=240):
                    for name in (group, *(low for low, high in BELOW.items() if high == group and low in groups)):
                        gr.Markdown(f"### {name}")
                        self.controls += [(c, _field(c)) for c in self.about["controls"] if c["group"] == name]

    def _wire(self) -> None:
        fields = [self.message, self.history, self.system, self.constraints, self.delay, self.palette]
        outputs = [self.message, self.history, self.chat, self.canvas, self.counts, self.stop]
        asking = gr.on(
            [self.send.click, self.message.submit],
            self.answer,
            {*fields, *(c for _, c in self.controls)},
            outputs,
            show_progress="hidden",
            api_visibility="private",
        )
        self.stop.click(self.halt, None, None, queue=False, api_visibility="private")
        gr.on(
            [self.clear.click, self.chat.clear],
            self.reset,
            None,
            outputs,
            queue=False,
            cancels=[asking],
            show_progress="hidden",
            api_visibility="private",
        )
        self.blocks.unload(self.leave)

    # ---- what happens ------------------------------------------------------------------------------------------------

    def _words(self, error: UnmaskError) -> str:
        """A refusal as a visitor reads it."""
        if not isinstance(error, InputError):
            return str(error)
        said = in_page_words(error, {c["name"]: c["label"] for c in self.about["controls"]})
        return f"{said}. {said.remedy}" if said.remedy else str(said)

    async def answer(self, given: dict[Any, Any], request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
        """One turn of the conversation, picture by picture."""
        words, history, tab = given[self.message] or "", given[self.history], request.session_hash or ""
        if not words.strip():
            yield {self.counts: spans.error_html("Write a message first.")}
            return
        turn = Turn(secrets.token_hex(8), given[self.delay] or 0.0)
        try:
            asked = await asyncio.to_thread(
                asks.read, self._body(given, words, history, tab), self.model, self.limits, turn.id
            )
            self.hub.submit(turn.id, asked.client, asked.prepared, asked.alone, to_loop(turn.lines))
        except UnmaskError as error:
            yield {self.counts: spans.error_html(self._words(error))}
            return
        self.turns.setdefault(tab, set()).add(turn)
        try:
            said = [*history, {"role": "user", "content": words}]
            yield {self.message: "", self.chat: _shown(said), self.stop: gr.update(interactive=True)}
            async for _ in self._moments(turn):
                yield self._picture(turn, given[self.palette])
            yield {**self._picture(turn, given[self.palette]), **self._ended(turn, said, history)}
        finally:
            self.hub.stop(turn.id)
            self._forget(tab, turn)

    def _body(self, given: dict[Any, Any], words: str, history: list[dict[str, str]], tab: str) -> dict[str, Any]:
        """The same body that the page would post."""
        settings = {c["name"]: _value(c, given[part]) for c, part in self.controls}
        body = {"settings": settings, "constraints": given[self.constraints] or None, "client": tab[:CLIENT]}
        if not self.model.has_chat:
            return {**body, "prompt": words}
        system = [{"role": "system", "content": given[self.system]}] if (given[self.system] or "").strip() else []
        return {**body, "messages": [*system, *history, {"role": "user", "content": words}]}

    async def _moments(self, turn: Turn) -> AsyncIterator[None]:
        """Takes in the lines of a turn; yields whenever there is another picture to show."""
        while True:
            try:
                async with asyncio.timeout(TICK):
                    more = await turn.lines.get()
            except TimeoutError:
                turn.live.place = self.hub.place(turn.id)
                yield
                continue
            if more is None:
                return
            for line in more:
                if turn.live.push(line) and turn.delay and not turn.hurry.is_set():
                    yield
                    await _pause(turn.hurry, turn.delay)
            if turn.lines.empty() and not turn.delay:
                yield
                await _pause(turn.hurry, FRAME)

    def _picture(self, turn: Turn, palette: Any) -> dict[Any, Any]:
        name: Palette = "safe" if palette == "safe" else "published"
        return {self.canvas: spans.canvas_html(turn.live, name), self.counts: spans.counts_html(turn.live)}

    def _ended(self, turn: Turn, said: list[dict[str, str]], history: list[dict[str, str]]) -> dict[Any, Any]:
        """A turn without a word in its answer is not part of the conversation that the model reads next."""
        live = turn.live
        whole = [*said, {"role": "assistant", "content": live.text}]
        kept = whole if live.text.strip() else history
        shown = whole if live.text.strip() else said
        return {self.history: kept, self.chat: _shown(shown), self.stop: gr.update(interactive=False)}

    def _forget(self, tab: str, turn: Turn) -> None:
        turns = self.turns.get(tab, set())
        turns.discard(turn)
        if not turns:
            self.turns.pop(tab, None)

    async def halt(self, request: gr.Request) -> None:
        """The work ends before its next forward, and what is left of the playback is skipped."""
        for turn in list(self.turns.get(request.session_hash or "", ())):
            self.hub.stop(turn.id)
            turn.hurry.set()

    async def reset(self, request: gr.Request) -> dict[Any, Any]:
        """An empty conversation."""
        await self.halt(request)
        nothing = spans.Live()
        return {
            self.history: [],
            self.chat: [],
            self.canvas: spans.canvas_html(nothing),
            self.counts: spans.counts_html(nothing),
            self.stop: gr.update(interactive=False),
        }

    async def leave(self, request: gr.Request) -> None:
        """A tab was closed."""
        await self.halt(request)


def _shown(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Gradio's chat takes HTML, also where it takes no Markdown."""
    return [{**message, "content": escape(message["content"])} for message in messages]


async def _pause(hurry: asyncio.Event, seconds: float) -> None:
    """Wait so long, or until there is reason to hurry."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await hurry.wait()


# ---- the form --------------------------------------------------------------------------------------------------------


def _field(control: dict[str, Any]) -> Any:
    """The Gradio component of one control."""
    label, info, default, kind = control["label"], control["help"], control["default"], control["type"]
    if kind == "flag":
        return gr.Checkbox(bool(default), label=label, info=info)
    if kind in ("choice", "text"):
        own = [
            (c["label"] if kind == "choice" else f"{c['value']}: {c['label']}", c["value"]) for c in control["choices"]
        ]
        choices = own if default is not None else [("as recommended", ""), *own]
        custom = kind == "text"
        return gr.Dropdown(choices, value=default or "", label=label, info=info, allow_custom_value=custom)
    low, high, step = control["min"], control["max"], control["step"]
    if default is None or high is None:  # an empty Number would say 0
        hint = control["placeholder"] or ("as recommended" if default is None else str(default))
        return gr.Textbox(label=label, info=info, placeholder=hint, max_lines=1)
    return gr.Slider(low, high, default, step=step, label=label, info=info)


def _value(control: dict[str, Any], given: Any) -> Any:
    """A field's value as a request says it: None where it is what the checkpoint recommends anyway."""
    if given is None or given == "" or given == control["default"]:
        return None
    if control["type"] == "int":
        return _number(int, given)
    return _number(float, given) if control["type"] == "float" else given


def _number(kind: type[int] | type[float], given: Any) -> Any:
    """What was typed as a number; anything else goes on as it is, and is refused by name."""
    try:
        return kind(given) if isinstance(given, str) or kind(given) == given else given
    except (ValueError, OverflowError):
        return given
