"""Charts as Plotly figures, checked by the plotly package's own validators, and as tables."""

import copy
import math
from typing import Any

import plotly.graph_objects as go
import pytest

from shaketable.report import Chart, Report, Section, Series, rate_metric
from shaketable.report.chart_table import chart_table
from shaketable.report.figures import TONES, dash_of, figure, plotly_text, tone_of, tones
from shaketable.stats import Rate


def _coloured(value: Any, in_colour: bool = False) -> Any:
    """As the page's script does it: the tokens in colours replaced."""
    if isinstance(value, list):
        return [_coloured(item, in_colour) for item in value]
    if isinstance(value, dict):
        return {key: _coloured(item, key.endswith(("color", "colorscale"))) for key, item in value.items()}
    return "#123456" if in_colour and isinstance(value, str) and value.startswith("@") else value


def _charts(report: Report) -> list[Chart]:
    return [chart for section in report.sections for chart in section.charts]


def _chart(kind: str, *series: Series, **more: Any) -> Chart:
    return Chart(kind=kind, title="t", series=series, x_label="x", y_label="y", description="d", **more)


@pytest.mark.parametrize("which", ["demo", "hostile"])
def test_plotly_accepts_every_figure(which: str, request: pytest.FixtureRequest) -> None:
    report = request.getfixturevalue(which)
    kinds = set()
    for chart in _charts(report):
        made = figure(chart, tones(report))
        drawn = _coloured(copy.deepcopy(made))
        go.Figure(data=drawn["data"], layout=drawn["layout"])
        kinds.add(chart.kind)
    assert kinds == {"line", "bar", "scatter", "heatmap"}


def test_a_model_has_one_colour_in_the_whole_report(demo: Report) -> None:
    numbers = tones(demo)
    assert numbers == {"AT": 0, "AT-AWP": 1}
    lines = {s.name: tone_of(s, numbers) for c in _charts(demo) for s in c.series if c.kind != "heatmap"}
    assert lines == {"AT, test": 0, "AT, train": 0, "AT-AWP, test": 1, "AT-AWP, train": 1, "AT": 0, "AT-AWP": 1}


def test_more_models_than_colours_differ_by_their_line() -> None:
    series = [Series(name=str(k), x=[1], y=[1]) for k in range(TONES + 1)]
    chart = _chart("line", *series)
    report = Report(verb="v", title="t", summary=[], verdict="pass", sections=[Section(title="s", charts=[chart])])
    numbers = tones(report)
    looks = [(tone_of(s, numbers), dash_of(s, numbers)) for s in series]
    assert len(set(looks)) == TONES + 1


def test_intervals_are_bands_and_whiskers_with_gaps_where_nothing_is_known() -> None:
    nan, inf = math.nan, math.inf
    series = Series(name="a", x=[0, 1, 2, 3, 4], y=[1, 2, nan, 4, 5], low=[0, 1, 2, 3, -inf], high=[2, 3, 4, 6, inf])
    band, line = figure(_chart("line", series), {"a": 0})["data"]
    assert band["x"] == [0, 1, 1, 0, None, 3, 3, None]
    assert band["y"] == [2, 3, 1, 0, None, 6, 3, None]
    assert line["y"] == [1, 2, None, 4, 5]
    (points,) = figure(_chart("scatter", series), {"a": 0})["data"]
    assert points["error_y"]["array"] == [1, 1, None, 2, None]
    assert points["error_y"]["arrayminus"] == [1, 1, None, 1, None]


def test_categories_stand_in_their_order_and_are_never_read_as_numbers_or_dates() -> None:
    chart = _chart("bar", Series(name="a", x=["2020-01", "7"], y=[1, 2]), Series(name="b", x=["7", "new"], y=[3, 4]))
    made = figure(chart, {"a": 0, "b": 1})
    assert [trace["x"] for trace in made["data"]] == [[0, 1], [1, 2]]
    assert made["layout"]["xaxis"]["ticktext"] == ["2020-01", "7", "new"]


def test_categories_whose_short_names_agree_stay_apart() -> None:
    chart = _chart("bar", Series(name="a", x=["x" * 90 + "1" + "x" * 90, "x" * 90 + "2" + "x" * 90], y=[1, 2]))
    assert figure(chart, {})["data"][0]["x"] == [0, 1]
    twice = _chart("heatmap", Series(name="r", x=["same", "same"], y=[1, 2]))
    assert len(figure(twice, {})["layout"]["xaxis"]["ticktext"]) == 2


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("<b>x</b>", "&lt;b&gt;x&lt;/b&gt;"), ("&lt;", "&amp;lt;"), ("%{y}", "&#37;{y}"), ("$x^2$", "&#36;x^2&#36;"),
        ("a\u202eb", "a⟨U+202E⟩b"), ("plain", "plain"),
    ],
)  # fmt: skip
def test_nothing_that_plotly_would_act_on_is_left_in_a_text(text: str, escaped: str) -> None:
    assert plotly_text(text) == escaped


def test_a_chart_that_shares_x_is_a_table_with_a_column_for_each_series() -> None:
    rates = [Rate(1, 4), Rate(2, 4)]
    one = Series(name="a", x=["u", "v"], y=[r.value for r in rates], low=[r.interval[0] for r in rates], high=[1, None])
    table = chart_table(_chart("bar", one, Series(name="b", x=["u", "v"], y=[0.5, None]), y_format="percent"))
    assert table.columns == ("x", "a", "b")
    low = [f"{100 * r.interval[0]:.1f}" for r in rates]
    assert table.rows == (
        ("u", f"25.0\u202f% [{low[0]}, 100.0]", "50.0\u202f%"),
        ("v", f"50.0\u202f% [{low[1]}, \u2013]", None),
    )


def test_other_charts_are_a_table_with_a_row_for_each_point() -> None:
    points = _chart(
        "scatter", Series(name="a", x=[1, 2.5], y=[3, 4], labels=["p", "q"]), Series(name="b", x=[7], y=[9])
    )
    table = chart_table(points)
    assert table.columns == ("series", "label", "x", "y")
    assert table.rows == (("a", "p", 1, "3"), ("a", "q", 2.5, "4"), ("b", "", 7, "9"))
    matrix = _chart("heatmap", Series(name="r", x=[1, 2], y=[0.5, None]), Series(name="s", x=[1, 2], y=[0.25, 1]))
    assert chart_table(matrix).columns == ("y", "1", "2")
    assert chart_table(matrix).rows[0][2] is None


def test_every_number_of_every_chart_is_in_its_table(demo: Report) -> None:
    for chart in _charts(demo):
        table = chart_table(chart)
        cells = sum(isinstance(cell, str) for row in table.rows for cell in row)
        assert cells >= sum(len(s.y) for s in chart.series)


def test_groups_of_metrics_count_too() -> None:
    report = Report(verb="v", title="t", summary=[], verdict="pass", headline=[rate_metric("m", Rate(1, 2), group="g")])
    assert tones(report) == {"g": 0}
