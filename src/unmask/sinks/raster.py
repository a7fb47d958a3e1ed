"""Pictures as pixels: PNG files and animated GIFs of scenes. Needs Pillow (the extra `plot`), imported when first used.

Enters: scenes (`unmask.sinks.scene`). Leaves: the bytes of a file. What did not change between two frames of a run has
the same pixels in both: every cell is drawn once, copied wherever it comes again, and all frames share one palette.
"""

from __future__ import annotations

import importlib.util
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.core.errors import InputError
from unmask.sinks.cells import joins, width
from unmask.sinks.palettes import rgb
from unmask.sinks.scene import BASE, SIGN, Bar, Cell, Scene, Words

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

SMOOTH = 4
"""Corners are drawn this many times larger and shrunk."""
MOST_PIXELS = 60_000_000
"""Pixels of the largest picture, about 240 MB while it is drawn."""
CLOSE = 16
"""Distance of two shades that one entry of a palette may stand for."""
BOX = "\u25a1"
"""Drawn in place of a glyph that the font lacks."""
FONTS = (
    ("/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf", "/usr/share/fonts/truetype/dejavu/DejaVuSansMono-Bold.ttf"),
    ("/usr/share/fonts/TTF/DejaVuSansMono.ttf", "/usr/share/fonts/TTF/DejaVuSansMono-Bold.ttf"),
    (
        "/usr/share/fonts/dejavu-sans-mono-fonts/DejaVuSansMono.ttf",
        "/usr/share/fonts/dejavu-sans-mono-fonts/DejaVuSansMono-Bold.ttf",
    ),
    (
        "/usr/share/fonts/truetype/liberation/LiberationMono-Regular.ttf",
        "/usr/share/fonts/truetype/liberation/LiberationMono-Bold.ttf",
    ),
    ("/System/Library/Fonts/Menlo.ttc", "/System/Library/Fonts/Menlo.ttc"),
    ("C:/Windows/Fonts/consola.ttf", "C:/Windows/Fonts/consolab.ttf"),
)
"""Where systems keep a monospace font: the regular and the bold file."""


def check_pillow(what: str) -> None:
    """Refuses `what` (an option) where Pillow is missing; imports nothing.

    Raises:
        InputError: with the line that installs it.
    """
    if importlib.util.find_spec("PIL") is None:
        remedy = "pip install 'unmask[plot]' (SVG and HTML need nothing)"
        raise InputError(what, expected="Pillow, which draws pixels", got="none installed", remedy=remedy)


def find_fonts() -> tuple[str, str] | None:
    """A regular and a bold monospace font: the one inside matplotlib, else the system's; None if there is none."""
    spec = importlib.util.find_spec("matplotlib")
    inside: tuple[tuple[str, str], ...] = ()
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
        inside = ((str(folder / "DejaVuSansMono.ttf"), str(folder / "DejaVuSansMono-Bold.ttf")),)
    return next((pair for pair in (*inside, *FONTS) if all(Path(name).is_file() for name in pair)), None)


@dataclass(frozen=True)
class _Glyphs:
    """A font at one size. room: pixels of one sign."""

    font: FreeTypeFont | ImageFont
    room: float
    known: dict[str, str]


