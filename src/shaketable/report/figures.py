"""Charts as Plotly figures.

A figure is data: traces and a layout that the page's script draws. Two things in it are not Plotly's:

- a colour is a token, "@tone-0" or "@ink/0.2", which the script replaces by the theme's colour, again at every switch;
- a text is escaped by `plotly_text`, because Plotly reads tags, entities, `%{...}` and `$...$` in every label.

Categories are drawn at positions 0, 1, ... with their names as tick texts: Plotly would otherwise guess that "1" is a
number and "2020-01" a date, and merge categories of the same name.
"""

from typing import Any

from .chart_table import finite, written, x_of
from .escaping import plotly_text
from .model import GRIDS, Chart, Report, Series
from .surfaces import SPATIAL, grid_figure
from .wording import NOTHING, number, percent

TONES = 6  # colours of the page's palette; a seventh group has the first colour and another line and marker
_DASHES = {"solid": "solid", "dash": "8px,5px", "dot": "2px,4px"}
_SYMBOLS = ("circle", "diamond", "square", "cross", "triangle-up")


def tones(report: Report) -> dict[str, int]:
    """The number of each group in the order of first appearance, so that a model has one colour in the whole report."""
    order: dict[str, int] = {}
    metrics = [m.group for m in (*report.headline, *(m for s in report.sections for m in s.metrics))]
    series = [_group(t) for s in report.sections for c in s.charts if c.kind not in GRIDS for t in c.series]
    for group in (*metrics, *series):
        if group is not None:
            order.setdefault(group, len(order))
    return order


def tone_of(series: Series, numbers: dict[str, int]) -> int:
    """The number of a series' colour in the palette."""
    return numbers.get(_group(series), 0) % TONES


def dash_of(series: Series, numbers: dict[str, int]) -> str:
    """The SVG dash pattern of a series' line."""
    if series.dash == "solid" and numbers.get(_group(series), 0) >= TONES:
        return "8px,3px,2px,3px"
    return _DASHES[series.dash]


def figure(chart: Chart, numbers: dict[str, int]) -> dict[str, Any]:
    """The chart's traces, its layout and the least height in pixels; a point's tooltip gives its value and interval.

    Args:
        chart: what to draw.
        numbers: the groups' numbers, from `tones`.

    Checked by tests/report/test_figures.py against the plotly package's own validators.
    """
    if chart.kind in SPATIAL:
        return grid_figure(chart, _layout(chart, []))
    categories = _categories(chart)
    if chart.kind == "heatmap":
        traces = [_heatmap(chart)]
    else:
        bands = [_band(chart, k, numbers) for k in range(len(chart.series)) if chart.kind == "line"]
        words = written(chart)
        lines = [_trace(chart, k, numbers, categories, words[k]) for k in range(len(chart.series))]
        traces = [*(band for band in bands if band), *lines]
    rows = len(chart.series) if chart.kind == "heatmap" else 0
    return {"data": traces, "layout": _layout(chart, categories), "height": 28 * rows + 110}


def _group(series: Series) -> str:
    return series.name if series.group is None else series.group


def _categories(chart: Chart) -> list[str]:
    if not chart.categorical:
        return []
    if chart.kind == "heatmap":
        return [str(x_of(x)) for x in chart.series[0].x]
    return list(dict.fromkeys(str(x_of(x)) for series in chart.series for x in series.x))


def _positions(series: Series, categories: list[str]) -> list[float]:
    if categories:
        places = {category: float(k) for k, category in enumerate(categories)}
        return [places[str(x_of(x))] for x in series.x]
    return [float(x) for x in series.x]


def _trace(
    chart: Chart, k: int, numbers: dict[str, int], categories: list[str], words: list[str | None]
) -> dict[str, Any]:
    series, colour = chart.series[k], f"@tone-{tone_of(chart.series[k], numbers)}"
    trace: dict[str, Any] = {"name": plotly_text(series.name), "meta": {"series": k}, "y": finite(series.y)}
    trace |= {"x": _positions(series, categories), "hovertemplate": "%{customdata}<extra></extra>"}
    trace["customdata"] = _tooltips(series, words, brief=chart.kind == "line" and not categories)
    if chart.kind == "bar":
        trace |= {"type": "bar", "marker": {"color": colour}}
    elif chart.kind == "line":
        style = {"color": colour, "width": 2, "dash": dash_of(series, numbers)}
        trace |= {"type": "scatter", "line": style, "mode": "lines" if len(series.x) > 16 else "lines+markers"}
        trace["marker"] = {"color": colour, "size": 6}
    else:
        symbol = _SYMBOLS[numbers.get(_group(series), 0) // TONES % len(_SYMBOLS)]
        trace |= {"type": "scatter", "mode": "markers", "marker": {"color": colour, "size": 9, "symbol": symbol}}
    if chart.kind != "line" and series.low is not None:
        trace["error_y"] = _whiskers(series, "@ink" if chart.kind == "bar" else colour)
    return trace


def _tooltips(series: Series, words: list[str | None], *, brief: bool) -> list[str]:
    """A text for each point; brief where one box holds all series at an x, and x is the box's title."""
    name, lines = plotly_text(series.name), [plotly_text(text or NOTHING, 120) for text in words]
    if series.labels:
        lines = [f"{plotly_text(label)}: {text}" for label, text in zip(series.labels, lines, strict=True)]
    if brief:
        return [f"{name}: {text}" for text in lines]
    return [f"<b>{name}</b><br>{plotly_text(str(x_of(x)))}<br>{text}" for x, text in zip(series.x, lines, strict=True)]


def _whiskers(series: Series, colour: str) -> dict[str, Any]:
    y, low, high = finite(series.y), finite(series.low), finite(series.high)
    above = [None if a is None or b is None else a - b for a, b in zip(high, y, strict=True)]
    below = [None if a is None or b is None else b - a for a, b in zip(low, y, strict=True)]
    style = {"color": colour, "thickness": 1.5, "width": 5}
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **style}


