"""Pictures of pixels: frames that do not jump, colours that do not change, durations, fonts."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("PIL")
from PIL import Image, ImageChops
from settled import piece, run

from unmask.core.errors import InputError
from unmask.sinks import raster
from unmask.sinks.palettes import PALETTES, THEMES, rgb
from unmask.sinks.raster import Painter, gif, png
from unmask.sinks.scene import Cell, Look, Run, Scene, frame


def drawn(look: Look | None = None) -> list[Scene]:
    one = Run(run(), piece, look=look)
    return [frame(one, k) for k in range(len(one.moments))]


def opened(data: bytes) -> Iterator[tuple[Image.Image, int]]:
    image = Image.open(io.BytesIO(data))
    for k in range(getattr(image, "n_frames", 1)):
        image.seek(k)
        yield image.convert("RGB"), image.info.get("duration", 0)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("palette", PALETTES)
def test_the_animation_shows_exactly_what_was_drawn(theme: str, palette: str) -> None:
    scenes, painter = drawn(Look(theme, palette)), Painter(2)  # type: ignore[arg-type]
    data = gif(scenes, [0.06] * (len(scenes) - 1) + [2.5], painter)
    frames = list(opened(data))
    assert len(frames) == len(scenes)
    assert [d for _, d in frames] == [60] * (len(scenes) - 1) + [2500]
    for (image, _), scene in zip(frames, scenes):
        wanted = painter.draw(scene)
        assert image.size == wanted.size
        worst = max(high for _, high in ImageChops.difference(image, wanted).getextrema())
        assert worst <= 24  # shades of smoothed edges; plain colours are exact (below)
        for cell in (s for s in scene.shapes if isinstance(s, Cell)):
            inside = (round((cell.x + cell.wide - 3) * 2), round((cell.y + 4) * 2))
            assert image.getpixel(inside) == rgb(cell.tint.fill)


def test_cells_that_did_not_change_have_the_same_pixels_in_every_frame() -> None:
    scenes, painter = drawn(), Painter(2)
    frames = [image for image, _ in opened(gif(scenes, [0.1] * len(scenes), painter))]
    steps = [Image.open(io.BytesIO(png(scene, painter))) for scene in scenes]
    same = changed = 0
    for images in (frames, steps):
        for k in range(1, len(scenes)):
            cells = [[s for s in scenes[i].shapes if isinstance(s, Cell)] for i in (k - 1, k)]
            for before, now in zip(*cells):
                box = [round(v * 2) for v in (now.x, now.y, now.x + now.wide, now.y + now.high)]
                equal = images[k - 1].crop(box).tobytes() == images[k].crop(box).tobytes()
                looks = [(c.text, c.tint, c.bar, c.bold) for c in (before, now)]
                assert equal == (looks[0] == looks[1])
                same, changed = same + equal, changed + (not equal)
    assert same > changed > 0


def test_a_long_run_stays_small() -> None:
    one = Run(run(per_step=1), piece, whole=True)
    scenes = [frame(one, k) for k in range(len(one.moments))]
    data = gif(scenes, [0.1] * len(scenes), Painter(2))
    assert len(data) < 6000 * len(scenes)


def test_loops_or_ends() -> None:
    scenes = drawn()[:2]
    again, once = (gif(scenes, [0.1, 0.1], Painter(1), loop) for loop in (True, False))
    assert Image.open(io.BytesIO(again)).info["loop"] == 0
    assert "loop" not in Image.open(io.BytesIO(once)).info


def test_signs_that_the_font_lacks_become_boxes_and_are_told() -> None:
    one = Run(run(), lambda i: "\u0f3c" if i == 3 else "\U0001f600" if i == 4 else piece(i))
    painter = Painter(1)
    if painter._files is None:
        pytest.skip("no monospace font on this machine")
    painter.draw(frame(one, 6))
    assert painter.missing == {"\u0f3c", "\U0001f600"}
    clean = Painter(1)
    clean.draw(frame(Run(run(), piece), 6))
    assert clean.missing == set()


def test_text_stays_inside_its_cell() -> None:
    scene, painter = drawn()[-1], Painter(2)
    for cell in (s for s in scene.shapes if isinstance(s, Cell) and s.text):
        bare = painter._new_cell(Cell(cell.x, cell.y, cell.wide, cell.high, "", cell.tint), 200, 44, scene.card)
        full = painter._new_cell(Cell(cell.x, cell.y, cell.wide, cell.high, cell.text, cell.tint), 200, 44, scene.card)
        found = ImageChops.difference(bare, full).getbbox()
        assert found is not None
        assert found[2] <= round(cell.wide * 2)


def test_too_many_pixels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster, "MOST_PIXELS", 1000)
    with pytest.raises(InputError, match="at most 1,000 pixels"):
        Painter(1).draw(drawn()[0])


def test_a_font_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "font.ttf").write_text("no font")
    for name in ("font.ttf", "missing.ttf"):
        with pytest.raises(InputError, match="TrueType or OpenType"):
            Painter(1, str(tmp_path / name))


def test_no_font_on_the_machine_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster, "find_fonts", lambda: None)
    assert len(set(Painter(1).draw(drawn()[-1]).convert("L").tobytes())) > 20


def test_without_pillow_the_install_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        Painter(1)
    assert caught.value.remedy.startswith("pip install 'unmask[plot]'")
