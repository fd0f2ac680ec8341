"""The charts of a correlation study: coefficients beside each other, and every model as a point."""

import math
from collections.abc import Sequence

from ...flatness.associations import Correlations
from ...flatness.coefficients import KINDS
from ...report import Chart, Series
from .analysis import Analysis
from .text import words


def coefficient_chart(found: Correlations, target: str) -> Chart:
    """All three coefficients of every measure and confounder with a target."""
    known = [a for a in found.plain if a.target == target]
    series: list[Series] = []
    for kind in KINDS:
        ones = [a.coefficients[kind] for a in known]
        series.append(
            Series(
                name=kind.capitalize(), x=tuple(a.predictor for a in known), y=tuple(_finite(c.value) for c in ones),
                low=tuple(_finite(c.low) for c in ones), high=tuple(_finite(c.high) for c in ones),
            )
        )  # fmt: skip
    said = "; ".join(f"{a.predictor}: Pearson {words(a.pearson)}" for a in known)
    return Chart(
        kind="bar", title=f"Correlation with {target}", series=series, x_label="", y_label="coefficient",
        caption="With 95 % intervals over families. Far from 0 in either direction is a close association.",
        description=f"{said}.",
    )  # fmt: skip


def scatter_charts(analysis: Analysis, target: str, predictors: Sequence[str]) -> tuple[Chart, ...]:
    """Every model as a point: a measure, with the interval of its draws where it has one, against a target."""
    return tuple(_scatter(analysis, target, predictor) for predictor in predictors)


def _scatter(analysis: Analysis, target: str, predictor: str) -> Chart:
    found, groups = analysis.correlations, analysis.groups
    models, ends = found.models, _ends(analysis, predictor)
    sorts = [*groups.found] if groups else [None]
    series: list[Series] = []
    for sort in sorts:
        rows = [k for k, name in enumerate(models.names) if groups is None or groups.of(name) == sort]
        if not rows:
            continue
        low, high = ([side[k] for k in rows] for side in ends) if ends else (None, None)
        series.append(
            Series(
                name=sort or "models", x=tuple(models.columns[target][k] for k in rows),
                y=tuple(models.columns[predictor][k] for k in rows), low=low, high=high,
                labels=tuple(models.names[k] for k in rows), group=sort or "models",
            )
        )  # fmt: skip
    one = found.find(predictor, target)
    said = (
        ""
        if one is None
        else f"Pearson {words(one.pearson)}, Spearman {words(one.spearman)}, {len(models.names)} models."
    )
    bars = " Bars: the 95 % interval of its own measurement." if ends else ""
    return Chart(
        kind="scatter", title=f"{predictor} against {target}", series=series, x_label=target, y_label=predictor,
        caption=said + bars, description=f"Each point is a model. {said}",
    )  # fmt: skip


def _ends(analysis: Analysis, predictor: str) -> tuple[list[float | None], list[float | None]] | None:
    """The ends of each model's own interval, in the order of the rows that were used; None if there are none."""
    table = analysis.table
    if predictor not in table.bounds:
        return None
    place = {name: k for k, name in enumerate(table.models.names)}
    rows = [place[name] for name in analysis.correlations.models.names]
    low, high = ([_finite(side[k]) for k in rows] for side in table.bounds[predictor])
    return low, high


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
