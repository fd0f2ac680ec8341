"""The page as a document: self-contained, escaped, structured. (What a browser makes of it: test_page.py.)"""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from shaketable.core.errors import StorageError
from shaketable.report import Chart, Report, Section, Series, Table, render, write_html
from shaketable.report.figures import TONES

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Elements in order with their attributes and their text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.bodies: dict[str, list[str]] = {"script": [], "style": []}
        self.data_blocks: list[str] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(source)
        self.close()
        assert not self._open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._text = ""
        if tag not in VOID:
            self._open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] in ("script", "style"):
            self._text += data

    def handle_endtag(self, tag: str) -> None:
        opened, attributes = self._open.pop()
        assert opened == tag, f"{opened} is closed by {tag}"
        if tag in self.bodies:
            blocks = self.data_blocks if attributes.get("type") == "application/json" else self.bodies[tag]
            blocks.append(self._text)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module", params=["demo", "hostile"])
def page(request: pytest.FixtureRequest) -> Page:
    return Page(render(request.getfixturevalue(request.param)))


def _policy(page: Page) -> dict[str, list[str]]:
    (content,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    return {rule.split()[0]: rule.split()[1:] for rule in (content or "").split("; ")}


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_nothing_outside_the_file_is_referred_to(page: Page) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href", "background", "formaction"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or value == "data:,", f"<{tag} {name}={value!r}>"
    assert {tag for tag, _ in page.elements}.isdisjoint({"img", "iframe", "object", "embed", "form", "base", "a href"})
    for sheet in page.bodies["style"]:
        assert "url(" not in sheet
        assert "@import" not in sheet


def test_the_policy_allows_these_scripts_and_sheets_by_hash_and_nothing_else(page: Page) -> None:
    policy = _policy(page)
    assert policy["default-src"] == ["'none'"]
    assert sorted(policy["script-src"]) == sorted(map(_hash, page.bodies["script"]))
    assert policy["style-src"] == policy["style-src-elem"] == [_hash(page.bodies["style"][0]), _hash("")]
    assert policy["style-src-attr"] == ["'unsafe-inline'"]
    assert policy["img-src"] == ["data:"]
    assert policy["base-uri"] == policy["form-action"] == ["'none'"]
    assert "'unsafe-inline'" not in policy["script-src"]
    assert "unsafe-eval" not in str(policy)


def test_no_attribute_runs_or_styles_anything(page: Page) -> None:
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcdoc")], tag


def test_the_page_is_structured(page: Page) -> None:
    tags = [tag for tag, _ in page.elements]
    for landmark in ("header", "main", "footer", "h1", "title"):
        assert tags.count(landmark) == 1
    assert page.all("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        for reference in (attributes.get("aria-labelledby") or "").split():
            assert reference in ids, tag
    assert tags.count("table") == tags.count("caption") > 0
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))
    assert all("type" in button for button in page.all("button"))


def test_every_chart_is_described_and_followed_by_its_table(page: Page) -> None:
    tags = [tag for tag, attributes in page.elements if tag == "details" or attributes.get("class") == "plot"]
    figures = page.all("figure")
    assert figures
    assert tags[: 2 * len(figures)] == ["div", "details"] * len(figures)
    plots = [a for _, a in page.elements if a.get("class") == "plot"]
    assert all(a["role"] == "img" and a["aria-label"] for a in plots)
    assert all(a.get("aria-labelledby") for a in figures)
    assert len(page.data_blocks) == len(figures)
    for block in page.data_blocks:
        assert not set("<>&") & set(block)
        assert set(json.loads(block, parse_constant=pytest.fail)) == {"data", "layout", "height"}


def test_hostile_names_are_text(hostile: Report) -> None:
    source = render(hostile)
    own = source[: source.index("plotly.js v")]
    assert "<img" not in own
    assert own.count("<script") == 1 + 4 + 1
    assert "&lt;img src=x onerror=alert(1)&gt;" in own
    assert "{{7*7}}" in own
    assert "49" not in re.findall(r"<h2[^>]*>(.*?)</h2>", own)
    assert "\u202e" not in own
    assert "⟨U+202E⟩" in own


def test_a_report_without_charts_carries_no_plotly_and_a_stricter_policy() -> None:
    table = Table(title="t", columns=["a"], rows=[[1]])
    report = Report(verb="v", title="t", summary=["s"], verdict="pass", sections=[Section(title="s", tables=[table])])
    source = render(report)
    assert len(source) < 60_000
    page = Page(source)
    assert len(page.bodies["script"]) == 1
    policy = _policy(page)
    assert policy["style-src"] == [_hash(page.bodies["style"][0])]
    assert "style-src-attr" not in policy


def test_a_long_table_is_cut_on_the_page_and_says_so() -> None:
    table = Table(title="t", columns=["a"], rows=[[k] for k in range(1500)])
    source = render(
        Report(verb="v", title="t", summary=[], verdict="pass", sections=[Section(title="s", tables=[table])])
    )
    assert "The first 1000 of 1500 rows" in source
    assert len(Page(source).all("tr")) == 1 + 1000


def test_numbers_are_set_flush_right_and_texts_are_not() -> None:
    rows = [["x", 1.5, None, "1,000"], ["y", 88.25, 2, "no"]]
    table = Table(title="t", columns=["text", "float", "int", "mixed"], rows=rows)
    source = render(
        Report(verb="v", title="t", summary=[], verdict="pass", sections=[Section(title="s", tables=[table])])
    )
    heads = [th.get("class") for th in Page(source).all("th") if th["scope"] == "col"]
    assert heads == [None, "num", "num", None]
    assert re.findall(r'<td class="num"><bdi>([^<]*)</bdi>', source) == ["1.50", "\u2013", "88.25", "2"]


def test_the_same_report_is_the_same_page(demo: Report, tmp_path: Path) -> None:
    write_html(demo, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(demo)


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    report = Report(verb="v", title="t", summary=[], verdict="pass")
    with pytest.raises(StorageError):
        write_html(report, tmp_path / "file" / "report.html")


def test_numbers_that_are_not_finite_do_not_break_the_page() -> None:
    nan, inf = float("nan"), float("inf")
    series = Series(name="a", x=[1, 2, 3], y=[nan, inf, None], low=[nan, -inf, None], high=[1, inf, None])
    charts = [
        Chart(kind=kind, title="t", series=[series], x_label="", y_label="", description="d", y_format=form)
        for kind in ("line", "bar", "scatter", "heatmap")
        for form in ("number", "percent")
    ]
    page = Page(
        render(Report(verb="v", title="t", summary=[], verdict="pass", sections=[Section(title="s", charts=charts)]))
    )
    assert all(json.loads(block, parse_constant=pytest.fail) for block in page.data_blocks)


def _light(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _contrast(a: str, b: str) -> float:
    low, high = sorted((_light(a), _light(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_the_palette_can_be_told_from_the_page_and_written_on(page: Page, theme: int) -> None:
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", page.bodies["style"][0])
    palette = {name: (light, dark)[theme] for name, light, dark in pairs}
    tones = [name for name in palette if name.startswith("tone-")]
    assert len(tones) == TONES
    assert all(_contrast(palette[tone], palette[ground]) >= 3 for tone in tones for ground in ("page", "raised"))
    assert all(_contrast(palette["ink"], palette[ground]) >= 4.5 for ground in ("page", "raised", "heat-0", "heat-1"))
