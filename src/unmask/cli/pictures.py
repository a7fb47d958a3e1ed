"""Files of `unmask replay`: a page, pictures, an animation, a folder of steps. All of them appear, or none.

Enters: the parsed options and a recording. Leaves: the files. Everything that can be refused is refused before the
first one is begun.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.cli.parsing import Parser, integer
from unmask.core.errors import InputError
from unmask.core.events import Stepped, fold
from unmask.sinks.cells import harmless
from unmask.sinks.files import WholeFile, WholeFolder, check_new_folder, check_writable
from unmask.sinks.palettes import PALETTES, THEMES, Palette, Theme
from unmask.sinks.recorder import Recording

if TYPE_CHECKING:
    from unmask.sinks.raster import Painter
    from unmask.sinks.scene import Look, Run, Scene, Style

DRAWN = ("svg", "png", "gif", "png_steps")
FILES = ("html", *DRAWN)
PIXELS = ("png", "gif", "png_steps")
SCALE = 2.0
"""Pixels of an image per pixel of the layout: sharp on dense screens."""
MANY_PIXELS, MOST_PIXELS = 3e8, 1.2e9
"""Pixels of all frames of an animation: from the first it is drawn at half the size, the second is refused."""
SHORTEST, LONGEST, FIRST, LAST = 0.06, 2.0, 0.6, 2.5
"""Seconds of a frame: of any at least and at most, of the first at least, and of the last."""
STEP, BRIEF, LONG = 0.25, 3.0, 12.0
"""Without --speed an animation takes so many seconds per step, and in all at least and at most."""


def flag(name: str) -> str:
    """png_steps as it is typed."""
    return f"--{name.replace('_', '-')}"


def add_colours(parser: Parser, group: Any) -> None:
    """The two options of every drawing."""
    group.add_argument(
        "--palette", choices=PALETTES, help="colours of the LLaDA demo, or safe for every colour vision (published)"
    )
    group.add_argument(
        "--theme", choices=THEMES, help="the background (terminal: what it says, else dark; files: light)"
    )


def check_colours(args: argparse.Namespace, drawings: Sequence[str]) -> None:
    """Refuses colours where none of these options draws anything."""
    _needs(args, ("theme", "palette"), drawings, any(getattr(args, name) for name in drawings))


def look(args: argparse.Namespace, title: str | None) -> Look:
    """How a file is drawn. title: the line above; None for the prompt."""
    from unmask.sinks.scene import Look

    return Look(args.theme or "light", args.palette or "published", getattr(args, "columns", None) or 78, title)


def terminal(args: argparse.Namespace) -> tuple[Theme, Palette]:
    """Theme and palette of a drawing in the terminal; some terminals tell their background in COLORFGBG ("15;0")."""
    light = os.environ.get("COLORFGBG", "").rpartition(";")[2] in ("7", "15")
    return args.theme or ("light" if light else "dark"), args.palette or "published"


def add_files(parser: Parser) -> None:
    """The options of `replay` that write files."""
    g = parser.add_argument_group("files (several at once if you like)")
    g.add_argument("--html", metavar="FILE", help="a page that plays the run in any browser, one file, no network")
    g.add_argument("--gif", metavar="FILE", help="an animation (needs Pillow, as every file of pixels)")
    g.add_argument("--svg", metavar="FILE", help="a picture of the canvas settling")
    g.add_argument("--png", metavar="FILE", help="the same in pixels")
    parser.option(g, "--png-steps", metavar="DIR", help="a new folder with step_000.png, step_001.png ...")
    g = parser.add_argument_group("look")
    g.add_argument(
        "--style",
        choices=("moments", "steps"),
        help="new tokens coloured by confidence, a picture shows several moments; or every token tinted by the step at "
        "which it settled, as in the LLaDA paper (default: moments)",
    )
    add_colours(parser, g)
    parser.option(g, "--title", metavar="TEXT", help="the line above (default: the prompt)")
    parser.option(g, "--columns", type=integer(8, 1000), metavar="N", help="signs per line of a picture (default: 78)")
    parser.option(g, "--width", type=integer(100, 8000), metavar="PX", help="pixels of a picture's width")
    parser.option(g, "--font", metavar="FILE", help="a TrueType or OpenType font for PNG and GIF")
    g.add_argument(
        "--loop",
        action=argparse.BooleanOptionalAction,
        help="play the animation again and again (the default), or once",
    )


def wanted(args: argparse.Namespace) -> list[str]:
    """Which files are asked for."""
    return [name for name in FILES if getattr(args, name) is not None]


def check(args: argparse.Namespace) -> None:
    """Refuses options without effect, paths that cannot be written, and files that would replace one another.

    Raises:
        InputError: which option, and why.
    """
    files = wanted(args)
    shown = args.show or not (files or args.json)
    drawn, pixels = ([n for n in files if n in kind] for kind in (DRAWN, PIXELS))
    _needs(args, ("theme", "palette"), (*DRAWN, "show"), bool(drawn) or shown)
    _needs(args, ("title",), FILES, bool(files))
    _needs(args, ("style", "columns", "width"), DRAWN, bool(drawn))
    _needs(args, ("font",), PIXELS, bool(pixels))
    _needs(args, ("loop",), ("gif",), "gif" in files)
    _needs(args, ("speed",), ("gif", "show"), "gif" in files or shown)
    for name in files:
        path = getattr(args, name)
        (check_new_folder if name == "png_steps" else check_writable)(path, flag(name))
    _check_apart(args, files)
    if pixels:
        from unmask.sinks.raster import check_pillow

        check_pillow(flag(pixels[0]))


def _needs(args: argparse.Namespace, options: Sequence[str], files: Sequence[str], given: bool) -> None:
    words = [flag(f) for f in files]
    for name in options:
        if getattr(args, name) is not None and not given:
            listed = f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
            raise InputError(flag(name), expected=f"{listed} beside it", got="nothing for it to change")


def _check_apart(args: argparse.Namespace, files: Sequence[str]) -> None:
    """No output may be the recording, another output, or lie in the new folder."""
    seen = {Path(args.file).resolve(): "the recording"}
    for name in files:
        path = Path(getattr(args, name)).resolve()
        same = next((what for other, what in seen.items() if _same(path, other)), None)
        if same is not None:
            raise InputError(flag(name), expected=f"another file than {same}", got=str(getattr(args, name)))
        seen[path] = flag(name)
    if args.png_steps is not None:
        folder = Path(args.png_steps).resolve()
        inside = next((what for path, what in seen.items() if folder in path.parents), None)
        if inside is not None:
            raise InputError("--png-steps", expected="a folder of its own", got=f"{inside} inside it")


def _same(one: Path, other: Path) -> bool:
    """The same file, also by another spelling where the system ignores case."""
    return one == other or (one.exists() and other.exists() and os.path.samefile(one, other))


# ---- writing ---------------------------------------------------------------------------------------------------------


def write(args: argparse.Namespace, recording: Recording, say: Callable[[str], None]) -> None:
    """Writes every file that is asked for; after an error none of them is there.

    Args:
        args: checked options. recording: with the requests that were chosen.
        say: for words to the person who waits.

    Raises:
        InputError: nothing to draw, a picture too large, a font that cannot be read.
    """
    painters: list[Painter] = []
    with ExitStack() as stack:
        done: list[WholeFile | WholeFolder] = []
        for name in wanted(args):
            path = getattr(args, name)
            file = WholeFolder(path) if name == "png_steps" else WholeFile(path)
            stack.callback(file.discard)
            if isinstance(file, WholeFile):
                file.write(_content(args, name, recording, painters))
                file.settle()
            else:
                for entry, data in _steps(args, recording, painters):
                    file.write(entry, data)
            done.append(file)
        for file in done:
            file.commit()
    _say_odd(args, recording, painters, say)


def _say_odd(
    args: argparse.Namespace, recording: Recording, painters: Sequence[Painter], say: Callable[[str], None]
) -> None:
    """What the person may want to know: which request was drawn, and what the font lacks."""
    requests = list(fold(recording.events))
    if len(requests) > 1 and any(name in DRAWN for name in wanted(args)):
        names = [harmless(r) for r in requests]
        few = ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
        say(f"drawn: request {names[0]} of {few}; --request ID draws another")
    missing = "".join(sorted(set[str]().union(*(p.missing for p in painters))))
    if missing:
        few = ", ".join(f"{c} (U+{ord(c):04X})" for c in missing[:5]) + (" ..." if len(missing) > 5 else "")
        say(f"the font lacks {len(missing)} of the signs and shows a box instead: {few}; --font FILE takes another")


def _run(args: argparse.Namespace, recording: Recording, whole: bool = False) -> Run:
    from unmask.sinks.scene import Run

    style = look(args, args.title)
    return Run(recording.events, recording.pieces.__getitem__, look=style, whole=whole)


def _content(args: argparse.Namespace, name: str, recording: Recording, painters: list[Painter]) -> str | bytes:
    """What one file holds."""
    if name == "html":
        from unmask.sinks.html import page

        return page(recording, title=args.title or "")
    if name == "gif":
        return _gif(args, recording, painters)
    from unmask.sinks import raster
    from unmask.sinks.picture import svg
    from unmask.sinks.scene import frame, settling

    run = _run(args, recording)
    scene = frame(run, len(run.moments) - 1, "steps") if args.style == "steps" else settling(run)
    if name == "svg":
        return svg(scene, args.width)
    return raster.png(scene, _painter(args, scene, painters))


def _steps(args: argparse.Namespace, recording: Recording, painters: list[Painter]) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of every step, from the canvas before the first one."""
    from unmask.sinks import raster
    from unmask.sinks.scene import frame

    run = _run(args, recording, whole=True)
    digits = max(3, len(str(len(run.moments) - 1)))
    painter = None
    for step in range(len(run.moments)):
        scene = frame(run, step, args.style or "moments")
        painter = painter or _painter(args, scene, painters)
        yield f"step_{step:0{digits}}.png", raster.png(scene, painter)


