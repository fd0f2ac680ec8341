"""Contours, surfaces and volumes: what the model accepts, the figures, their tables, and the page in a browser."""

import itertools
import json
import math
import re
from typing import Any

import plotly.graph_objects as go
import pytest
from pydantic import ValidationError

from shaketable.report import Chart, Report, Section, Series, read_json, same, write_html, write_json
from shaketable.report.chart_table import chart_table
from shaketable.report.figures import figure, tones

X = (-1.0, 0.0, 0.5)


def rows(dims: int, **more: Any) -> list[Series]:
    places = itertools.product(*[X] * (dims - 1))
    return [
        Series(
            name=str(at[0]) if dims == 2 else f"{at[1]}, {at[0]}",
            x=X,
            y=[x * x + sum(at) for x in X],
            at=at[::-1],
            **more,
        )
        for at in places
    ]


def chart(kind: str, **more: Any) -> Chart:
    given = {"series": rows(3 if kind == "volume" else 2), "z_label": "loss", **more}
    return Chart(kind=kind, title="t", x_label="first", y_label="second", description="d", **given)


def test_plotly_accepts_every_figure_and_holes_stay() -> None:
    for kind in ("contour", "surface", "volume"):
        for more in ({}, {"span": (0.0, 2.0)}, {"y_format": "percent"}):
            made = figure(chart(kind, **more), {})
            drawn = json.loads(re.sub("@[a-z0-9./-]+", "#123456", json.dumps(made)))
            go.Figure(data=drawn["data"], layout=drawn["layout"])
    broken = rows(2)
    broken[1] = broken[1].model_copy(update={"y": (1.0, math.nan, math.inf)})
    assert figure(chart("contour", series=broken), {})["data"][0]["z"][1] == [1.0, None, None]


def test_colours_go_from_end_to_end_of_the_span_and_axes_are_numbers() -> None:
    made = figure(chart("contour", span=(0.0, 9.0)), {})
    (trace,) = made["data"]
    assert (trace["zmin"], trace["zmax"]) == (0.0, 9.0)
    assert (trace["x"], trace["y"]) == ([-1.0, 0.0, 0.5], [-1.0, 0.0, 0.5])
    own = figure(chart("surface"), {})["data"][0]
    assert (own["cmin"], own["cmax"]) == (-1.0, 1.5)
    flat = figure(chart("surface", series=[s.model_copy(update={"y": (2.0,) * 3}) for s in rows(2)]), {})["data"][0]
    assert flat["cmin"] < flat["cmax"]
    volume = figure(chart("volume"), {})["data"][0]
    points = list(zip(volume["x"], volume["y"], volume["z"], volume["value"], strict=True))
    assert len(points) == 27
    assert all(value == pytest.approx(x * x + y + z) for x, y, z, value in points)


def test_a_path_lies_over_a_contour() -> None:
    path = Series(name="path", x=[0.1, 0.2], y=[0.3, 0.4], labels=["epoch 1", "epoch 2"])
    contour, line = figure(chart("contour", path=path), {})["data"]
    assert contour["type"] == "contour"
    assert (line["x"], line["y"], line["customdata"]) == ([0.1, 0.2], [0.3, 0.4], ["epoch 1", "epoch 2"])


def test_the_table_has_every_value() -> None:
    table = chart_table(chart("volume"))
    assert table.columns == ("second", "-1", "0", "0.5")
    assert len(table.rows) == 9
    assert all(cell is not None for row in table.rows for cell in row)


def test_rows_of_a_grid_are_no_groups() -> None:
    report = Report(
        verb="v",
        title="t",
        summary=[],
        verdict="pass",
        sections=[Section(title="s", charts=[chart("contour"), chart("volume")])],
    )
    assert tones(report) == {}


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("contour", {"series": rows(3)}, "expected 1 numbers"),
        ("volume", {"series": rows(2)}, "expected 2 numbers"),
        ("heatmap", {"series": rows(2)}, "expected 0 numbers"),
        ("surface", {"series": rows(2)[::-1]}, "rising numbers"),
        ("volume", {"series": rows(3)[:-1]}, "whole grid"),
        ("volume", {"series": [rows(3)[k] for k in (0, 3, 6, 1, 4, 7, 2, 5, 8)]}, "whole grid"),
        (
            "surface",
            {"series": [rows(2)[0], rows(2)[1].model_copy(update={"x": (1.0, 2.0, 3.0)})]},
            "same x in every row",
        ),
        ("surface", {"series": [Series(name="a", x=["p", "q"], y=[1, 2], at=[0.0])]}, "rising numbers"),
        ("contour", {"span": (1.0, 1.0)}, "low < high"),
        ("surface", {"path": Series(name="p", x=[1], y=[1])}, "over a contour"),
        ("line", {"series": [Series(name="a", x=[1], y=[1])], "span": (0.0, 1.0), "z_label": ""}, "expected none"),
    ],
)
def test_what_is_no_grid_is_refused(kind: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        chart(kind, **more)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("surfaces")
    hostile = '<img src=x onerror="window.hacked=1">%{x}'
    path = Series(name=hostile, x=[-0.5, 0.2], y=[0.3, 0.1], labels=[hostile, "b"])
    charts = [
        chart("contour", path=path), chart("surface"), chart("volume"),
        chart("contour", z_label=hostile, series=[s.model_copy(update={"name": hostile}) for s in rows(2)]),
    ]  # fmt: skip
    report = Report(verb="v", title="t", summary=["s"], verdict="pass", sections=[Section(title="s", charts=charts)])
    write_json(report, folder / "report.json")
    assert same(read_json(folder / "report.json"), report)
    write_html(report, folder / "page.html")
    return (folder / "page.html").as_uri()


@pytest.mark.parametrize("webgl", [pytest.param(True, marks=pytest.mark.full), False])
def test_the_page_draws_them_or_shows_their_tables(browser: Any, page: str, webgl: bool) -> None:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_offline(True)
    context.add_init_script(
        "window.violations = []; document.addEventListener('securitypolicyviolation', (e) => window.violations.push(e.sample));"
    )
    if not webgl:
        context.add_init_script(
            "const get = HTMLCanvasElement.prototype.getContext; HTMLCanvasElement.prototype.getContext = "
            "function (kind, ...more) { return kind.includes('webgl') ? null : get.call(this, kind, ...more); };"
        )
    try:
        shown = context.new_page()
        errors: list[str] = []
        shown.on("pageerror", lambda error: errors.append(str(error)))
        shown.goto(page, timeout=120_000)
        wanted = 0 if webgl and shown.evaluate("!!document.createElement('canvas').getContext('webgl')") else 2
        for _ in range(200):
            if shown.evaluate("document.querySelectorAll('.chart details[open]').length") == wanted:
                break
            shown.wait_for_timeout(50)
        assert shown.locator(".data[open]").count() == wanted
        assert shown.locator(".plot .gl-container canvas:visible").count() == (0 if wanted else 2)
        assert shown.locator(".plot .contourlayer .contourlines path").count() > 0
        assert shown.locator(".plot .scatterlayer .trace").count() == 1
        shown.locator("#theme").click()
        assert shown.evaluate("typeof window.hacked") == "undefined"
        assert shown.evaluate("window.violations") == []
        assert errors == []
    finally:
        context.close()
