"""The report on a terminal: what a stranger reads first, then the metrics with their intervals, and where the rest is.

Names are printed as text, never as markup, and their control characters are shown, so that no name can colour, move or
clear the terminal.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from .model import Finding, Report
from .values import Metric
from .wording import shown, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

MAX_METRICS = 24
_VERDICTS = {"pass": "bold green", "findings": "bold yellow", "failed gate": "bold red"}
_LEVELS = {"failed": "bold red", "finding": "bold yellow", "warning": "yellow", "info": "dim"}
_PLAIN_WIDTH = 120


def print_report(report: Report, console: "Console", *, path: str | Path | None = None) -> None:
    """Print verdict, summary, metrics with intervals and counts, findings with remedies, and the report's path.

    Args:
        report: what to print.
        console: Rich's console. Where it is no terminal the same text is printed without colour, its lines unwrapped.
        path: where the report was written.

    Checked by tests/report/test_terminal.py.
    """
    from rich.padding import Padding
    from rich.text import Text

    def line(*parts: tuple[str, str], indent: int = 0) -> None:
        text = Text.assemble(*((visible(words), style) for words, style in parts))
        if console.is_terminal:
            console.print(Padding(text, (0, 0, 0, indent)))
        else:
            text.pad_left(indent)
            console.print(text, soft_wrap=True)

    line((report.title, "bold"))
    line((report.verdict.upper(), _VERDICTS[report.verdict]), (f"  {report.verb}", "dim"))
    if report.summary:
        console.print()
    for sentence in report.summary:
        line((sentence, ""), indent=2)
    groups, left = _groups(report)
    if groups:
        console.print()
        width = None if console.is_terminal else max(console.width, _PLAIN_WIDTH)
        console.print(_table(groups), width=width, crop=console.is_terminal)
    if left:
        line((f"{left} more in the report", "dim"), indent=2)
    findings = sorted(report.findings, key=lambda f: list(_LEVELS).index(f.level))
    if findings:
        console.print()
    for finding in findings:
        line(*_finding(finding), indent=2)
        if finding.remedy:
            line((finding.remedy, "dim"), indent=11)
    if path is not None:
        console.print()
        line(("Report: ", ""), (str(path), "bold"))


def _finding(finding: Finding) -> list[tuple[str, str]]:
    return [(f"{finding.level:<9}", _LEVELS[finding.level]), (f"{finding.code}: ", "bold"), (finding.message, "")]


def _groups(report: Report) -> tuple[list[tuple[str, list[Metric]]], int]:
    """The headline and the sections' metrics under their titles, none twice, and how many beyond `MAX_METRICS`."""
    groups, seen = [], set[str]()
    for title, metrics in [("", report.headline), *((s.title, s.metrics) for s in report.sections)]:
        new = [m for m in metrics if repr(m) not in seen]
        kept = new[: max(0, MAX_METRICS - len(seen))]
        seen.update(repr(m) for m in new)
        if kept:
            groups.append((title, kept))
    return groups, max(0, len(seen) - sum(len(kept) for _, kept in groups))


def _table(groups: list[tuple[str, list[Metric]]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(Text("  Metric"), overflow="fold")
    table.add_column("Value", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for title, metrics in groups:
        if title:
            if table.row_count:
                table.add_row()
            table.add_row(Text(visible(title), style="dim"))
        for metric in metrics:
            words = shown(metric, metric.unit)
            texts = (f"{words.value} {words.unit}".rstrip(), words.interval, words.count)
            table.add_row(_name(metric), *(Text(visible(text.replace("\u202f", " "))) for text in texts))
    return table


def _name(metric: Metric) -> "Text":
    from rich.text import Text

    return Text(f"  {visible(metric.name)}")
