"""The report of a correlation study: what it found in words, the coefficients, every model, and who was refused."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ...flatness.associations import Association, Correlation, Correlations
from ...flatness.models_table import CONSTANT
from ...report import Finding, Metric, Section, Table, mean_metric
from ...stats import Mean
from .analysis import Analysis, Groups
from .charts import coefficient_chart, scatter_charts
from .text import closest, main_of

FEW_FAMILIES = 8
_NAMED = 12  # models in one finding
_SCATTERED = 5  # measures that are drawn against the first target, and the first confounder
_METHOD = (
    "Intervals are 95 %: families of models are drawn with replacement, all their models together, and Fisher's transform of "
    "the coefficient gets the normal interval of the resamples' spread, with Student's quantile for the number of families. "
    "p-values are two-sided, of the same spread, and adjusted by Holm's method: for all columns with all targets together, and "
    "again for all that are given the same."
)
_NOTE = "95 % intervals over families; p: two-sided, adjusted by Holm's method."

_CONFOUNDERS = (
    "A confounder is something that flatness may merely stand for: how well the training images are fitted, how "
    "confident the net is, how long it was trained. Partial correlations are between what a linear fit by the "
    "confounders leaves of both (for Spearman's, of their ranks). Kendall's partial coefficients, which are not 0 for "
    "what is independent given the confounder, are in flatness.json alone."
)


def headline(found: Correlations) -> tuple[Metric, ...]:
    """At most six numbers: flatness, the closest confounder, and what is left."""
    main, target = main_of(found), found.targets[0]
    made = [
        _metric(f"{main.predictor} with {target}, Pearson", main.pearson, found),
        _metric(f"{main.predictor} with {target}, Spearman", main.spearman, found),
    ]
    if found.given:
        other = closest(found, found.given)
        made.append(_metric(f"{other.predictor} with {target}, Pearson", other.pearson, found))
        if (left := found.find(main.predictor, target, tuple(found.given))) is not None:
            made.append(_metric(f"{main.predictor} with {target}, given {', '.join(found.given)}", left.pearson, found))
    for other_target in found.targets[1:3]:
        if (one := found.find(main.predictor, other_target)) is not None:
            made.append(_metric(f"{main.predictor} with {other_target}, Pearson", one.pearson, found))
    return tuple(metric for metric in made if metric is not None)[:6]


def correlation_sections(analysis: Analysis) -> tuple[Section, ...]:
    """The sections that every correlation study has, from a table or from measurements."""
    found = analysis.correlations
    sections = [_target_section(analysis, target) for target in found.targets]
    if found.given:
        sections.append(_left_section(found))
    if analysis.groups is not None:
        sections.append(_groups_section(analysis.groups))
    return (*sections, _families_section(found), _models_section(analysis))


def findings(analysis: Analysis) -> Iterator[Finding]:
    """What the reader must know: who was refused, what does not vary, and what weakens the intervals."""
    found = analysis.correlations
    yield from _refused(found)
    if found.undefined:
        message = f"{', '.join(found.undefined)}: one value in all models, so it can explain nothing and is left out."
        yield Finding(level="info", code="no-variation", message=message)
    if found.families < FEW_FAMILIES:
        message = f"{found.families} families alone: intervals over so few are rough."
        yield Finding(level="warning", code="few-families", message=message, remedy="Study more kinds of models.")
    for name in found.flatness:
        flat = [m for m, value in zip(found.models.names, found.models.columns[name], strict=True) if value == 0]
        if flat and not found.models.constant:
            yield Finding(
                level="warning", code="zero-flatness", message=f"{name} is exactly 0 for {', '.join(flat[:5])}.",
                remedy="If that is a constant predictor, which is perfectly flat, name it with --constant COLUMN.",
            )  # fmt: skip


def _refused(found: Correlations) -> Iterator[Finding]:
    """One finding for each reason."""
    by_reason: dict[str, list[str]] = {}
    for refused in found.refused:
        by_reason.setdefault(refused.reason, []).append(refused.name)
    for reason, names in by_reason.items():
        constant = reason == CONSTANT
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield Finding(
            level="finding" if constant else "warning", code="refused-constant" if constant else "refused-model",
            message=f"Not ranked: {', '.join(names[:_NAMED])}{more}: {reason}.",
            remedy="A constant predictor cannot be compared by flatness." if constant else "Measure what is missing.",
        )  # fmt: skip


def _target_section(analysis: Analysis, target: str) -> Section:
    found = analysis.correlations
    known = [a for a in found.plain if a.target == target]
    first = target == found.targets[0]
    predictors = [*found.flatness[:_SCATTERED], *found.given[:1]] if first else [main_of(found).predictor]
    return Section(
        title=f"What goes with {target}",
        text=_METHOD if first else "",
        charts=(coefficient_chart(found, target), *scatter_charts(analysis, target, predictors)),
        tables=(_coefficients("Coefficients", known, "Measure or confounder"),),
    )


def _coefficients(title: str, known: Sequence[Association], first: str, *, named: bool = False) -> Table:
    """A row an association; with `named`, each with its target and what is given."""
    rows: list[tuple[Any, ...]] = []
    for a in known:
        name = (a.predictor, a.target, ", ".join(a.given)) if named else (a.predictor,)
        kinds = (a.pearson, a.spearman) if named else (a.pearson, a.spearman, a.kendall)
        rows.append((*name, *(_cell(one) for one in kinds), short(a.pearson.holm), short(a.spearman.holm)))
    columns = ("Pearson", "Spearman") if named else ("Pearson", "Spearman", "Kendall")
    return Table(
        title=title, columns=(first, *(("With", "Given") if named else ()), *columns, "p, Holm, Pearson", "p, Holm, Spearman"),
        rows=rows, note=_NOTE,
    )  # fmt: skip


def _left_section(found: Correlations) -> Section:
    explained: tuple[Any, ...] = tuple(
        (", ".join(names), *(_share(found, names, target) for target in found.targets))
        for names in dict.fromkeys(share.predictors for share in found.shares)
    )
    shares = Table(
        title="Variance explained by linear fits", columns=("Columns", *found.targets), rows=explained,
        note="Shares of the variance in %, with 95 % intervals over families. They rise with every column that is added.",
    )  # fmt: skip
    differences: tuple[Any, ...] = tuple(
        (first, second, *(_lead(found, first, second, target) for target in found.targets))
        for first in found.flatness
        for second in found.given
    )
    leads = Table(
        title="Which goes closer: the size of Pearson's coefficient, the measure's minus the confounder's",
        columns=("Measure", "Confounder", *found.targets), rows=differences,
        note="Above 0: the measure goes closer. An interval with 0 in it does not tell the two apart.",
    )  # fmt: skip
    return Section(
        title="What is left when confounders are given",
        text=_CONFOUNDERS,
        tables=(
            _coefficients("Flatness, given confounders", found.partial, "Measure", named=True),
            _coefficients("Confounders, given flatness", found.reverse, "Confounder", named=True),
            shares,
            leads,
        ),
    )


def _share(found: Correlations, names: Sequence[str], target: str) -> Mean | None:
    one = found.share(names, target)
    if one is None or not math.isfinite(one.value):
        return None
    ends = (100 * one.value, 100 * one.low, 100 * one.high)
    return Mean(*ends, len(found.models.names), math.nan, "bootstrap")


def _lead(found: Correlations, first: str, second: str, target: str) -> Mean | None:
    one = next((x for x in found.leads if (x.first, x.second, x.target) == (first, second, target)), None)
    if one is None or not math.isfinite(one.value):
        return None
    return Mean(one.value, one.low, one.high, len(found.models.names), math.nan, "bootstrap")


def _groups_section(groups: Groups) -> Section:
    columns = list(next((g.means for g in groups.found.values() if g.means), {}))
    rows: tuple[Any, ...] = tuple(
        (name, len(group.models), *(group.means.get(column) for column in columns))
        for name, group in groups.found.items()
    )
    low, high = groups.bounds
    whose = "the paper's bounds" if groups.published else "bounds as given, or thirds of the models"
    text = f"Good: {groups.by} below {low:.4g}; poor: {high:.4g} or more; average between ({whose})."
    note = "Means with 95 % bootstrap intervals over families; a group of one family has none."
    table = Table(title="Means of each group", columns=("Group", "Models", *columns), rows=rows, note=note)
    return Section(title="Good, average and poor models", text=text, tables=(table,))


def _families_section(found: Correlations) -> Section:
    rows: list[tuple[Any, ...]] = []
    for a in (*found.plain, *found.partial):
        left = a.pearson.left_out
        if a.predictor in found.flatness and left is not None:
            given = ", ".join(a.given)
            rows.append(
                (a.predictor, a.target, given, _round(a.pearson.value), _round(left.low), left.without_low, _round(left.high),
                 left.without_high)
            )  # fmt: skip
    table = Table(
        title="Pearson's coefficient without one family",
        columns=("Measure", "With", "Given", "All", "Lowest", "Without", "Highest", "Without "),
        rows=rows, note="A coefficient that one family makes is not a property of nets.",
    )  # fmt: skip
    return Section(title="Without one family", tables=(table,))


def _models_section(analysis: Analysis) -> Section:
    found, groups = analysis.correlations, analysis.groups
    columns = list(found.models.columns)
    rows: tuple[Any, ...] = tuple(
        (name, family, groups.of(name) if groups else "", *(found.models.columns[c][k] for c in columns))
        for k, (name, family) in enumerate(zip(found.models.names, found.models.families, strict=True))
    )
    table = Table(title="All models that were used", columns=("Model", "Family", "Group", *columns), rows=rows)
    return Section(title="The models", tables=(table,))


def _metric(name: str, one: Correlation, found: Correlations) -> Metric | None:
    mean = _cell(one, len(found.models.names))
    return None if mean is None else mean_metric(name, mean, note=f"{found.families} families")


def _cell(one: Correlation, models: int = 1) -> Mean | None:
    if not math.isfinite(one.value):
        return None
    return Mean(one.value, one.low, one.high, models, math.nan, "bootstrap")


def _round(value: float) -> float:
    return round(value, 3)


def short(p: float | None) -> str | None:
    """A p-value in two digits, as many as it bears."""
    return f"{p:.2g}" if p is not None and math.isfinite(p) else None
