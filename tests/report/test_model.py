"""What a report accepts and what it refuses."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shaketable.report import (
    Chart,
    Estimate,
    Finding,
    Metric,
    Report,
    Section,
    Series,
    Table,
    estimate,
    mean_metric,
    number_metric,
    rate_metric,
    verdict_of,
)
from shaketable.stats import Mean, Rate, mean

RATE = {"kind": "rate", "value": 0.5, "hits": 5, "n": 10, "interval": Rate(5, 10).interval, "law": "wilson"}
MEAN = {"kind": "mean", "value": 0.5, "n": 10, "interval": (0.4, 0.6), "law": "student"}
LINE = {"kind": "line", "title": "t", "x_label": "x", "y_label": "y", "description": "d"}
WHOLE = {"verb": "evaluate", "title": "t", "summary": ["s"], "verdict": "pass"}

REFUSED = {
    "a rate without hits": (Estimate, RATE | {"hits": None}, "hits, n and its Wilson interval"),
    "a rate without n": (Estimate, RATE | {"n": None}, "hits, n and its Wilson interval"),
    "a rate without interval": (Estimate, RATE | {"interval": None}, "hits, n and its Wilson interval"),
    "a rate with another law": (Estimate, RATE | {"law": "student"}, "Wilson"),
    "a rate with another interval": (Estimate, RATE | {"interval": (0.2, 0.8)}, "value and Wilson interval"),
    "a rate with another value": (Estimate, RATE | {"value": 0.6}, "value and Wilson interval"),
    "more hits than items": (Estimate, RATE | {"hits": 11}, "hits"),
    "negative hits": (Estimate, RATE | {"hits": -1}, "greater than or equal to 0"),
    "hits that are no integer": (Estimate, RATE | {"hits": 5.0}, "integer"),
    "an n beyond 64 bits": (Estimate, RATE | {"n": 1 << 64}, "less than"),
    "a mean without n": (Estimate, MEAN | {"n": None}, "n > 0"),
    "a mean of nothing": (Estimate, MEAN | {"n": 0}, "n > 0"),
    "a mean without interval": (Estimate, MEAN | {"interval": None}, "interval"),
    "a mean with a reversed interval": (Estimate, MEAN | {"interval": (0.6, 0.4)}, "low <= high"),
    "a mean with an interval of NaN": (Estimate, MEAN | {"interval": ("NaN", "NaN")}, "low <= high"),
    "a mean with Wilson's law": (Estimate, MEAN | {"law": "wilson"}, "student or bootstrap"),
    "a number with an interval": (Estimate, {"value": 1.0, "interval": (0, 2)}, "without hits, interval and law"),
    "a value that is a text": (Estimate, {"value": "0.5"}, "expected a number"),
    "a value that is a truth value": (Estimate, {"value": True}, "expected a number"),
    "an unknown field": (Estimate, {"value": 1.0, "colour": "red"}, "Extra inputs"),
    "a metric without name": (Metric, {"name": "", "value": 1.0}, "name\n  Value should have at least 1"),
    "a name that is bytes": (Metric, {"name": b"a", "value": 1.0}, "expected a text"),
    "an unknown level": (Finding, {"level": "bad", "code": "c", "message": "m"}, "'info'"),
    "a code with blanks": (Finding, {"level": "info", "code": "Two Words", "message": "m"}, "pattern"),
    "fewer y than x": (Series, {"name": "a", "x": [1, 2], "y": [1]}, "as many values as x"),
    "more labels than x": (Series, {"name": "a", "x": [1], "y": [1], "labels": ["a", "b"]}, "labels"),
    "half an interval": (Series, {"name": "a", "x": [1], "y": [1], "low": [0]}, "both or neither"),
    "an x that is NaN": (Series, {"name": "a", "x": [math.nan], "y": [1]}, "finite"),
    "x of mixed kinds": (Series, {"name": "a", "x": [1, "b"], "y": [1, 2]}, "x"),
    "a chart without series": (Chart, LINE | {"series": []}, "at least 1 item"),
    "a chart without description": (Chart, LINE | {"series": [], "description": ""}, "description"),
    "a ragged table": (Table, {"title": "t", "columns": ["a", "b"], "rows": [[1, 2], [1]]}, "in row 1"),
    "a cell that is a list": (Table, {"title": "t", "columns": ["a"], "rows": [[[1]]]}, "rows"),
    "a pass with findings": (
        Report,
        WHOLE | {"findings": [{"level": "finding", "code": "c", "message": "m"}]},
        "expected 'findings'",
    ),
    "findings with a failed gate": (
        Report,
        WHOLE | {"verdict": "findings", "findings": [{"level": "failed", "code": "c", "message": "m"}]},
        "expected 'failed gate'",
    ),
    "seven key numbers": (Report, WHOLE | {"headline": [{"name": "a", "value": 1.0}] * 7}, "at most 6"),
    "a hash that is none": (Report, WHOLE | {"hashes": {"models": {"a": "f00"}}}, "pattern"),
    "a seed that is a float": (Report, WHOLE | {"seeds": {"all": 0.5}}, "integer"),
    "a config with an object": (Report, WHOLE | {"config": {"a": object()}}, "a value that JSON holds"),
    "a config with a key that is no text": (Report, WHOLE | {"config": {1: 2}}, "expected a text"),
    "another schema": (Report, WHOLE | {"schema_version": "2.0"}, "1.0"),
}


@pytest.mark.parametrize(("model", "fields", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_says_why(model: type, fields: dict, reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model(**fields)
    assert reason in str(caught.value)


def test_what_those_cases_vary_is_accepted() -> None:
    assert Estimate(**RATE).value == Estimate(**MEAN).value == 0.5
    assert Report(**WHOLE).verdict == "pass"
    assert Chart(**LINE, series=[Series(name="", x=[1, 2], y=[1, None])]).categorical is False


@given(n=st.integers(0, 10**6), share=st.floats(0, 1))
def test_every_rate_becomes_a_metric_with_its_wilson_interval(n: int, share: float) -> None:
    rate = Rate(int(share * n), n)
    metric = rate_metric("a", rate)
    assert (metric.hits, metric.n, metric.interval, metric.law) == (rate.hits, rate.n, rate.interval, "wilson")
    assert metric.value == rate.value or (n == 0 and metric.value is not None and math.isnan(metric.value))
    with pytest.raises(ValidationError):
        Metric(**(metric.model_dump() | {"interval": (rate.interval[0] - 1e-6, rate.interval[1])}))


def test_a_mean_keeps_its_law_and_its_unknown_spread() -> None:
    metric = mean_metric("a", mean([2.0]), unit="nats", group="g")
    assert metric.interval == (-math.inf, math.inf)
    assert (metric.n, metric.law, metric.unit, metric.group) == (1, "student", "nats", "g")
    assert mean_metric("a", Mean(1, 0, 2, 9, 1, "bootstrap")).law == "bootstrap"
    assert number_metric("a", 3).value == estimate(3).value == 3.0


def test_a_cell_takes_rates_means_and_plain_values() -> None:
    row = Table(
        title="t", columns=list("abcdefg"), rows=[[Rate(1, 2), mean([1, 2]), 1, 1.0, True, None, math.inf]]
    ).rows[0]
    assert [getattr(cell, "kind", cell) for cell in row] == ["rate", "mean", 1, 1.0, True, None, "Infinity"]
    assert [type(cell) for cell in row[2:5]] == [int, float, bool]


def test_a_category_named_nan_stays_a_text() -> None:
    assert Series(name="a", x=["NaN", "Infinity"], y=[1, 2]).x == ("NaN", "Infinity")


def test_numbers_that_are_not_finite_become_words_where_anything_may_stand() -> None:
    config = Report(**WHOLE, config={"a": math.nan, "b": [-math.inf, (1, 2.5)], "c": {"d": math.inf}}).config
    assert config == {"a": "NaN", "b": ["-Infinity", [1, 2.5]], "c": {"d": "Infinity"}}


def test_a_file_name_that_is_not_utf8_is_spelt_out() -> None:
    name = b"caf\xe9.pt".decode("utf-8", "surrogateescape")
    assert Section(title=name).title == "caf\\udce9.pt"


@pytest.mark.parametrize(
    ("levels", "verdict"),
    [
        ([], "pass"),
        (["info", "warning"], "pass"),
        (["finding", "info"], "findings"),
        (["finding", "failed"], "failed gate"),
    ],
)
def test_the_verdict_is_the_worst_finding(levels: list, verdict: str) -> None:
    assert verdict_of([Finding(level=level, code="a.b/c-d", message="m") for level in levels]) == verdict


def test_a_report_cannot_be_changed(demo: Report) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        demo.title = "another"