def _gif(args: argparse.Namespace, recording: Recording, painters: list[Painter]) -> bytes:
    from unmask.sinks import raster
    from unmask.sinks.scene import frame

    run = _run(args, recording, whole=True)
    count = len(run.moments)
    style: Style = args.style or "moments"
    painter = _painter(args, frame(run, 0, style), painters, count)  # refuses before thousands of frames are laid out
    scenes = [frame(run, step, style) for step in range(count)]
    return raster.gif(scenes, durations(_clock(recording), args.speed), painter, args.loop is not False)


def _painter(args: argparse.Namespace, scene: Scene, painters: list[Painter], frames: int = 1) -> Painter:
    """What draws at the wanted width, or sharp; an animation of very many pixels is drawn smaller or refused."""
    from unmask.sinks.raster import Painter

    pixels = scene.wide * scene.high * frames
    scale = args.width / scene.wide if args.width else SCALE
    if frames > 1 and not args.width and pixels * scale**2 > MANY_PIXELS:
        scale = 1.0
    if frames > 1 and pixels * scale**2 > MOST_PIXELS:
        got = f"{frames} frames of {scene.wide * scale:.0f} by {scene.high * scale:.0f}"
        remedy = "Take a smaller --width, or --html, which has no such limit."
        raise InputError("--gif", expected=f"at most {MOST_PIXELS:,.0f} pixels in all frames", got=got, remedy=remedy)
    painter = Painter(scale, args.font)
    painters.append(painter)
    return painter


def _clock(recording: Recording) -> list[float]:
    """Seconds of every step of the first request."""
    request = recording.events[0].id
    return [e.work.seconds for e in recording.events if isinstance(e, Stepped) and e.id == request]


def durations(clock: Sequence[float], speed: float | None) -> list[float]:
    """How long each frame is shown: until the next step was done, at the recorded speed times `speed`.

    Without a speed the run is slowed down or sped up to what can be watched. A frame after the first and before the
    last takes SHORTEST to LONGEST seconds.
    """
    if speed is None:
        total = min(max(STEP * len(clock), BRIEF), LONG)
        usual = statistics.median(clock)  # what is far from it is warming up, or another program's doing
        clock = [min(max(seconds, usual / 2), usual * 2) for seconds in clock]
        speed = sum(clock) / total or 1.0
    shown = [min(max(seconds / speed, SHORTEST), LONGEST) for seconds in clock]
    return [max(shown[0], FIRST), *shown[1:], LAST]