def _band(chart: Chart, k: int, numbers: dict[str, int]) -> dict[str, Any] | None:
    """The interval of a line as closed shapes, one for each stretch without a gap."""
    series = chart.series[k]
    if series.low is None:
        return None
    xs: list[float | None] = []
    ys: list[float | None] = []
    stretch: list[tuple[float, float, float]] = []
    positions = _positions(series, _categories(chart))
    points = zip(positions, finite(series.low), finite(series.high), finite(series.y), strict=True)
    for x, low, high, y in (*points, (0.0, None, None, None)):
        if low is not None and high is not None and y is not None:
            stretch.append((x, low, high))
        elif stretch:
            back = stretch[::-1]
            xs += [*(p[0] for p in stretch), *(p[0] for p in back), None]
            ys += [*(p[2] for p in stretch), *(p[1] for p in back), None]
            stretch = []
    if not xs:
        return None
    fill = f"@tone-{tone_of(series, numbers)}/0.16"
    look = {"type": "scatter", "mode": "lines", "line": {"width": 0}, "fill": "toself", "fillcolor": fill}
    return {"x": xs, "y": ys, "name": "", "hoverinfo": "skip", "meta": {"series": k}, **look}


def _heatmap(chart: Chart) -> dict[str, Any]:
    rows, columns = chart.series, chart.series[0].x
    hover = [_tooltips(s, line, brief=False) for s, line in zip(rows, written(chart), strict=True)]
    show = percent if chart.y_format == "percent" else number
    trace: dict[str, Any] = {"type": "heatmap", "z": [finite(s.y) for s in rows], "customdata": hover}
    trace |= {"hovertemplate": "%{customdata}<extra></extra>", "xgap": 2, "ygap": 2, "hoverongaps": False}
    written_out = len(rows) * len(columns) <= 144
    trace |= {
        "colorscale": [[0, "@heat-0"], [1, "@heat-1"]],
        "showscale": not written_out,
        "colorbar": {"thickness": 10},
    }
    if written_out:
        trace |= {"text": [[plotly_text(show(v)) for v in s.y] for s in rows], "texttemplate": "%{text}"}
        trace["textfont"] = {"color": "@ink"}
    if chart.y_format == "percent":
        trace |= {"zmin": 0, "zmax": 1}
    return trace


def _layout(chart: Chart, categories: list[str]) -> dict[str, Any]:
    title = {"font": {"size": 12, "color": "@muted"}, "standoff": 10}
    axis = {"gridcolor": "@grid", "linecolor": "@line", "tickcolor": "@line", "zeroline": False, "automargin": True}
    x: dict[str, Any] = {**axis, "showgrid": False, "ticks": "outside", "ticklen": 4, "showline": True}
    x |= {"spikecolor": "@muted", "spikethickness": 1, "spikedash": "solid"}
    y: dict[str, Any] = {**axis, "type": chart.y_scale, "nticks": 6}
    x["title"] = {"text": plotly_text(chart.x_label), **title}
    y["title"] = {"text": plotly_text(chart.y_label, 40), **title}
    if categories:
        x |= _ticks(categories, 22 if len(categories) <= 6 else 14)
        x |= {"tickangle": -40} if len(categories) > 6 else {}  # so that the last one ends within the figure
    else:
        x |= {"type": chart.x_scale, "unifiedhovertitle": {"text": f"{plotly_text(chart.x_label)} %{{x}}"}}
    if chart.kind == "heatmap":
        y |= _ticks([s.name for s in chart.series], 14) | {"type": "linear", "showgrid": False, "autorange": "reversed"}
        x["showline"] = y["showline"] = False
    elif chart.y_format == "percent" and chart.kind not in SPATIAL:
        y["tickformat"] = ".0%"
    if chart.kind == "bar":
        y["rangemode"] = "tozero"
    elif chart.kind == "scatter":
        y |= {"rangemode": "tozero", "zeroline": True, "zerolinecolor": "@muted", "zerolinewidth": 1}
        x |= {"range": [-0.5, len(categories) - 0.5]} if categories else {}
    unified = chart.kind == "line" and not categories
    layout = {"xaxis": x, "yaxis": y, "hovermode": "x unified" if unified else "closest", "showlegend": False}
    layout |= {"margin": {"l": 8, "r": 12, "t": 12, "b": 8}, "barmode": "group", "bargap": 0.45}
    layout |= {"bargroupgap": 0.1, "barcornerradius": 3}
    layout |= {"paper_bgcolor": "@clear", "plot_bgcolor": "@clear", "font": {"size": 12, "color": "@muted"}}
    box = {"bgcolor": "@raised", "bordercolor": "@line", "font": {"size": 13, "color": "@ink"}}
    return layout | {"hoverlabel": {**box, "namelength": -1, "align": "left"}}


def _ticks(names: list[str], limit: int) -> dict[str, Any]:
    texts = [plotly_text(name, limit) for name in names]
    return {"type": "linear", "tickmode": "array", "tickvals": list(range(len(names))), "ticktext": texts}
