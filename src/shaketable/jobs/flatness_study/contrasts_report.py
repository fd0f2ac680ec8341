"""Which kinds of nets are flatter than the baseline: sentences, charts and tables of differences, paired by seed."""

from collections.abc import Sequence
from typing import Any

from ...report import Metric, Section, Table, mean_metric
from ..study.charts import difference_chart
from ..study.recipe import Compare
from ..study.summary import Comparison, Difference, Measure
from .collected import LOSSES, Contrast, Contrasts
from .report import short

_LEVEL = 0.05
_SIDES = ("flatter", "sharper", "not told apart")
_NOTE = (
    "Paired by seed; 95 % Student intervals over the seeds. p: two-sided, Student's paired test; Holm's adjusts for "
)


def contrast_sentences(found: Contrasts) -> tuple[str, ...]:
    """For each measure: what is flatter and what is sharper; and whether that goes with robustness.

    What the first measure does not tell apart is named; of the others it is what they do not name.
    """
    lines, nothing = list[str](), list[str]()
    for k, measure in enumerate(_measures(found)):
        known = {c.name: d for c in found.others if (d := c.differences.get(measure)) is not None and d.mean.n > 1}
        sides = {side: [name for name, d in known.items() if _side(d) == side] for side in _SIDES}
        told = bool(sides["flatter"] or sides["sharper"])
        if not told and k:
            nothing += [measure] if known else []
            continue
        parts = [
            f"{side}: {', '.join(names)}" for side, names in sides.items() if names and (k == 0 or side != _SIDES[2])
        ]
        if told:
            holm = [name for name, d in known.items() if (d.holm if d.holm is not None else 1.0) < _LEVEL]
            parts.append(f"after Holm's adjustment for all of them: {', '.join(holm) or 'none'}")
        if parts:
            lines.append(f"{measure} of the last epoch, against {found.baseline}, by seed: {'; '.join(parts)}.")
    missing = [c.name for c in found.others if not c.differences]
    if lines and missing:
        lines.append(f"No pair for {', '.join(missing)}: not trained, or no better than constant predictors.")
    if nothing:
        lines.append(f"No interval excludes 0 by {'; '.join(nothing)}.")
    return (*lines, *_with_robustness(found)) if lines else ()


def _with_robustness(found: Contrasts) -> list[str]:
    """How many of the flatter ones have a lower robust loss too, and how many of the others."""
    measure, loss = found.columns[0], LOSSES[0]
    known = [
        (_side(a), _side(b))
        for c in found.others
        if (a := c.differences.get(measure)) and (b := c.differences.get(loss)) and min(a.mean.n, b.mean.n) > 1
    ]
    flat, rest = ([loss_side for side, loss_side in known if (side == "flatter") == wanted] for wanted in (True, False))
    lower = [sum(side == "flatter" for side in part) for part in (flat, rest)]
    parts = [
        f"of the {len(part)} comparisons that are {'' if part is flat else 'not '}flatter by {measure}, {count} have a lower "
        "robust loss on test images"
        for part, count in ((flat, lower[0]), (rest, lower[1]))
        if part
    ]
    line = "; ".join(parts)
    return [f"{line[0].upper()}{line[1:]} (intervals below 0)."] if parts else []


def contrast_sections(found: Contrasts) -> tuple[Section, ...]:
    """The sections of a report."""
    measures = _measures(found)
    charts = [
        difference_chart(Measure(m, m, "", 0), _known(found.others, m)) for m in measures if _known(found.others, m)
    ]
    charts = [c.model_copy(update={"title": f"{c.title}: {m}"}) for c, m in zip(charts, measures, strict=False)]
    sections = [
        Section(
            title=f"Flatter than the baseline, {found.baseline}?",
            text=_text(found),
            charts=charts,
            tables=tuple(_table(found.others, m) for m in measures if _known(found.others, m)),
        ),
        Section(
            title="Robustness beside it",
            text="The same comparisons by how robust the nets are, on test images; errors in points, the gap in loss.",
            tables=(_wide("Differences in robustness", found.others, LOSSES, p=True),),
        ),
    ]
    if any(c.differences for c in found.stopped):
        sections.append(
            Section(
                title="Early stopping of every cell",
                text="The best epoch, chosen on validation images, minus the last one. p-values are in flatness.json.",
                tables=(_wide("Best minus last epoch", found.stopped, found.columns, p=False),),
            )
        )
    return tuple(sections)


def contrast_metrics(found: Contrasts, most: int) -> tuple[Metric, ...]:
    """The first comparisons by the first measure."""
    measure = found.columns[0]
    known = [(c, d) for c in found.others if (d := c.differences.get(measure)) is not None]
    return tuple(
        mean_metric(f"{measure}: {c.name}", d.mean, note=f"{_words(c.a)} minus {_words(c.b)}") for c, d in known[:most]
    )


def _text(found: Contrasts) -> str:
    return (
        f"Each cell's model of the last epoch minus that of {found.baseline} with the same seed; below 0 is flatter. Early "
        f"stopping is the best epoch of {found.baseline} minus its last. The draws of the weights and the attacks' starts are "
        "the same for all models."
    )


def _measures(found: Contrasts) -> list[str]:
    return [column for column in found.columns if column not in LOSSES]


def _side(difference: Difference) -> str:
    mean = difference.mean
    return _SIDES[0] if mean.high < 0 else _SIDES[1] if mean.low > 0 else _SIDES[2]


def _known(contrasts: Sequence[Contrast], column: str) -> list[tuple[Comparison, Difference]]:
    """Comparisons that have a difference of a column, as the charts of studies take them."""
    return [
        (Comparison(Compare(name=c.name, a=_words(c.a), b=_words(c.b)), c.differences), c.differences[column])
        for c in contrasts
        if column in c.differences
    ]


def _words(model: tuple[str, str]) -> str:
    return f"{model[0]}, {model[1]}"


def _table(contrasts: Sequence[Contrast], column: str) -> Table:
    known = [(c, c.differences[column]) for c in contrasts if column in c.differences]
    rows: tuple[Any, ...] = tuple(
        (c.name, d.mean, f"{d.below} / {d.above}", short(d.p), short(d.holm)) for c, d in known
    )
    return Table(
        title=column, columns=("Comparison", "Difference", "Seeds below / above 0", "p", "p, Holm"), rows=rows,
        note=f"{_NOTE}the {len(known)} comparisons of this table.",
    )  # fmt: skip


def _wide(title: str, contrasts: Sequence[Contrast], columns: Sequence[str], *, p: bool) -> Table:
    """A row a comparison, a column a quantity with its difference and, if asked for, p by Holm's."""
    shown = [column for column in columns if any(column in c.differences for c in contrasts)]
    rows: list[tuple[Any, ...]] = []
    for c in (c for c in contrasts if c.differences):
        found = [c.differences.get(column) for column in shown]
        rows.append((c.name, *(x for d in found for x in [d and d.mean, d and short(d.holm)][: 1 + p])))
    names = [name for column in shown for name in [column, "p, Holm"][: 1 + p]]
    note = f"{_NOTE}all comparisons of a column." if p else "Paired by seed; 95 % Student intervals over the seeds."
    return Table(title=title, columns=("Comparison", *names), rows=rows, note=note)
