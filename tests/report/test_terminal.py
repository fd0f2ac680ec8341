"""The report on a terminal and in a log."""

import io

from rich.console import Console

from shaketable.report import Report, Section, number_metric, print_report
from shaketable.report.terminal import MAX_METRICS


def _printed(report: Report, *, terminal: bool, width: int = 100, path: str | None = None) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=width, color_system="truecolor" if terminal else None)
    print_report(report, console, path=path)
    return stream.getvalue()


def test_a_stranger_reads_verdict_summary_metrics_findings_and_path(demo: Report) -> None:
    text = _printed(demo, terminal=False, path="runs/demo/report.html")
    lines = text.splitlines()
    assert lines[0] == demo.title
    assert lines[1].startswith("FINDINGS")
    for sentence in demo.summary:
        assert f"  {sentence}" in lines, "a sentence is one line in a log"
    row = next(line for line in lines if "AT, robust accuracy" in line)
    assert row.split()[-5:] == ["55.0", "%", "[52.8,", "57.2]", "1100/2000"]
    mean = next(line for line in lines if "paired" in line)
    assert mean.split()[-5:] == ["2.4", "points", "[0.9,", "3.9]", "2,000"]
    assert (
        text.index("finding  robust-overfitting: ") < text.index("Stop at epoch 24") < text.index("info     small-test")
    )
    assert lines[-1] == "Report: runs/demo/report.html"
    assert "\x1b" not in text


def test_the_columns_are_aligned(demo: Report) -> None:
    lines = [line for line in _printed(demo, terminal=False).splitlines() if "]" in line and "/2000" in line]
    assert len(lines) == 6
    assert len({line.index("]") for line in lines}) == 1


def test_a_terminal_gets_colour_and_its_own_width(demo: Report) -> None:
    text = _printed(demo, terminal=True, width=60)
    assert "\x1b[1;33mFINDINGS" in text
    plain = "".join(part.partition("m")[2] if k else part for k, part in enumerate(text.split("\x1b[")))
    assert max(map(len, plain.splitlines())) <= 60
    assert "[52.8, 57.2]" in plain


def test_no_name_controls_the_terminal(hostile: Report) -> None:
    for terminal in (True, False):
        text = _printed(hostile, terminal=terminal, path="a\x1b[2Jb")
        assert "\x1b[2J" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
        assert "⟨U+001B⟩" in text


def test_markup_in_a_name_is_text() -> None:
    name = "[bold red]x[/] [link=https://example.org]y[/link]"
    report = Report(verb="v", title=name, summary=[name], verdict="pass", headline=[number_metric(name, 1)])
    assert _printed(report, terminal=False).count(name) == 3


def test_no_metric_is_printed_twice_and_what_is_left_out_is_counted() -> None:
    shared = number_metric("shared", 1)
    many = [number_metric(f"metric {k}", k) for k in range(MAX_METRICS + 5)]
    sections = [Section(title="s", metrics=[shared, *many])]
    report = Report(verb="v", title="t", summary=["s"], verdict="pass", headline=[shared], sections=sections)
    text = _printed(report, terminal=False)
    assert text.count("shared") == 1
    assert text.count("metric ") == MAX_METRICS - 1
    assert "  6 more in the report" in text


def test_a_report_of_nothing_is_two_lines() -> None:
    report = Report(verb="train", title="t", summary=[], verdict="pass")
    assert [line.rstrip() for line in _printed(report, terminal=False).splitlines()] == ["t", "PASS  train"]
