"""What the demo's page looks like: widths, overlaps, contrast, and refusals where they belong."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

import pytest
from conftest import Watch
from demo_page import DemoPage

ASK = "Tell a story about Bob the rabbit, a kite and a farm."
MODES = ("chat", "infill", "race", "gallery")

# Every visible text with its colour and the colours behind it, as contrast ratios below 4.5.
POOR = """() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const over = (top, below) => top.slice(0, 3).map((v, i) => v * top[3] + below[i] * (1 - top[3])).concat(1);
  const linear = v => v / 255 <= .03928 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = c => .2126 * linear(c[0]) + .7152 * linear(c[1]) + .0722 * linear(c[2]);
  const behind = e => {
    const stack = [];
    for (; e; e = e.parentElement) stack.push(parse(getComputedStyle(e).backgroundColor));
    return stack.reverse().reduce((below, c) => over(c, below), [255, 255, 255, 1]);
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), e = walker.currentNode.parentElement;
    if (!text || !e.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
    if (e.closest(".unseen, .um-heard, [inert], noscript, script, option, .skip, .backdrop")) continue;
    const back = behind(e), ink = over(parse(getComputedStyle(e).color), back);
    const [a, b] = [light(ink), light(back)].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) poor.push([e.tagName, e.className, text.slice(0, 30), ratio.toFixed(2)]);
  }
  return poor;
}"""

# Pairs of controls and texts of which neither holds the other and that still lie over one another.
OVERLAPS = """() => {
  const what = "button, input, select, textarea, a, h2, h3, .pill, .prose, .um-chip, dt, dd, summary, label";
  const seen = [...document.querySelectorAll(`main :is(${what})`)]
    .filter(e => e.checkVisibility({visibilityProperty: true}) && !e.closest(".unseen, .composer")).map(e => {
      let r = e.getBoundingClientRect();
      for (let p = e.parentElement; p && p.tagName !== "MAIN"; p = p.parentElement) {
        if (getComputedStyle(p).overflowY === "visible") continue;
        const q = p.getBoundingClientRect();
        r = {left: Math.max(r.left, q.left), right: Math.min(r.right, q.right),
             top: Math.max(r.top, q.top), bottom: Math.min(r.bottom, q.bottom)};
      }
      return [e, r];
    }).filter(([, r]) => r.right - r.left > 1 && r.bottom - r.top > 1);
  const found = [], name = e => e.id || e.className || e.tagName;
  for (let i = 0; i < seen.length; i++) for (let j = i + 1; j < seen.length; j++) {
    const [a, r] = seen[i], [b, q] = seen[j];
    if (a.contains(b) || b.contains(a)) continue;
    const wide = Math.min(r.right, q.right) - Math.max(r.left, q.left);
    const high = Math.min(r.bottom, q.bottom) - Math.max(r.top, q.top);
    if (wide > 1.5 && high > 1.5) found.push([name(a), name(b), wide, high]);
  }
  return found.slice(0, 8);
}"""

OUTSIDE = """() => [...document.querySelectorAll("main *, header *")].filter(e => {
  if (e.closest(".unseen, .um-heard, .um-frame, .skip, .backdrop")) return false;
  if (!e.checkVisibility({visibilityProperty: true})) return false;
  const r = e.getBoundingClientRect();
  return r.width > 0 && (r.right > innerWidth + 1 || r.left < -1);
}).map(e => [e.tagName, e.id || e.className, e.getBoundingClientRect().right]).slice(0, 5)"""


def filled(demo: DemoPage) -> None:
    """Every mode with something in it."""
    demo.page.fill("#constraints", "3:apple, 7:pear")
    demo.page.press("#constraints", "Enter")
    demo.ask(ASK)
    demo.page.get_by_role("button", name="Keep in the gallery").click()
    demo.mode("infill")
    demo.page.click("#infill-fill")
    demo.page.wait_for_selector("#infill-stage .pill[data-state=finished]")
    demo.mode("race")
    demo.page.click("#race-start")
    demo.page.wait_for_selector(".race-bar button:not([disabled])", timeout=60_000)


@pytest.mark.parametrize("width", [360, 900, 1600])
def test_every_mode_fits_its_width_and_nothing_overlaps(open_demo: Callable[..., DemoPage], width: int) -> None:
    demo = open_demo(width=width, height=900)
    filled(demo)
    for mode in MODES:
        demo.mode(mode)
        demo.page.wait_for_timeout(100)
        assert demo.page.evaluate("document.documentElement.scrollWidth") == width, mode
        assert demo.page.evaluate(OUTSIDE) == [], mode
        assert demo.page.evaluate(OVERLAPS) == [], mode


@pytest.mark.parametrize("palette", ["published", "safe"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast(open_demo: Callable[..., DemoPage], theme: str, palette: str) -> None:
    demo = open_demo()
    demo.page.select_option("#pref-theme", theme)
    demo.page.select_option("#pref-palette", palette)
    filled(demo)
    for mode in MODES:
        demo.mode(mode)
        demo.page.wait_for_timeout(100)
        assert demo.page.evaluate(POOR) == [], mode


def test_theme_and_palette_are_kept_and_follow_the_system(open_demo: Callable[..., DemoPage]) -> None:
    demo = open_demo(color_scheme="dark")
    page = demo.page
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.select_option("#pref-theme", "light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    page.check("#chat-stage .um-safe input")
    assert page.input_value("#pref-palette") == "safe"
    page.reload()
    page.wait_for_selector("#chat-stage .um-canvas[data-palette=safe]")
    assert page.input_value("#pref-theme") == "light"
    assert page.evaluate("document.documentElement.dataset.theme") == "light"


def test_recommended_values_are_placeholders_and_reset_returns_to_them(demo: DemoPage) -> None:
    controls = demo.page.request.get(f"{demo.url}api/model").json()["controls"]
    for control in controls:
        field = demo.page.locator(f".setting[data-name={control['name']}] :is(input, select)")
        assert field.input_value() == ""
        if control["type"] in ("int", "float", "text") and control["default"] is not None:
            assert field.get_attribute("placeholder") == str(control["placeholder"] or control["default"])
    demo.set(temperature=0.7, top_p=0.9, seed=3, cache="none")
    demo.ask(ASK)
    body = demo.bodies()[-1]
    assert (body["seed"], body["settings"]) == (3, {"temperature": 0.7, "top_p": 0.9, "cache": "none"})
    demo.page.click("#settings-reset")
    demo.ask(ASK)
    body = demo.bodies()[-1]
    assert (body["seed"], body["max_tokens"], body["settings"]) == (0, None, {})


def test_a_number_out_of_range_is_refused_at_its_field_before_anything_is_sent(demo: DemoPage) -> None:
    demo.set(temperature=-1)
    before = len(demo.sent)
    demo.send(ASK)
    problem = demo.page.locator("#settings-form .problem")
    problem.wait_for()
    assert problem.inner_text().split("\n") == ["Temperature", "expected a number from 0 to 2", "got -1"]
    assert demo.page.get_attribute(".setting[data-name=temperature] input", "aria-invalid") == "true"
    assert demo.page.input_value("#message") == ASK
    assert len(demo.sent) == before
    demo.set(temperature=0, max_tokens=8.5)
    demo.page.press("#message", "Enter")
    problem.get_by_text("a whole number from 1 to").wait_for()
    demo.set(max_tokens=8)
    assert not problem.is_visible()
    assert demo.ask(ASK)


def test_a_refusal_of_the_server_is_said_in_the_words_of_the_page(demo: DemoPage, watch: Watch) -> None:
    watch.expect("400")
    problem = demo.page.locator("#settings-form .problem")
    demo.set(top_p=0.5)
    demo.send(ASK)
    problem.get_by_text("Set Temperature above 0").wait_for()
    assert demo.page.get_attribute(".setting[data-name=top_p] input", "aria-invalid") == "true"
    assert demo.page.locator("#talk .turn.user .prose").all_text_contents() == [ASK]
    demo.set(top_p="", threshold=0.5, policy="random")
    problem.get_by_text("Leave Threshold empty").wait_for()
    assert "--" not in problem.text_content()
    assert demo.page.get_attribute(".setting[data-name=threshold] input", "aria-invalid") == "true"
    demo.set(threshold="")
    problem.wait_for(state="hidden")
    demo.page.get_by_role("button", name="Resend you message 1").click()
    assert demo.answered()


def test_on_a_phone_a_refusal_opens_the_form(open_demo: Callable[..., DemoPage], watch: Watch) -> None:
    watch.expect("400")
    demo = open_demo(width=360, height=740)
    assert not demo.page.is_visible("#settings")
    demo.page.click("#settings-toggle")
    demo.set(top_p=5, temperature=1)
    demo.page.keyboard.press("Escape")
    assert not demo.page.is_visible("#settings")
    assert demo.page.evaluate("document.activeElement.id") == "settings-toggle"
    demo.send(ASK)
    demo.page.locator(".setting[data-name=top_p].bad").wait_for()
    assert demo.page.is_visible("#settings-form .problem")


def test_a_server_that_is_gone_is_said_in_words(demo: DemoPage, watch: Watch) -> None:
    watch.expect("ERR_FAILED|net::")
    demo.page.route("**/api/generate", lambda route: route.abort())
    demo.send(ASK)
    demo.page.locator(".problem", has_text="No connection to the server").wait_for()
    assert demo.page.is_enabled("#send")


def test_the_address_bar_forgets_the_token(demo: DemoPage) -> None:
    demo.page.goto(f"{demo.url}?token=secret")
    demo.until("document.documentElement.dataset.ready !== undefined")
    assert "secret" not in demo.page.url


def test_the_page_is_made_without_markup_strings_and_without_other_hosts() -> None:
    files = [p for p in resources.files("unmask").joinpath("demo/static").iterdir() if p.suffix != ".svg"]
    assert len(files) > 10
    for file in files:
        text = file.read_text(encoding="utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "http://", "https://"):
            assert word not in text, f"{file.name}: {word}"
        assert " style=" not in text and " onclick=" not in text, file.name