class Painter:
    """Draws scenes. `missing` collects the signs that the font lacks.

    Args:
        scale: pixels of the result per pixel of the scene.
        font: a TrueType or OpenType file for all text; None finds a monospace one.

    Raises:
        InputError: Pillow is missing, or the font cannot be read.
    """

    def __init__(self, scale: float = 2.0, font: str | None = None) -> None:
        check_pillow("a picture of pixels")
        self.scale, self.missing = scale, set[str]()
        self._files = (font, font) if font is not None else find_fonts()
        self._glyphs: dict[tuple[float, bool], _Glyphs] = {}
        self._cells: dict[tuple[Cell, int, int, str], Image] = {}
        self._sized(14.0, False)

    def draw(self, scene: Scene) -> Image:
        """The scene in RGB.

        Raises:
            InputError: more pixels than MOST_PIXELS.
        """
        from PIL import Image, ImageDraw

        wide, high = self._at(scene.wide), self._at(scene.high)
        if wide * high > MOST_PIXELS:
            remedy = "Take a smaller --width, or more --columns."
            got = f"{wide} by {high}"
            raise InputError("a picture", expected=f"at most {MOST_PIXELS:,} pixels", got=got, remedy=remedy)
        image = Image.new("RGB", (wide, high), scene.card)
        pen = ImageDraw.Draw(image)
        for shape in scene.shapes:
            if isinstance(shape, Cell):
                image.paste(self._cell(shape, scene.card), (self._at(shape.x), self._at(shape.y)))
            elif isinstance(shape, Bar):
                self._bar(pen, shape)
            else:
                self._write(pen, shape.x * self.scale, shape.y * self.scale, shape)
        return image

    def _bar(self, pen: Any, bar: Bar) -> None:
        left, top = self._at(bar.x), self._at(bar.y)
        right, bottom = self._at(bar.x + bar.wide) - 1, max(self._at(bar.y + bar.high) - 1, top)
        if right >= left:
            pen.rectangle([left, top, right, bottom], fill=bar.fill)

    def _at(self, value: float) -> int:
        return round(value * self.scale)

    # ---- cells -------------------------------------------------------------------------------------------------------

    def _cell(self, cell: Cell, card: str) -> Image:
        """The picture of one cell; the same cell elsewhere is a copy."""
        wide = self._at(cell.x + cell.wide) - self._at(cell.x)
        high = self._at(cell.y + cell.high) - self._at(cell.y)
        key = (replace(cell, x=0, y=0, tip=""), wide, high, card)
        if key not in self._cells:
            self._cells[key] = self._new_cell(cell, wide, high, card)
        return self._cells[key]

    def _new_cell(self, cell: Cell, wide: int, high: int, card: str) -> Image:
        from PIL import Image, ImageDraw

        image, line = Image.new("RGB", (wide, high), card), max(round(self.scale), 1)
        outer = self._rounded(wide, high, 0)
        if cell.tint.edge:
            image.paste(cell.tint.fill, mask=outer)
            image.paste(cell.tint.edge, mask=self._dashes(outer) if cell.hole else outer)
            image.paste(cell.tint.fill, mask=self._rounded(wide, high, line))
        else:
            image.paste(cell.tint.fill, mask=outer)
        pen, s = ImageDraw.Draw(image), self.scale
        for bar in replace(cell, x=0, y=0).marks():
            self._bar(pen, bar)
        self._write(pen, cell.lead * s, BASE * s, Words(0, 0, cell.text, cell.tint.ink, bold=cell.bold))
        return image

    def _rounded(self, wide: int, high: int, inset: int) -> Image:
        """The mask of a box with smooth corners."""
        from PIL import Image, ImageDraw

        mask = Image.new("L", (wide * SMOOTH, high * SMOOTH), 0)
        near, radius = inset * SMOOTH, max(3 * self.scale - inset, 0) * SMOOTH
        box = (near, near, wide * SMOOTH - near - 1, high * SMOOTH - near - 1)
        if box[2] > box[0] and box[3] > box[1]:
            ImageDraw.Draw(mask).rounded_rectangle(box, radius, fill=255)
        return mask.resize((wide, high), Image.Resampling.BOX)

    def _dashes(self, mask: Image) -> Image:
        """The mask with gaps along its edges, each as long as a dash."""
        from PIL import Image, ImageChops, ImageDraw

        board, dash = Image.new("L", mask.size), max(round(2 * self.scale), 1)
        pen, (wide, high) = ImageDraw.Draw(board), mask.size
        for x in range(0, wide, 2 * dash):
            pen.rectangle([x, 0, x + dash - 1, high], fill=255)
        edge = 2 * max(round(self.scale), 1)
        if high > 2 * edge:  # of a cell a few pixels high only the edges are left
            pen.rectangle([0, edge, wide, high - edge - 1], fill=0)
        for y in range(edge, high - edge, 2 * dash):
            pen.rectangle([0, y, wide, min(y + dash, high - edge) - 1], fill=255)
        return ImageChops.multiply(mask, board)

    # ---- text --------------------------------------------------------------------------------------------------------

    def _write(self, pen: Any, x: float, y: float, words: Words) -> None:
        """Sign after sign on an even grid, so that nothing depends on a font's own widths. y: the baseline."""
        glyphs = self._sized(words.size, words.bold)
        for cluster in _clusters(words.text):
            room = width(cluster) * glyphs.room
            shown = "".join(self._known(glyphs, c) for c in cluster)
            long = glyphs.font.getlength(shown)
            if shown.strip():
                pen.text((x + (room - long) / 2, y), shown, fill=words.ink, font=glyphs.font, anchor="ls")
            x += room

    def _sized(self, size: float, bold: bool) -> _Glyphs:
        if (size, bold) not in self._glyphs:
            room = SIGN * self.scale * size / 14
            em = self._load(100, bold).getlength("M") / 100
            self._glyphs[size, bold] = _Glyphs(self._load(room / em, bold), room, {})
        return self._glyphs[size, bold]

    def _load(self, size: float, bold: bool) -> FreeTypeFont | ImageFont:
        from PIL import ImageFont

        if self._files is None:
            return ImageFont.load_default(size)
        name = self._files[bold]
        try:
            index = 1 if bold and name.endswith("Menlo.ttc") else 0  # one file holds all its cuts
            return ImageFont.truetype(name, size, index)
        except OSError as error:
            got = (error.strerror or str(error)).lower()
            raise InputError(f"font {name}", expected="a TrueType or OpenType font", got=got) from None

    def _known(self, glyphs: _Glyphs, sign: str) -> str:
        """The sign, or the box for one that the font lacks."""
        if sign not in glyphs.known:
            found = sign.isspace() or not _same(glyphs.font, sign, "\U0010fffe")
            if not found:
                self.missing.add(sign)
            glyphs.known[sign] = sign if found else "?" if sign == BOX else self._known(glyphs, BOX)
        return glyphs.known[sign]


