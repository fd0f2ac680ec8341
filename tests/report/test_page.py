"""The page in a browser: drawn, quiet, legible, reachable by keyboard, safe. Needs Chromium; skipped without it."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page

WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) => window.violations.push(e.effectiveDirective + " " + e.sample));
"""

CONTRASTS = (Path(__file__).parent / "contrasts.js").read_text()


class Visit:
    """A page that was opened offline, with everything it did that it should not have."""

    def __init__(self, context: BrowserContext, address: str) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        context.set_offline(True)
        context.add_init_script(WATCH)
        self.page: Page = context.new_page()
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", self._dismiss)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)

    def _dismiss(self, dialog: Dialog) -> None:
        self.problems.append(dialog.message)
        dialog.dismiss()

    def until(self, condition: str, seconds: float = 10.0) -> None:
        """Waits for a condition; Playwright's own wait evaluates text in the page, which its policy forbids."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, f"still not: {condition}"
            self.page.wait_for_timeout(20)

    def drawn(self) -> "Visit":
        """Waits until every chart is drawn, which is when its table is folded."""
        self.until("document.querySelectorAll('.chart details[open]').length === 0")
        return self

    def quiet(self) -> None:
        """Nothing was reported, blocked, asked for or run."""
        assert self.problems == []
        assert self.page.evaluate("window.violations") == []
        assert [url for url in self.requests if not url.startswith("data:")] == [self.requests[0]]
        assert self.page.evaluate("typeof window.hacked") == "undefined"


def pages(browser: Browser, files: dict[str, str]) -> Iterator:
    contexts: list[BrowserContext] = []

    def open_page(name: str = "demo", *, width: int = 1440, **options: object) -> Visit:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))  # type: ignore[arg-type]
        return Visit(contexts[-1], files[name])

    yield open_page
    for context in contexts:
        context.close()


visit = pytest.fixture(pages)


@pytest.fixture(scope="module")
def drawn(browser: Browser, files: dict[str, str]) -> Iterator[Visit]:
    """The demo's page, opened once, for tests that leave it as it was: drawing it takes seconds."""
    for open_page in pages(browser, files):
        yield open_page().drawn()


def _hover(page: Page, chart: int, on: str = ".nsewdrag", item: int = 0) -> str:
    """Points at the middle of something in a chart and gives the label that comes up."""
    plot = page.locator(".plot").nth(chart)
    plot.scroll_into_view_if_needed()
    box = plot.locator(on).nth(item).bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 3, y - 3)
    page.mouse.move(x, y)
    plot.locator(".hoverlayer text").first.wait_for(timeout=5000)
    return " ".join(plot.locator(".hoverlayer text").all_text_contents())


def test_charts_are_drawn_offline_without_a_complaint(drawn: Visit) -> None:
    seen = drawn
    assert seen.page.locator(".plot svg.main-svg").count() >= 5
    assert seen.page.locator(".plot .scatterlayer .trace.scatter path.js-line").count() >= 6
    assert seen.page.locator(".plot .barlayer .point path").count() == 4
    assert seen.page.locator(".plot path.yerror").count() == 4 + 2
    seen.quiet()


def test_pointing_at_a_chart_shows_value_and_interval(drawn: Visit) -> None:
    seen = drawn
    curves = _hover(seen.page, 0)
    assert "epoch 3" in curves
    assert all(name in curves for name in ("AT, test: 1.", "AT, train: ", "AT-AWP, test: 1.", "["))
    bar = _hover(seen.page, 2, ".barlayer .point path", 1)
    assert all(words in bar for words in ("AT", "PGD-20", "55.0", "[52.8, 57.2]"))
    assert "57.4" in _hover(seen.page, 4, ".scatterlayer .points path", 1)
    matrix = _hover(seen.page, 3, ".heatmaplayer text", 1)
    assert "%" in matrix
    seen.quiet()


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.full)])
def test_every_text_is_legible_in_both_themes_and_after_the_switch(visit, scheme: str) -> None:
    seen = visit(color_scheme=scheme).drawn()
    shades = []
    for _ in range(2):
        found = seen.page.evaluate(CONTRASTS)
        assert len(found) > 80
        assert sum(text in ("epoch", "robust accuracy", "evaluated on") for _, text, _ in found) >= 3, (
            "axis titles are seen"
        )
        assert [item for item in found if item[0] < 4.5] == []
        line = seen.page.locator(".plot").first.locator("path.js-line").last.evaluate("p => getComputedStyle(p).stroke")
        shades.append((seen.page.evaluate("getComputedStyle(document.body).backgroundColor"), line))
        seen.page.locator("#theme").click()
    assert shades[0][0] != shades[1][0]
    assert shades[0][1] != shades[1][1], "the charts change with the page"
    pressed = seen.page.locator("#theme").get_attribute("aria-pressed")
    assert pressed == str(scheme == "dark").lower()
    seen.quiet()


