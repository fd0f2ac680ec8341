"""Values on a grid of numbers as Plotly figures: contours, and surfaces and volumes in space, which WebGL draws.

Where a browser has no WebGL the page shows the chart's table in the place of a surface or volume.
"""

import math
from typing import Any

from .chart_table import finite, written
from .escaping import plotly_text
from .model import Chart, Series
from .wording import NOTHING

SPATIAL = ("contour", "surface", "volume")
_COLOURS = [[0, "@heat-0"], [0.5, "@heat-1"], [1, "@heat-2"]]
_LEVELS = 5  # isosurfaces of a volume, about


def grid_figure(chart: Chart, layout: dict[str, Any]) -> dict[str, Any]:
    """A contour's, a surface's or a volume's traces, layout and least height.

    Args:
        layout: as charts in the plane have it; in space its axes become those of a scene.

    Checked by tests/report/test_surfaces.py against the plotly package's own validators.
    """
    if chart.kind == "contour":
        traces = [_contour(chart), *([_path(chart.path)] if chart.path is not None else [])]
        return {"data": traces, "layout": layout, "height": 340}
    trace = _surface(chart) if chart.kind == "surface" else _volume(chart)
    layout = {key: value for key, value in layout.items() if key not in ("xaxis", "yaxis")}
    margin = {"l": 0, "r": 0, "t": 0, "b": 0}
    return {"data": [trace], "layout": layout | {"scene": _scene(chart), "margin": margin}, "height": 380}


def _values(chart: Chart) -> list[float | None]:
    return [value for series in chart.series for value in finite(series.y)]


def _ends(chart: Chart) -> tuple[float, float]:
    """The values at the ends of the colours."""
    if chart.span is not None:
        return chart.span
    known = [value for value in _values(chart) if value is not None] or [0.0]
    return min(known), max(known) if max(known) > min(known) else min(known) + 1.0


