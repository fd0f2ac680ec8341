"""report.json: round trips, the schema, canonical bytes, and what is refused when it is read."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from shaketable.core.errors import InputError, StorageError
from shaketable.report import (
    Chart,
    Finding,
    Report,
    Section,
    Series,
    Table,
    Volatile,
    mean_metric,
    number_metric,
    rate_metric,
    read_json,
    same,
    schema,
    to_json,
    verdict_of,
    write_json,
)
from shaketable.report.document import SCHEMA_FILE, schema_text
from shaketable.stats import Mean, Rate

VALIDATOR = Draft202012Validator(schema())

texts = st.text(max_size=12)
names = st.text(min_size=1, max_size=12)
numbers = st.one_of(st.none(), st.floats())
rates = st.integers(0, 50).flatmap(lambda n: st.builds(Rate, hits=st.integers(0, n), n=st.just(n)))
means = st.builds(
    Mean, st.floats(allow_nan=False), st.just(-1.5), st.floats(0, math.inf), st.integers(1, 9), st.floats()
)
metrics = st.one_of(
    st.builds(rate_metric, names, rates, note=texts, group=st.none() | texts),
    st.builds(mean_metric, names, means, unit=texts),
    st.builds(number_metric, names, st.floats()),
)
free = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
configs = st.dictionaries(texts, free, max_size=3)


@st.composite
def series(draw: st.DrawFn, kind: str) -> Series:
    count = draw(st.integers(0, 3))
    x = st.floats(allow_nan=False, allow_infinity=False) if kind == "number" else texts
    several = [st.lists(numbers, min_size=count, max_size=count) for _ in range(3)]
    band = {"low": draw(several[1]), "high": draw(several[2])} if draw(st.booleans()) else {}
    return Series(name=draw(texts), x=draw(st.lists(x, min_size=count, max_size=count)), y=draw(several[0]), **band)


@st.composite
def reports(draw: st.DrawFn) -> Report:
    lines = draw(st.sampled_from(["number", "text"]).flatmap(lambda k: st.lists(series(k), min_size=1, max_size=2)))
    chart = Chart(
        kind=draw(st.sampled_from(["line", "bar", "scatter"])), title=draw(names), series=lines, x_label=draw(texts),
        y_label=draw(texts), description=draw(names), y_format=draw(st.sampled_from(["number", "percent"])),
    )  # fmt: skip
    cells = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts, rates, means)
    table = Table(title=draw(names), columns=["a", "b"], rows=draw(st.lists(st.tuples(cells, cells), max_size=2)))
    findings = draw(
        st.lists(
            st.builds(Finding, level=st.sampled_from(["info", "finding", "failed"]), code=st.just("c"), message=names)
        )
    )
    return Report(
        verb=draw(names), title=draw(names), summary=draw(st.lists(names, max_size=2)), verdict=verdict_of(findings),
        headline=draw(st.lists(metrics, max_size=3)), findings=findings, command=draw(texts), config=draw(configs),
        environment=draw(configs), seeds=draw(st.dictionaries(texts, st.integers(), max_size=2)),
        sections=[Section(title=draw(names), text=draw(texts), charts=[chart], tables=[table])],
        volatile=Volatile(seconds=draw(numbers), extra=draw(configs)),
    )  # fmt: skip


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(report=reports())
def test_what_is_written_is_read_back_and_fits_the_schema(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(report, path)
    again = read_json(path)
    assert to_json(again) == path.read_text() == to_json(report)
    assert same(report, again)
    VALIDATOR.validate(json.loads(path.read_text(), parse_constant=pytest.fail))


def test_the_committed_schema_is_the_models() -> None:
    assert SCHEMA_FILE.read_text() == schema_text(), (
        "The model changed. If on purpose: python -c 'from shaketable.report.document import SCHEMA_FILE, schema_text; "
        "SCHEMA_FILE.write_text(schema_text())'"
    )
    Draft202012Validator.check_schema(schema())


def test_the_realistic_and_the_hostile_report_fit_the_schema(demo: Report, hostile: Report) -> None:
    for report in (demo, hostile):
        VALIDATOR.validate(json.loads(to_json(report)))


@pytest.mark.parametrize(
    "edit",
    [
        {"extra": 1}, {"verdict": "fine"}, {"title": ""}, {"title": None}, {"schema_version": "1.1"},
        {"headline": [{"name": "a", "value": "many"}]}, {"hashes": {"data": {"a": "xyz"}}},
        {"findings": [{"level": "info", "code": "A B", "message": "m"}]},
    ],
)  # fmt: skip
def test_the_schema_refuses_what_the_model_refuses(demo: Report, edit: dict, tmp_path: Path) -> None:
    content = json.loads(to_json(demo)) | edit
    assert not VALIDATOR.is_valid(content)
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(InputError):
        read_json(tmp_path / "report.json")


def test_the_file_is_canonical(demo: Report) -> None:
    text = to_json(demo)
    assert text.isascii()
    assert text.endswith("}\n")
    content = json.loads(text)
    assert text == json.dumps(content, sort_keys=True, indent=2) + "\n"
    turned = dict(reversed(demo.config.items()))
    assert to_json(demo.model_copy(update={"config": turned})) == text


def test_same_leaves_volatile_aside_and_nothing_else(demo: Report) -> None:
    assert same(demo, demo.model_copy(update={"volatile": Volatile(host="another", seconds=1.0)}))
    assert not same(demo, demo.model_copy(update={"seeds": {"all": 1}}))
    lost = demo.model_copy(update={"headline": (number_metric("a", math.nan),)})
    assert same(lost, read_back(lost))


def read_back(report: Report) -> Report:
    return Report.model_validate(json.loads(to_json(report)))


def _deep() -> str:
    return '{"schema_version": "1.0", "config": ' + "[" * 100_000 + "]" * 100_000 + "}"


def _with(demo: Report, **edit: Any) -> str:
    return json.dumps(json.loads(to_json(demo)) | edit)


def _wrong_interval(demo: Report) -> str:
    content = json.loads(to_json(demo))
    content["headline"][0]["interval"] = [0.5, 0.6]
    return json.dumps(content)


BAD_FILES = {
    "empty": (lambda demo: "", "no JSON"),
    "cut short": (lambda demo: to_json(demo)[:500], "no JSON"),
    "not UTF-8": (lambda demo: b"\xff\xfe{}", "no JSON"),
    "NaN, which is not JSON": (lambda demo: to_json(demo).replace("212.4", "NaN"), "NaN is not JSON"),
    "nested too deeply": (lambda demo: _deep(), "no JSON"),
    "a number of too many digits": (lambda demo: '{"a": ' + "9" * 5000 + "}", "no JSON"),
    "a list": (lambda demo: "[]", "no schema_version"),
    "another document": (lambda demo: '{"title": "t"}', "no schema_version"),
    "a version that is a number": (lambda demo: _with(demo, schema_version=1.0), "no schema_version"),
    "a newer minor version": (lambda demo: _with(demo, schema_version="1.1"), "Update Shaketable"),
    "a newer major version": (lambda demo: _with(demo, schema_version="12.0"), "Update Shaketable"),
    "a version that is none": (lambda demo: _with(demo, schema_version="latest"), "Update Shaketable"),
    "an older version": (lambda demo: _with(demo, schema_version="0.9"), "schema_version"),
    "an unknown key": (lambda demo: _with(demo, colour="red"), "colour: Extra inputs"),
    "a rate whose interval was edited": (_wrong_interval, "headline.0: Value error, expected the value and Wilson"),
    "a text for a count": (lambda demo: to_json(demo).replace('"hits": 1100', '"hits": "1100"'), "hits"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_a_typed_error_with_its_remedy(content: Any, reason: str, demo: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    made = content(demo)
    path.write_bytes(made if isinstance(made, bytes) else made.encode())
    with pytest.raises(InputError) as caught:
        read_json(path)
    assert reason in str(caught.value)
    assert str(path) == caught.value.argument
    assert caught.value.remedy.endswith(".")


def test_a_missing_file_and_a_folder_are_typed_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match=r"report\.json"):
            read_json(path)


def test_a_file_too_large_to_be_a_report_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(InputError, match="bytes"):
        read_json(path)


def test_a_place_that_cannot_be_written_is_a_storage_error(demo: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_json(demo, tmp_path / "file" / "report.json")
    assert os.listdir(tmp_path) == ["file"]