@pytest.mark.parametrize("name", [pytest.param("demo", marks=pytest.mark.full), "hostile"])
def test_the_page_never_scrolls_sideways(visit, name: str) -> None:
    seen = visit(name).drawn()
    for width in (1440, 768, 390, 320):
        seen.page.set_viewport_size({"width": width, "height": 900})
        seen.until(f"Math.max(...[...document.querySelectorAll('.plot svg')].map(s => s.clientWidth)) <= {width}")
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    seen.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 320
    seen.quiet()


def test_hostile_names_run_nothing_and_are_read_as_they_are(visit) -> None:
    seen = visit("hostile").drawn()
    page = seen.page
    assert "<img src=x onerror=alert(1)>: 1.0 [-1.0, 2.0]" in _hover(page, 0)
    assert '<b onclick="alert(1)">bold</b>&lt;i&gt;' in _hover(page, 1, ".barlayer .point path", 5)
    assert '<a href="javascript:alert(1)">k</a>: 4' in _hover(page, 2, ".scatterlayer .points path", 4)
    assert _hover(page, 3)
    for intruder in (
        "main img",
        ".plot a",
        ".plot img",
        ".plot [href^=http]",
        "[onerror]",
        "[onclick]",
        "[onmouseover]",
    ):
        assert page.locator(intruder).count() == 0, intruder
    assert page.locator("h1").inner_text() == "</script><script>window.hacked=1</script>"
    axis = page.locator(".plot").nth(1).locator(".xtitle, .g-xtitle text").first
    assert axis.text_content() == '<a href="javascript:alert(1)">k</a>'
    assert page.locator(".plot").nth(0).locator(".g-xtitle text").text_content() == "%{y} %{customdata} $x^2$"
    ticks = page.locator(".plot").nth(3).locator(".ytick text").all_text_contents()
    assert ticks[0] == "<img src…t(1)>"
    assert "@tone-0" in ticks
    assert page.locator(".plot").nth(0).locator("path.js-line").count() == 2 * 14, "lines and bands"
    seen.quiet()


def test_the_policy_stops_a_script_that_got_in(visit) -> None:
    seen = visit()
    seen.page.evaluate(
        """() => {
          const script = document.createElement("script"), box = document.createElement("div");
          script.textContent = "window.hacked = 1";
          box.innerHTML = "<img src='x' onerror='window.hacked = 1'>";
          document.body.append(script, box);
          setTimeout(() => { try { eval("window.hacked = 1"); } catch (error) { window.refused = error.name; } });
        }"""
    )
    seen.until("window.refused === 'EvalError'")
    seen.until("window.violations.length >= 3")
    assert seen.page.evaluate("typeof window.hacked") == "undefined"