def _same(font: FreeTypeFont | ImageFont, one: str, other: str) -> bool:
    """Whether two signs look the same in a font; its picture for what it lacks is that of a sign no font has."""
    a, b = (font.getmask(sign) for sign in (one, other))
    return a.size == b.size and bytes(a) == bytes(b)


def _clusters(text: str) -> Iterator[str]:
    """Signs with the marks drawn over them."""
    cluster = ""
    for sign in text:
        if cluster and not joins(sign):
            yield cluster
            cluster = ""
        cluster += sign
    if cluster:
        yield cluster


# ---- files -----------------------------------------------------------------------------------------------------------


def png(scene: Scene, painter: Painter) -> bytes:
    """One scene as a PNG file."""
    out = io.BytesIO()
    painter.draw(scene).save(out, "PNG", optimize=True)
    return out.getvalue()


def gif(scenes: Sequence[Scene], seconds: Sequence[float], painter: Painter, loop: bool = True) -> bytes:
    """Scenes of equal size as an animated GIF.

    Args:
        scenes: the frames. seconds: how long each is shown, in hundredths.
        painter: what draws them.
        loop: play again and again.
    """
    palette = _Palette(painter, scenes)
    frames = (palette.apply(painter.draw(scene)) for scene in scenes)
    first, out = next(frames), io.BytesIO()
    again: dict[str, Any] = {"loop": 0} if loop else {}
    first.save(
        out,
        "GIF",
        save_all=True,
        append_images=frames,
        duration=[round(s * 100) * 10 for s in seconds],
        disposal=1,
        optimize=True,  # what stays the same is left out of a frame
        **again,
    )
    return out.getvalue()


class _Palette:
    """Up to 255 colours for all frames (one is left for what stays the same), without dithering: the plain ones
    exactly, then shades by how often they occur, at first none close to one that is there already."""

    def __init__(self, painter: Painter, scenes: Sequence[Scene]) -> None:
        import numpy as np

        plain = dict.fromkeys(_packed(colour) for scene in scenes for colour in _plain(scene))
        counts: Counter[int] = Counter()
        for scene in scenes[:: max(len(scenes) // 8, 1)] if len(scenes) > 8 else scenes:
            values, numbers = np.unique(_pack(painter.draw(scene)), return_counts=True)
            counts.update(dict(zip(values.tolist(), numbers.tolist())))
        self.colours = np.array(list(plain)[:255], dtype=np.int64)
        for apart in (CLOSE, 0):
            for colour, _ in counts.most_common():
                if len(self.colours) < 255 and self._distances(colour).min() > apart**2:
                    self.colours = np.append(self.colours, colour)
        self._index = np.full(1 << 24, -1, dtype=np.int16)

    def apply(self, image: Image) -> Image:
        """The image with this palette."""
        import numpy as np
        from PIL import Image as images

        packed = _pack(image)
        index = self._index[packed]
        for colour in np.unique(packed[index < 0]).tolist():
            self._index[colour] = self._nearest(colour)
        drawn = images.fromarray(self._index[packed].astype(np.uint8), "P")
        drawn.putpalette([part for c in self.colours.tolist() for part in (c >> 16, c >> 8 & 255, c & 255)])
        return drawn

    def _nearest(self, colour: int) -> int:
        return int(self._distances(colour).argmin())

    def _distances(self, colour: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Squared distance of the colour to every one of the palette."""
        red, green, blue = ((self.colours >> shift & 255) - (colour >> shift & 255) for shift in (16, 8, 0))
        return red**2 + green**2 + blue**2


def _plain(scene: Scene) -> Iterator[str]:
    """The colours of a scene before any smoothing."""
    yield scene.card
    for shape in scene.shapes:
        if isinstance(shape, Cell):
            yield from (c for c in (shape.tint.fill, shape.tint.ink, shape.tint.edge, shape.tint.sign) if c)
        else:
            yield shape.fill if isinstance(shape, Bar) else shape.ink


def _packed(colour: str) -> int:
    red, green, blue = rgb(colour)
    return red << 16 | green << 8 | blue


def _pack(image: Image) -> np.ndarray[Any, np.dtype[np.int32]]:
    """One number per pixel."""
    import numpy as np

    values = np.asarray(image, dtype=np.int32)
    return values[..., 0] << 16 | values[..., 1] << 8 | values[..., 2]
