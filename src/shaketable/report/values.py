"""The values a report is made of: texts, numbers, and estimates that carry their count and their interval.

Numbers that JSON cannot hold are written as words, "NaN", "Infinity" and "-Infinity". In a field that is a number they
are read back as numbers; in a free place (a config, an environment, a table's cell) they become the word when
the report is made, so that reading what was written gives the same report. null always means: not measured.
"""

import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    StrictBool,
    StrictFloat,
    StrictInt,
    WithJsonSchema,
    model_validator,
)

from ..stats import Mean, Rate

_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NUMBER_SCHEMA: dict[str, JsonValue] = {"anyOf": [{"type": "number"}, {"enum": list(_WORDS)}]}


def _word(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _number(value: object) -> object:
    if isinstance(value, bool) or (isinstance(value, str) and value not in _WORDS):
        raise ValueError(f"expected a number, 'NaN', 'Infinity' or '-Infinity', found {value!r}. Give a float.")
    return _WORDS[value] if isinstance(value, str) else value


def _well_formed(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, found {type(value).__name__}. Write it as a str.")
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def _plain(value: object) -> Any:
    """A value that JSON holds: tuples as lists, paths as texts, numbers that are not finite as words."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _word(value)
    if isinstance(value, str | PurePath):
        return _well_formed(str(value))
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_well_formed(key): _plain(item) for key, item in value.items()}
    raise ValueError(
        f"expected a value that JSON holds, found {type(value).__name__}. Give numbers, texts, lists and dicts of them."
    )


Text = Annotated[str, BeforeValidator(_well_formed, json_schema_input_type=str)]
"""A text. Lone surrogates (file names that are not UTF-8) are spelt out, since no file in UTF-8 can hold them."""

Name = Annotated[Text, Field(min_length=1)]
"""A text that is not empty."""

Number = Annotated[float, BeforeValidator(_number), PlainSerializer(_word), WithJsonSchema(_NUMBER_SCHEMA)]
"""A float; NaN and the infinities are words in the file."""

T = TypeVar("T")
Items = Annotated[Sequence[T], AfterValidator(tuple)]
"""Any sequence; it is kept as a tuple."""

Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]
Free = Annotated[dict[str, Any], BeforeValidator(_plain)]
"""A dict of anything that JSON holds; see `_plain` for what is converted."""


class Part(BaseModel):
    """Any part of a report: it cannot be changed once made, and has no field that is not declared."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)


class Estimate(Part):
    """A measured number with what it takes to judge it.

    A rate has its hits, its n and the Wilson interval that follows from them, and nothing else is accepted. A mean has
    its n, its interval and the interval's law. Anything else (a size, a duration, a chosen constant) is a number.

    Checked by tests/report/test_model.py.
    """

    kind: Literal["rate", "mean", "number"] = "number"
    value: Number | None = None
    n: Count | None = None
    hits: Count | None = None
    interval: tuple[Number, Number] | None = None
    law: Literal["wilson", "student", "bootstrap"] | None = None
    deviation: Number | None = None

    @model_validator(mode="after")
    def _carries_its_interval(self) -> Self:
        {"rate": self._check_rate, "mean": self._check_mean, "number": self._check_number}[self.kind]()
        return self

    def _check_rate(self) -> None:
        if self.hits is None or self.n is None or self.interval is None or self.law != "wilson":
            raise ValueError(
                "expected a rate with hits, n and its Wilson interval. Make it with rate_metric or estimate."
            )
        rate = Rate(self.hits, self.n)
        exact = (rate.value, *rate.interval)
        given = (math.nan if self.value is None else self.value, *self.interval)
        if not all(a == b or abs(a - b) <= 1e-9 or (a != a and b != b) for a, b in zip(exact, given, strict=True)):
            raise ValueError(
                f"expected the value and Wilson interval of {rate}, found {given}. Make it with rate_metric."
            )

    def _check_mean(self) -> None:
        if self.value is None or not self.n or self.interval is None or self.law not in ("student", "bootstrap"):
            raise ValueError(
                "expected a mean with value, n > 0, interval and law (student or bootstrap). Use mean_metric."
            )
        if self.hits is not None or not self.interval[0] <= self.interval[1]:
            raise ValueError(
                f"expected a mean without hits and with low <= high, found {self.interval}. Use mean_metric."
            )

    def _check_number(self) -> None:
        if (self.hits, self.interval, self.law) != (None, None, None):
            raise ValueError("expected a number without hits, interval and law. What has them is a rate or a mean.")


class Metric(Estimate):
    """An estimate with its name. `group` is the model it belongs to: one colour per group in the whole report."""

    name: Name
    unit: Text = ""
    note: Text = ""
    group: Text | None = None


def estimate(measured: Rate | Mean | float) -> Estimate:
    """A `Rate`, a `Mean` or a plain number as an `Estimate`."""
    return Estimate(**_fields(measured))


def rate_metric(name: str, rate: Rate, *, note: str = "", group: str | None = None) -> Metric:
    """A named rate with its count and Wilson interval."""
    return Metric(name=name, note=note, group=group, **_fields(rate))


def mean_metric(name: str, mean: Mean, *, unit: str = "", note: str = "", group: str | None = None) -> Metric:
    """A named mean with its count, its interval and the interval's law."""
    return Metric(name=name, unit=unit, note=note, group=group, **_fields(mean))


def number_metric(name: str, value: float, *, unit: str = "", note: str = "", group: str | None = None) -> Metric:
    """A named number that was not estimated: a size, a duration, a chosen constant."""
    return Metric(name=name, unit=unit, note=note, group=group, value=value)


def _fields(measured: Rate | Mean | float) -> dict[str, Any]:
    if isinstance(measured, Rate):
        counts = {"n": measured.n, "hits": measured.hits}
        return {"kind": "rate", "value": measured.value, "interval": measured.interval, "law": "wilson", **counts}
    if isinstance(measured, Mean):
        spread = {"interval": (measured.low, measured.high), "law": measured.law, "deviation": measured.deviation}
        return {"kind": "mean", "value": measured.value, "n": measured.n, **spread}
    return {"value": measured}


def _cell(value: object) -> object:
    if isinstance(value, Rate | Mean):
        return estimate(value)
    return _word(value) if isinstance(value, float) else value


Cell = Annotated[StrictBool | StrictInt | StrictFloat | Text | Estimate | None, BeforeValidator(_cell)]
"""What a table's cell holds; a `Rate` or a `Mean` becomes an `Estimate`."""