@pytest.mark.full
def test_the_keyboard_reaches_everything_and_works_it(visit) -> None:
    seen = visit().drawn()
    page = seen.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "theme"
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("Space")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    reached = []
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("(e => e.tagName + ' ' + e.textContent.trim().slice(0, 24))(document.activeElement)")
        )
    assert sum(item.startswith("SUMMARY Show as a table") for item in reached) >= 5
    assert "BUTTON AT-AWP, train" in reached
    assert "SUMMARY Config" in reached
    assert "BUTTON Copy" in reached
    page.locator(".data summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator(".data").first.get_attribute("open") is not None
    assert "1.0 [" not in page.locator(".data tbody").first.inner_text()
    assert page.locator(".data tbody tr").first.is_visible()
    seen.quiet()


def test_a_name_in_the_legend_hides_its_line_and_its_band(drawn: Visit) -> None:
    seen = drawn
    plot, key = seen.page.locator(".plot").first, seen.page.locator(".key").first
    lines = plot.locator(".scatterlayer .trace")
    before = lines.count()
    key.click()
    assert key.get_attribute("aria-pressed") == "false"
    assert lines.count() == before - 2
    key.click()
    assert lines.count() == before
    seen.quiet()


def test_the_command_can_be_copied_or_is_selected(drawn: Visit) -> None:
    seen = drawn
    seen.page.locator("footer .copy").click()
    seen.until("document.getElementById('status').textContent !== ''")
    assert seen.page.evaluate("getSelection().toString()").strip() == "shaketable demo --seed 0 --out runs/demo"


def test_without_scripts_the_tables_take_the_charts_place(visit) -> None:
    seen = visit(java_script_enabled=False)
    assert seen.page.locator(".data table").first.is_visible()
    assert seen.page.locator(".plot").first.is_hidden()
    assert seen.page.locator("#theme").is_hidden()


@pytest.mark.full
def test_printing_shows_charts_in_light_and_puts_everything_back(visit) -> None:
    seen = visit(color_scheme="dark").drawn()
    page = seen.page
    page.evaluate(
        """addEventListener("beforeprint", () => { window.printed = [document.documentElement.dataset.theme,
        Math.max(...[...document.querySelectorAll(".plot svg")].map((s) => s.clientWidth)),
        document.querySelectorAll(".source:not([open])").length]; })"""
    )
    assert len(page.pdf(format="A4")) > 50_000
    theme, width, closed = page.evaluate("window.printed")
    assert (theme, closed) == ("light", 0)
    assert width <= 680
    assert page.evaluate("document.documentElement.dataset.theme ?? null") is None
    assert page.locator(".source[open]").count() == 0
    assert page.locator(".plot svg.main-svg").nth(0).evaluate("s => s.clientWidth") < 600


def test_the_systems_theme_and_wish_for_less_motion_are_followed(drawn: Visit) -> None:
    seen = drawn
    line = seen.page.locator(".plot").first.locator("path.js-line").last
    before = line.evaluate("p => getComputedStyle(p).stroke")
    seen.page.emulate_media(color_scheme="dark")
    seen.until("document.getElementById('theme').getAttribute('aria-pressed') === 'true'")
    assert line.evaluate("p => getComputedStyle(p).stroke") != before
    assert seen.page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "smooth"
    seen.page.emulate_media(reduced_motion="reduce")
    assert seen.page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    seen.page.emulate_media(color_scheme="light", reduced_motion="no-preference")
    seen.until("document.getElementById('theme').getAttribute('aria-pressed') === 'false'")
    assert line.evaluate("p => getComputedStyle(p).stroke") == before


@pytest.mark.full
def test_a_chart_is_zoomed_by_dragging_and_keeps_its_zoom_in_the_other_theme(visit) -> None:
    seen = visit().drawn()
    page, plot = seen.page, seen.page.locator(".plot").first
    plot.scroll_into_view_if_needed()
    box = plot.locator(".nsewdrag").first.bounding_box()
    assert box is not None
    spans = "(([a, b]) => b - a)(document.querySelector('.plot')._fullLayout.xaxis.range)"
    whole = page.evaluate(spans)
    page.mouse.move(box["x"] + 60, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 160, box["y"] + 140, steps=4)
    page.mouse.up()
    seen.until(f"{spans} < {whole / 2}")
    page.locator("#theme").click()
    assert page.evaluate(spans) < whole / 2
    plot.locator(".nsewdrag").first.dblclick()
    seen.until(f"Math.abs({spans} - {whole}) < 1e-6")
    seen.quiet()
