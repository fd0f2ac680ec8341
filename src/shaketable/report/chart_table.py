"""The numbers of a chart in words: its table, and the values that its tooltips show."""

import math
from collections.abc import Sequence

from .model import GRIDS, Chart, Series, Table
from .values import Cell
from .wording import decimals_of, number, percent


def chart_table(chart: Chart) -> Table:
    """The numbers of a chart as a table: a column for each series where they share x, else a row for each point.

    Checked by tests/report/test_figures.py.
    """
    title, words = f"Data: {chart.title}", written(chart)
    if chart.kind in GRIDS:
        columns = (chart.y_label or "row", *(str(x_of(x)) for x in chart.series[0].x))
        rows = tuple((s.name, *line) for s, line in zip(chart.series, words, strict=True))
        return Table(title=title, columns=columns, rows=rows)
    labelled = any(s.labels for s in chart.series)
    if len({s.x for s in chart.series}) == 1 and not labelled:
        columns = (chart.x_label or "x", *(s.name for s in chart.series))
        rows = tuple((x_of(x), *(line[i] for line in words)) for i, x in enumerate(chart.series[0].x))
        return Table(title=title, columns=columns, rows=rows)
    columns = ("series", *(("label",) if labelled else ()), chart.x_label or "x", chart.y_label or "y")
    long: list[tuple[Cell, ...]] = []
    for s, line in zip(chart.series, words, strict=True):
        for i, x in enumerate(s.x):
            label = (s.labels[i] if s.labels else "",) if labelled else ()
            long.append((s.name, *label, x_of(x), line[i]))
    return Table(title=title, columns=columns, rows=tuple(long))


def written(chart: Chart) -> list[list[str | None]]:
    """Every point's value with its interval in words, all of them with the same number of decimals."""
    shares = chart.y_format == "percent"
    decimals, scale = (1, 100) if shares else (_decimals(chart), 1)

    def words(series: Series, i: int) -> str | None:
        value = series.y[i]
        if value is None:
            return None
        written = percent(value) if shares else number(value, decimals)
        if series.low is None or series.high is None:
            return written
        ends = (None if end is None else end * scale for end in (series.low[i], series.high[i]))
        return f"{written} [{', '.join(number(end, decimals) for end in ends)}]"

    return [[words(series, i) for i in range(len(series.x))] for series in chart.series]


def x_of(x: float | str) -> float | int | str:
    """An x as it is written: a whole number without its fraction."""
    return int(x) if isinstance(x, float) and x.is_integer() and abs(x) < 1e15 else x


def finite(values: Sequence[float | None] | None) -> list[float | None]:
    """The values, None where one is not finite or there is none."""
    return [v if v is not None and math.isfinite(v) else None for v in values or ()]


def _decimals(chart: Chart) -> int | None:
    """Two significant digits of the middle half width of the intervals, or a thousandth of the span without any."""
    ends = [e for s in chart.series for e in zip(finite(s.low), finite(s.high), strict=True)]
    widths = sorted((high - low) / 2 for low, high in ends if low is not None and high is not None and high > low)
    values = [y for s in chart.series for y in finite(s.y) if y is not None]
    if not widths and all(value.is_integer() for value in values):
        return 0
    span = max(values) - min(values) if values else 0.0
    return decimals_of(widths[len(widths) // 2] if widths else span / 100)
