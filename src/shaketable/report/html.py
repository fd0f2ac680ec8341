"""The page: one HTML file that needs nothing else, neither network nor neighbour.

Its content security policy allows the scripts it came with, by their hashes, and nothing more: no other script, no
evaluation, no connection, no form, no frame. Styles: the page's own sheet by its hash. With charts, Plotly needs two
things more (measured on plotly.js 4.1): an empty `<style>` element that it fills through the CSSOM, allowed by the hash
of the empty text; and style attributes on SVG nodes, hence `style-src-attr 'unsafe-inline'`. Jinja2 escapes every value,
so no name can bring an attribute of its own. The style sheet of the map library in Plotly would be a violation; its
loader skips it where an element of a known id exists, so the page has that element.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..version import __version__
from . import figures, wording
from .chart_table import chart_table
from .model import GRIDS, Chart, Report, Series, Table
from .values import Cell, Estimate, Metric

MAX_ROWS = 1000  # of one table on the page; report.json has all of them
_LEVELS = {"failed": "Failed", "finding": "Finding", "warning": "Warning", "info": "Note"}
_VERDICTS = {"pass": "Pass", "findings": "Findings", "failed gate": "Failed gate"}


class Verbatim(str):
    """A text whose line breaks are wanted; it is made visible line by line, and escaped like any other."""

    __slots__ = ()


@dataclass(frozen=True)
class Drawing:
    """A chart as the template needs it."""

    chart: Chart
    figure: str
    keys: list[dict[str, Any]]
    table: Table


def write_html(report: Report, path: str | Path) -> None:
    """Write the page, all of it or nothing.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_atomically(Path(path), render(report).encode("utf-8"))


def render(report: Report) -> str:
    """The report as one self-contained HTML page.

    The page works offline, without scripts (tables take the place of charts), printed, in dark and light, by keyboard
    and on a narrow screen. Plotly is inlined (4.8 MB) only if there is a chart.

    Checked by tests/report/test_html.py, and in a browser by tests/report/test_page.py.
    """
    from markupsafe import Markup

    numbers = figures.tones(report)
    drawn = any(section.charts for section in report.sections)
    style, script = _asset("report.css"), _inline(_asset("report.js"))
    plotly = _inline(_plotly()) if drawn else ""
    drawings = [[_drawing(chart, numbers) for chart in section.charts] for section in report.sections]
    page = _engine().get_template("report.html.j2")
    return page.render(
        report=report,
        sections=list(zip(report.sections, drawings, strict=True)),
        csp=_policy(style, [script, plotly] if drawn else [script], drawn),
        style=Markup(style),
        script=Markup(script),
        plotly=Markup(plotly),
        placeholders=_placeholders(plotly),
        findings=sorted(report.findings, key=lambda f: list(_LEVELS).index(f.level)),
        tone=lambda group: "" if group is None else f"tone-{numbers.get(group, 0) % figures.TONES}",
        version=__version__,
    )


def _engine() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("shaketable.report", "templates")
    engine = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_final
    )
    engine.globals.update(levels=_LEVELS, verdicts=_VERDICTS, max_rows=MAX_ROWS)
    engine.filters.update(
        shown=lambda e: wording.shown(e, getattr(e, "unit", "")),
        cell=_cell,
        is_estimate=lambda value: isinstance(value, Estimate),
        columns=_columns,
        paragraphs=lambda text: [p.strip() for p in re.split(r"\n\s*\n", text) if p.strip()],
        scales=_scales,
        pretty=lambda value: Verbatim(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)),
        verbatim=Verbatim,
    )
    return engine