def _steps(low: float, high: float, most: int = 12) -> tuple[float, float]:
    """The first level above the lowest value, and the step between two: 1, 2, 2.5 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough)
    return (math.floor(low / step) + 1) * step, step


def _bar(chart: Chart) -> dict[str, Any]:
    bar: dict[str, Any] = {"thickness": 10, "outlinewidth": 0, "tickfont": {"color": "@muted", "size": 11}}
    if chart.kind != "volume" and chart.z_label:
        title = {"text": plotly_text(chart.z_label, 40), "side": "right", "font": {"color": "@muted", "size": 12}}
        bar["title"] = title
    return bar | ({"tickformat": ".0%"} if chart.y_format == "percent" else {})


def _hover(chart: Chart) -> list[list[str]]:
    """What the tooltip of each point says."""
    x_name, y_name = plotly_text(chart.x_label, 30), plotly_text(chart.y_label, 30)

    def said(x: Any, series: Series, text: str | None) -> str:
        return f"{x_name} {x:.4g}<br>{y_name} {plotly_text(series.name)}<br><b>{plotly_text(text or NOTHING)}</b>"

    rows = zip(chart.series, written(chart), strict=True)
    return [[said(x, series, text) for x, text in zip(series.x, line, strict=True)] for series, line in rows]


def _contour(chart: Chart) -> dict[str, Any]:
    low, high = _ends(chart)
    first, step = _steps(low, high)
    return {
        "type": "contour", "x": list(chart.series[0].x), "y": [at for s in chart.series for at in s.at or ()],
        "z": [finite(s.y) for s in chart.series], "zmin": low, "zmax": high, "colorscale": _COLOURS,
        "contours": {"start": first, "end": high - step / 4, "size": step, "coloring": "heatmap"},
        "line": {"width": 0.6, "color": "@ink/0.45"}, "colorbar": _bar(chart), "customdata": _hover(chart),
        "hovertemplate": "%{customdata}<extra></extra>", "hoverongaps": False, "connectgaps": False,
    }  # fmt: skip


def _path(path: Series) -> dict[str, Any]:
    """A line of points over a contour, its labels on hover; the last point is marked."""
    labels = [plotly_text(label) for label in path.labels or [path.name] * len(path.x)]
    sizes = [7] * (len(path.x) - 1) + [12]
    symbols = ["circle"] * (len(path.x) - 1) + ["star"]
    return {
        "type": "scatter", "mode": "lines+markers", "x": [float(x) for x in path.x], "y": finite(path.y),
        "line": {"color": "@tone-1", "width": 2}, "customdata": labels, "name": plotly_text(path.name),
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {"color": "@tone-1", "size": sizes, "symbol": symbols, "line": {"color": "@raised", "width": 1}},
    }  # fmt: skip


def _surface(chart: Chart) -> dict[str, Any]:
    low, high = _ends(chart)
    first, step = _steps(low, high)
    return {
        "type": "surface", "x": list(chart.series[0].x), "y": [at for s in chart.series for at in s.at or ()],
        "z": [finite(s.y) for s in chart.series], "cmin": low, "cmax": high, "colorscale": _COLOURS,
        "colorbar": {**_bar(chart), "len": 0.7}, "customdata": _hover(chart), "connectgaps": False,
        "hovertemplate": "%{customdata}<extra></extra>",
        "contours": {"z": {"show": True, "start": first, "end": high, "size": step, "color": "@ink/0.3"}},
        "lighting": {"ambient": 0.75, "diffuse": 0.5, "specular": 0.05, "roughness": 0.9},
    }  # fmt: skip


def _volume(chart: Chart) -> dict[str, Any]:
    """Isosurfaces at equal steps of the value, which can be seen through."""
    low, high = _ends(chart)
    first, step = _steps(low, high, _LEVELS + 1)
    count = max(1, math.ceil((high - first) / step))
    places = [(x, *(s.at or ())) for s in chart.series for x in s.x]
    value = "%{value:.1%}" if chart.y_format == "percent" else "%{value:.4g}"
    return {
        "type": "isosurface", "x": [p[0] for p in places], "y": [p[1] for p in places], "z": [p[2] for p in places],
        "value": _values(chart), "isomin": first, "isomax": first + (count - 1) * step, "cmin": low, "cmax": high,
        "surface": {"count": count}, "opacity": 0.35, "colorscale": _COLOURS, "colorbar": {**_bar(chart), "len": 0.7},
        "caps": {axis: {"show": False} for axis in "xyz"},
        "hovertemplate": f"(%{{x:.3g}}, %{{y:.3g}}, %{{z:.3g}})<br><b>{value}</b><extra></extra>",
    }  # fmt: skip


def _scene(chart: Chart) -> dict[str, Any]:
    look: dict[str, Any] = {
        "gridcolor": "@line", "zeroline": False, "showbackground": False, "linecolor": "@line", "nticks": 5,
        "showspikes": False, "tickfont": {"color": "@muted", "size": 11},
    }  # fmt: skip
    names = zip(("xaxis", "yaxis", "zaxis"), (chart.x_label, chart.y_label, chart.z_label), strict=True)
    axes = {axis: {**look, "title": _title(text)} for axis, text in names}
    if chart.kind == "surface":
        axes["zaxis"] |= {"range": list(_ends(chart)), "type": "linear"}
        axes["zaxis"] |= {"tickformat": ".0%"} if chart.y_format == "percent" else {}
    camera = {"eye": {"x": 1.35, "y": -1.5, "z": 0.95}, "center": {"x": 0, "y": 0, "z": -0.12}}
    ratio = {"x": 1, "y": 1, "z": 0.75 if chart.kind == "surface" else 1}
    return {**axes, "camera": camera, "aspectmode": "manual", "aspectratio": ratio, "dragmode": "turntable"}


def _title(text: str) -> dict[str, Any]:
    return {"text": plotly_text(text, 40), "font": {"size": 12, "color": "@muted"}}
