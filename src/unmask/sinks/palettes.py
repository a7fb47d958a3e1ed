"""The colours of everything that is drawn: pictures on a light or a dark card, and the terminal.

Enters: a theme ("light", "dark") and a palette ("published": the colours of the LLaDA demo; "safe": Okabe and Ito's,
for every kind of colour vision). Leaves: fills, inks and edges, each ink readable on its fill (WCAG contrast >= 4.5).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

Theme = Literal["light", "dark"]
Palette = Literal["published", "safe"]
THEMES: tuple[Theme, ...] = get_args(Theme)
PALETTES: tuple[Palette, ...] = get_args(Palette)

READABLE = 4.5
"""The contrast that WCAG asks of text."""


@dataclass(frozen=True)
class Tint:
    """How one kind of cell is filled and written on; its edge, and its bar or sign ("" for no edge, and the ink)."""

    fill: str
    ink: str
    edge: str = ""
    sign: str = ""


@dataclass(frozen=True)
class Colours:
    """Everything a picture needs. steps: the scale from early to late, in stops at equal distances."""

    card: str
    ink: str
    quiet: str
    line: str
    masked: Tint
    low: Tint
    middle: Tint
    high: Tint
    earlier: Tint
    given: Tint
    after: Tint
    steps: tuple[str, ...]

    def tints(self) -> dict[str, Tint]:
        """The cells by name."""
        return {f.name: t for f in fields(self) if isinstance(t := getattr(self, f.name), Tint)}

    def step(self, share: float) -> Tint:
        """The cell of a token that settled after this share (0 to 1) of the run."""
        place = min(max(share, 0.0), 1.0) * (len(self.steps) - 1)
        low = min(int(place), len(self.steps) - 2)
        fill = mix(self.steps[low], self.steps[low + 1], place - low)
        return Tint(fill, readable(fill), self.line)


def rgb(colour: str) -> tuple[int, int, int]:
    """ "#RRGGBB" as three numbers."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def mix(one: str, other: str, share: float) -> str:
    """The colour at that share of the way from one to the other."""
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(rgb(one), rgb(other)))


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2, from 0 (black) to 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb(colour))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2, from 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def readable(fill: str) -> str:
    """The better ink on that fill; one of black and white always has a contrast of at least 4.58."""
    return max(("#000000", "#ffffff"), key=lambda ink: contrast(ink, fill))


BLUES = ("#f0f8ff", "#d8e8f6", "#b7d3ec", "#8cb8df", "#5f98cd", "#3a76b3", "#1f5591", "#0c3770")
"""Eight stops between the ends of the published figure, (240, 248, 255) and (12, 55, 112); steps of equal lightness."""
VIRIDIS = ("#fde725", "#a0da39", "#4ac16d", "#1fa187", "#277f8e", "#365c8d", "#46327e", "#440154")
"""A scale of even lightness for every kind of colour vision (van der Walt and Smith 2015), from light to dark."""

_BASE: dict[Theme, dict[str, str]] = {
    "light": {"card": "#ffffff", "ink": "#1b1f24", "quiet": "#59626e", "line": "#c9d0d8"},
    "dark": {"card": "#15181d", "ink": "#e6e9ee", "quiet": "#9aa5b3", "line": "#39414b"},
}
_MASKED: dict[Theme, Tint] = {
    "light": Tint("#e1e4e9", "#1b1f24", sign="#444444"),
    "dark": Tint("#30363e", "#e6e9ee", sign="#8d939b"),
}
_GIVEN: dict[Theme, Tint] = {
    "light": Tint("#f6f1e2", "#4d4017", edge="#8f7a3c"),
    "dark": Tint("#322d20", "#ecdcae", edge="#b39a56"),
}
_NEW: dict[Palette, tuple[str, str, str]] = {
    "published": ("#ff6666", "#ffaa33", "#66cc66"),
    "safe": ("#d55e00", "#f0e442", "#00a67a"),
}
_EARLIER: dict[tuple[Theme, Palette], Tint] = {
    ("light", "published"): Tint("#e0ebf6", "#22486e", sign="#6699cc"),
    ("dark", "published"): Tint("#1e2f42", "#b9d4f0", sign="#6699cc"),
    ("light", "safe"): Tint("#e3f0f9", "#0b4668", sign="#3d8fc4"),
    ("dark", "safe"): Tint("#172c3b", "#b5dcf5", sign="#3d8fc4"),
}
_STEPS: dict[Palette, tuple[str, ...]] = {"published": BLUES, "safe": VIRIDIS}


def _colours(theme: Theme, palette: Palette) -> Colours:
    base = _BASE[theme]
    low, middle, high = (Tint(fill, readable(fill)) for fill in _NEW[palette])
    return Colours(
        **base,
        masked=_MASKED[theme],
        low=low,
        middle=middle,
        high=high,
        earlier=_EARLIER[theme, palette],
        given=_GIVEN[theme],
        after=Tint(base["card"], base["quiet"], base["line"]),
        steps=_STEPS[palette],
    )


COLOURS: dict[tuple[Theme, Palette], Colours] = {(t, p): _colours(t, p) for t in THEMES for p in PALETTES}
"""The colours of pictures; new tokens have the same fill on either card, as in the demo."""

TERMINAL: dict[tuple[Theme, Palette], dict[str, str]] = {
    ("dark", "published"): {
        "masked": "#8a8a8a",
        "earlier": "#6699CC",
        "low": "#FF6666",
        "middle": "#FFAA33",
        "high": "#66CC66",
    },
    ("light", "published"): {
        "masked": "#6b6b6b",
        "earlier": "#2f6299",
        "low": "#c62828",
        "middle": "#9a5800",
        "high": "#1a7a32",
    },
    ("dark", "safe"): {
        "masked": "#8a8a8a",
        "earlier": "#56a8de",
        "low": "#e8731a",
        "middle": "#f0e442",
        "high": "#00b98a",
    },
    ("light", "safe"): {
        "masked": "#6b6b6b",
        "earlier": "#0b5a8c",
        "low": "#a84a00",
        "middle": "#756600",
        "high": "#00734f",
    },
}
"""Text colours of the terminal. The demo's own grey, made for a white page, would vanish on a dark terminal, and its
orange on a white one: each has the contrast of text on its background."""

BASIC: dict[tuple[Theme, Palette], dict[str, str]] = {
    ("dark", "published"): {
        "masked": "bright_black",
        "earlier": "bright_blue",
        "low": "bright_red",
        "middle": "yellow",
        "high": "bright_green",
    },
    ("light", "published"): {
        "masked": "bright_black",
        "earlier": "blue",
        "low": "red",
        "middle": "magenta",
        "high": "green",
    },
    ("dark", "safe"): {
        "masked": "bright_black",
        "earlier": "bright_blue",
        "low": "bright_magenta",
        "middle": "bright_yellow",
        "high": "bright_cyan",
    },
    ("light", "safe"): {
        "masked": "bright_black",
        "earlier": "blue",
        "low": "magenta",
        "middle": "red",
        "high": "black",
    },
}
"""For terminals of 16 colours, where the nearest of the true ones would all be white."""
