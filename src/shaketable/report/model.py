"""What a report is: verdict, summary, findings, sections of metrics, charts and tables, and all it takes to repeat it.

The model is the one source: `report.json` is it, the page and the terminal are views of it, and the committed JSON
schema is made from it. Two runs of the same config and seed give the same report but for `volatile`.
"""

import itertools
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .values import Cell, Finite, Free, Items, Metric, Name, Number, Part, Text

SCHEMA_VERSION = "1.0"
Level = Literal["info", "warning", "finding", "failed"]
Verdict = Literal["pass", "findings", "failed gate"]
Sha256 = Annotated[Text, Field(pattern="^[0-9a-f]{64}$")]
Seed = Annotated[int, Field(strict=True)]
X = Items[Finite] | Items[Text]


class Finding(Part):
    """Something the reader must know: what was seen, under a code that programs can match, and what to do about it.

    `info` and `warning` leave the verdict a pass; a `finding` does not; `failed` is a gate that was not met.
    """

    level: Level
    code: Annotated[Text, Field(pattern=r"^[a-z0-9]+([-./][a-z0-9]+)*$")]
    message: Name
    remedy: Text = ""


Kind = Literal["line", "bar", "scatter", "heatmap", "contour", "surface", "volume"]

GRIDS = ("heatmap", "contour", "surface", "volume")
"""The kinds whose series are the rows of a grid."""


class Series(Part):
    """One line, one set of bars or points, or one row of a grid: of a heat map, a contour, a surface or a volume.

    Args:
        name: as the legend shows it; in a grid the row's label.
        x: numbers, or texts for categories; in a grid the same in every row, and in all but a heat map numbers.
        y: one number for each x; None or NaN leaves a gap.
        low, high: the interval of each y, or neither.
        labels: a text for each point, shown on hover and in the table.
        at: where a row lies: (y,) in a contour or a surface, (y, z) in a volume, where the rows of all y and z are there, z
            by z and y by y.
        group: the model it belongs to, hence its colour; the name if None.
        dash: the line's style, for instance dotted for training and solid for test.
    """

    name: Text
    x: X
    y: Items[Number | None]
    low: Items[Number | None] | None = None
    high: Items[Number | None] | None = None
    labels: Items[Text] | None = None
    at: Items[Finite] | None = None
    group: Text | None = None
    dash: Literal["solid", "dash", "dot"] = "solid"

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        others = {"y": self.y, "low": self.low, "high": self.high, "labels": self.labels}
        for field, values in others.items():
            if values is not None and len(values) != len(self.x):
                raise ValueError(f"{field}: expected as many values as x has, {len(self.x)}, found {len(values)}.")
        if (self.low is None) != (self.high is None):
            raise ValueError("low, high: expected both or neither. An interval has two ends.")
        return self


class Chart(Part):
    """A chart. The page shows it drawn, described and as a table; `description` is what one who cannot see it is told.

    Args:
        z_label: of a contour and a surface what the values are; of a volume its third axis.
        span: of a contour, a surface or a volume the values at the ends of the colours, so that several can be compared; what
            lies beyond has the ends' colours. None: their own least and largest.
        path: a line of points that is drawn over a contour.
    """

    kind: Kind
    title: Name
    series: Annotated[Items[Series], Field(min_length=1)]
    x_label: Text
    y_label: Text
    z_label: Text = ""
    y_format: Literal["number", "percent"] = "number"
    x_scale: Literal["linear", "log"] = "linear"
    y_scale: Literal["linear", "log"] = "linear"
    span: tuple[Finite, Finite] | None = None
    path: Series | None = None
    caption: Text = ""
    description: Name

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if len({bool(s.x) and isinstance(s.x[0], str) for s in self.series if s.x}) > 1:
            raise ValueError(
                "series: expected x of one kind, found both numbers and texts. Write all of them as texts."
            )
        if self.kind in GRIDS and len({s.x for s in self.series}) > 1:
            raise ValueError(
                f"series: expected the same x in every row of a {self.kind}. Fill what is missing with None."
            )
        wanted = {"contour": 1, "surface": 1, "volume": 2}.get(self.kind, 0)
        if any(len(s.at or ()) != wanted for s in self.series):
            raise ValueError(f"series: expected {wanted} numbers in the `at` of each, since it is a {self.kind}.")
        if wanted:
            self._check_grid()
        elif self.span is not None or self.z_label:
            raise ValueError("span, z_label: expected none. They are for a contour, a surface or a volume.")
        if self.path is not None and (self.kind != "contour" or any(isinstance(x, str) for x in self.path.x)):
            raise ValueError("path: expected numbers, over a contour. Leave it out elsewhere.")
        if self.span is not None and not self.span[0] < self.span[1]:
            raise ValueError(f"span: expected low < high, found {self.span}. Leave it out.")
        return self

    def _check_grid(self) -> None:
        """Numbers along x, and rows in their order, none missing."""
        columns = [tuple(dict.fromkeys(at)) for at in zip(*(s.at or () for s in self.series), strict=True)]
        axes = [self.series[0].x, *columns]
        rising = all(not isinstance(b, str) and a < b for axis in axes for a, b in itertools.pairwise(axis))
        if not rising or any(isinstance(x, str) for x in self.series[0].x):
            raise ValueError("series: expected rising numbers along each axis of a grid. Sort its rows and columns.")
        if [s.at for s in self.series] != [tuple(reversed(at)) for at in itertools.product(*reversed(columns))]:
            raise ValueError("series: expected the rows of a whole grid, in order. Fill what is missing with None.")

    @property
    def categorical(self) -> bool:
        """Whether x are categories rather than numbers."""
        texts = any(isinstance(x, str) for series in self.series for x in series.x)
        return texts or self.kind in ("bar", "heatmap")