def _final(value: Any) -> Any:
    """Every value on its way into the page: its invisible and reordering characters are shown."""
    if isinstance(value, Verbatim):
        return "\n".join(wording.visible(line) for line in value.split("\n"))
    return wording.visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _cell(value: Cell, decimals: int | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return wording.number(value, decimals)
    return value if isinstance(value, str) else wording.number(value if isinstance(value, int) else None)


def _columns(table: Table) -> list[dict[str, Any]]:
    """Of each column: whether it holds numbers alone, and so is set flush right, and the decimals they share."""

    def numeric(value: Cell) -> bool:
        if isinstance(value, str):
            return re.fullmatch(r"[-\u2013∞\d.,e+%\u202f \[\]]*(NaN|-?Infinity)?", value) is not None
        return not isinstance(value, bool)

    cells = [[row[k] for row in table.rows] for k in range(len(table.columns))]
    shared = [wording.decimals_in([value for value in column if isinstance(value, float)]) for column in cells]
    return [{"numeric": all(map(numeric, c)), "decimals": d} for c, d in zip(cells, shared, strict=True)]


def _scales(metrics: Sequence[Metric]) -> list[dict[str, str] | None]:
    """Where each metric's interval lies on a track that metrics of the same kind and unit share, in percent of it."""
    ends: dict[tuple[str, str], list[float]] = {}
    for m in metrics:
        if m.interval is not None and m.value is not None:
            known = [x for x in (m.value, *m.interval) if abs(x) < float("inf")]
            ends.setdefault((m.kind, m.unit), [0.0]).extend(known)
    tracks: list[dict[str, str] | None] = []
    for m in metrics:
        if m.interval is None or m.value is None or not abs(m.value) < float("inf"):
            tracks.append(None)
            continue
        low, high = (0.0, 1.0) if m.kind == "rate" else (min(ends[m.kind, m.unit]), max(ends[m.kind, m.unit]))
        span = (high - low) * (1.0 if m.kind == "rate" else 1.06) or 1.0
        places = zip(("low", "at", "high"), (m.interval[0], m.value, m.interval[1]), strict=True)
        tracks.append({k: f"{100 * min(1.0, max(0.0, (x - low) / span)):.2f}%" for k, x in places})
    return tracks


def _drawing(chart: Chart, numbers: dict[str, int]) -> Drawing:
    keys = [_key(series, k, numbers) for k, series in enumerate(chart.series)]
    shown = keys if len(keys) > 1 and chart.kind not in GRIDS else []
    return Drawing(chart, _data_block(figures.figure(chart, numbers)), shown, chart_table(chart))


def _key(series: Series, k: int, numbers: dict[str, int]) -> dict[str, Any]:
    look = {"tone": figures.tone_of(series, numbers), "dash": figures.dash_of(series, numbers)}
    return {"name": wording.shortened(series.name, 80), "series": k, **look}


def _data_block(content: Any) -> Any:
    """JSON that is safe inside a script element: no "<", ">" or "&" is left to be read as markup."""
    from markupsafe import Markup

    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _asset(name: str) -> str:
    return resources.files("shaketable.report").joinpath("templates", name).read_text(encoding="utf-8")


def _plotly() -> str:
    return resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")


def _inline(code: str) -> str:
    """Code as it can stand in a script element: "</script" and "<!--", only ever inside its strings, are broken up."""
    return re.sub(r"<(?=/script|!--)", r"<\\", code.replace("\r\n", "\n"), flags=re.IGNORECASE)


def _placeholders(plotly: str) -> list[str]:
    """The ids that Plotly's bundle looks for before it would add a style sheet of a part that is not used here."""
    return sorted(set(re.findall(r'getElementById\("([0-9a-f]{64})"\)', plotly)))


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode('utf-8')).digest()).decode()}'"


def _policy(style: str, scripts: list[str], drawn: bool) -> str:
    sheets = " ".join([_hash(style), *([_hash("")] if drawn else [])])
    rules = ["default-src 'none'", f"script-src {' '.join(map(_hash, scripts))}", f"style-src {sheets}"]
    if drawn:
        rules += [f"style-src-elem {sheets}", "style-src-attr 'unsafe-inline'"]
    return "; ".join([*rules, "img-src data:", "base-uri 'none'", "form-action 'none'"])
