"""What a study has found: means over the seeds of each cell, and differences between cells, paired by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...stats import Mean, holm, mean, paired, student_p
from ..measured import FINAL, FINAL_NAME, Curve, Measured, measured_of
from .finals import final_name
from .recipe import Compare, Recipe
from .runs import Outcome


@dataclass(frozen=True)
class Measure:
    """A number that cells are compared by.

    Args:
        key: of `measured.QUANTITIES`, or `measured.FINAL`.
        name: as tables and charts have it.
        unit: "points" for shares, which are then counted in hundredths, or "" for losses.
        better: which sign of a difference is the wanted one; 0 for neither.
    """

    key: str
    name: str
    unit: str
    better: int

    @property
    def factor(self) -> float:
        """From the number in a report to the one shown."""
        return 100.0 if self.unit else 1.0


MEASURES = (
    Measure("gap", "Robust gap (loss, test minus training)", "", -1),
    Measure("loss_last", "Robust test loss, last epoch", "", -1),
    Measure("overfitting", "Robust overfitting (test loss, last minus best epoch)", "", -1),
    Measure("robust_last", "Robust accuracy, last epoch", "points", 1),
    Measure(FINAL, FINAL_NAME, "points", 1),
    Measure("robust_best", "Robust accuracy, best epoch", "points", 1),
    Measure("clean_last", "Clean accuracy, last epoch", "points", 1),
)
"""What every study reports, in this order; `FINAL` where its recipe has a table [final]."""


@dataclass(frozen=True)
class CellResult:
    """One cell over its seeds.

    Args:
        measured: seed -> the numbers of its run, for those that ended.
        means: key of `MEASURES` -> the mean over these seeds, with its Student interval, as shown (see `Measure.factor`).
        errors: seed -> why its run failed.
        missing: seeds that have not been run.
        hidden: whether tables leave it out.
    """

    name: str
    measured: Mapping[int, Measured]
    means: Mapping[str, Mean]
    errors: Mapping[int, str]
    missing: tuple[int, ...]
    hidden: bool


@dataclass(frozen=True)
class Difference:
    """One measure of a - b.

    Args:
        values: seed -> the difference, where both runs have ended.
        mean: over the seeds, with the Student interval of paired differences.
        p: two-sided, of Student's paired test; None below two seeds.
        holm: p adjusted by Holm's method for all comparisons of this measure in the study.
    """

    values: Mapping[int, float]
    mean: Mean
    p: float | None
    holm: float | None

    @property
    def below(self) -> int:
        """How many seeds are below 0."""
        return sum(value < 0 for value in self.values.values())

    @property
    def above(self) -> int:
        """How many seeds are above 0."""
        return sum(value > 0 for value in self.values.values())


@dataclass(frozen=True)
class Comparison:
    """Two cells, and key of `MEASURES` -> their difference, where there is one."""

    compare: Compare
    differences: Mapping[str, Difference]


@dataclass(frozen=True)
class Summary:
    """All that a study has found."""

    cells: Mapping[str, CellResult]
    comparisons: tuple[Comparison, ...]


def measures_of(recipe: Recipe) -> tuple[Measure, ...]:
    """What a study of this recipe reports."""
    return tuple(measure for measure in MEASURES if measure.key != FINAL or recipe.final is not None)


def summarise(recipe: Recipe, outcomes: Mapping[str, Outcome]) -> Summary:
    """Means, paired differences, and what is missing; nothing is left out but what has not ended.

    Checked by tests/jobs/test_study_summary.py, against SciPy's paired test.
    """
    by_cell: dict[str, list[Outcome]] = {}
    for outcome in outcomes.values():
        by_cell.setdefault(outcome.run.cell.name, []).append(outcome)
    cells = {name: _cell(name, found, by_cell.get(final_name(name), ())) for name, found in by_cell.items()}
    raw = {
        measure.key: [_difference(measure, cells[c.a].measured, cells[c.b].measured) for c in recipe.compare]
        for measure in measures_of(recipe)
    }
    adjusted = {key: _adjusted(found) for key, found in raw.items()}
    comparisons = tuple(
        Comparison(c, {key: d for key, found in adjusted.items() if (d := found[k]) is not None})
        for k, c in enumerate(recipe.compare)
    )
    return Summary(cells, comparisons)


def p_value(found: Mean) -> float | None:
    """Two-sided, of Student's test that a mean is 0; None where its spread is not known."""
    if found.n < 2:
        return None
    if found.deviation == 0:
        return 1.0 if found.value == 0 else 0.0
    return student_p(found.value / (found.deviation / math.sqrt(found.n)), found.n - 1)


def mean_curve(curves: Sequence[Curve]) -> list[tuple[float, Mean]]:
    """The mean of curves at the epochs that all of them have: epoch, mean with its Student interval."""
    points = [dict(zip(curve.epochs, curve.values, strict=True)) for curve in curves]
    made: list[tuple[float, Mean]] = []
    for epoch in sorted(set.intersection(*map(set, points))) if points else ():
        values = [value for value in (point[epoch] for point in points) if value is not None]
        if len(values) == len(points):
            made.append((epoch, mean(values)))
    return made


def _cell(name: str, outcomes: Sequence[Outcome], finals: Sequence[Outcome]) -> CellResult:
    measured = {o.run.seed: measured_of(o.report) for o in outcomes if o.report is not None}
    for seed, final in ((o.run.seed, measured_of(o.report)) for o in finals if o.report is not None):
        if seed in measured and FINAL in final.metrics:
            metrics = {**measured[seed].metrics, FINAL: final.metrics[FINAL]}
            measured[seed] = replace(measured[seed], metrics=metrics)
    means: dict[str, Mean] = {}
    for measure in MEASURES:
        found = [m.value(measure.key) for m in measured.values()]
        values = [measure.factor * value for value in found if value is not None]
        if values:
            means[measure.key] = mean(values)
    errors = {o.run.seed: o.error for o in outcomes if o.error is not None}
    missing = tuple(o.run.seed for o in outcomes if o.report is None and o.error is None)
    return CellResult(name, measured, means, errors, missing, outcomes[0].run.cell.hidden)


def _difference(measure: Measure, a: Mapping[int, Measured], b: Mapping[int, Measured]) -> Difference | None:
    pairs = {
        seed: (x, y)
        for seed in a
        if seed in b and (x := a[seed].value(measure.key)) is not None and (y := b[seed].value(measure.key)) is not None
    }
    if not pairs:
        return None
    scaled = {seed: (measure.factor * x, measure.factor * y) for seed, (x, y) in pairs.items()}
    found = paired([x for x, _ in scaled.values()], [y for _, y in scaled.values()])
    return Difference({seed: x - y for seed, (x, y) in scaled.items()}, found, p_value(found), None)


def _adjusted(found: Sequence[Difference | None]) -> list[Difference | None]:
    """The same, with p adjusted for all of them."""
    known = {k: d.p for k, d in enumerate(found) if d is not None and d.p is not None}
    values = dict(zip(known, holm(list(known.values())), strict=True))
    return [d and replace(d, holm=values.get(k)) for k, d in enumerate(found)]