class Table(Part):
    """A table; a cell is a number, a text, True or False, None for nothing, or a `Rate` or `Mean` with its interval."""

    title: Name
    columns: Annotated[Items[Text], Field(min_length=1)]
    rows: Items[Items[Cell]]
    note: Text = ""

    @model_validator(mode="after")
    def _is_a_rectangle(self) -> Self:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"rows: expected {len(self.columns)} cells in each, found {len(row)} in row {index}.")
        return self


class Picture(Part):
    """A picture, as a PNG file in base64; `description` is what one who cannot see it is told. See `pictures.picture`."""

    title: Name
    png: Annotated[str, Field(pattern=r"^iVBORw0KGgo[A-Za-z0-9+/]*={0,2}$", max_length=4_000_000)]
    caption: Text = ""
    description: Name


class Section(Part):
    """A part of the report under its own title. `text` is plain; an empty line parts paragraphs."""

    title: Name
    text: Text = ""
    metrics: Items[Metric] = ()
    charts: Items[Chart] = ()
    pictures: Items[Picture] = ()
    tables: Items[Table] = ()


class Hashes(Part):
    """The SHA-256 of what went in and came out, by name."""

    models: dict[Text, Sha256] = Field(default_factory=dict)
    data: dict[Text, Sha256] = Field(default_factory=dict)
    splits: dict[Text, Sha256] = Field(default_factory=dict)


class Volatile(Part):
    """All that may differ between two runs of the same config and seed on the same machine, and nothing else may.

    Args:
        started, finished: ISO 8601, with the time zone.
        seconds: of the whole run.
        host: the machine's name.
        extra: further measurements of time, such as passes a second, and paths.
    """

    started: Text | None = None
    finished: Text | None = None
    seconds: Number | None = None
    host: Text | None = None
    extra: Free = Field(default_factory=dict)


class Report(Part):
    """One run's report.

    Args:
        verb: what was run: train, evaluate, demo, ...
        title: one line.
        summary: plain sentences, the most important first: what a stranger should take away.
        verdict: it must fit the findings; `verdict_of` gives the one that does.
        headline: the key numbers, three to six of them.
        command: the command line that makes this report again.
        config, environment, seeds, hashes: what the numbers depend on.
        findings, sections: the substance.
        volatile: see `Volatile`.

    Checked by tests/report/test_model.py.
    """

    schema_version: Literal["1.0"] = SCHEMA_VERSION
    verb: Name
    title: Name
    summary: Items[Name]
    verdict: Verdict
    headline: Annotated[Items[Metric], Field(max_length=6)] = ()
    findings: Items[Finding] = ()
    sections: Items[Section] = ()
    command: Text = ""
    config: Free = Field(default_factory=dict)
    environment: Free = Field(default_factory=dict)
    seeds: dict[Text, Seed] = Field(default_factory=dict)
    hashes: Hashes = Hashes()
    volatile: Volatile = Volatile()

    @model_validator(mode="after")
    def _verdict_fits(self) -> Self:
        least = verdict_of(self.findings)
        order = ("pass", "findings", "failed gate")
        if order.index(self.verdict) < order.index(least):
            raise ValueError(
                f"verdict: expected {least!r}, as its findings say, found {self.verdict!r}. Use verdict_of."
            )
        return self


def verdict_of(findings: Items[Finding] | list[Finding]) -> Verdict:
    """The verdict that findings amount to: a failed gate, findings, or (infos and warnings alone) a pass."""
    levels = {finding.level for finding in findings}
    return "failed gate" if "failed" in levels else "findings" if "finding" in levels else "pass"
