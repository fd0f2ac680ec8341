"""The report of a study: paired differences first, then every cell, the mean learning curves, and what was run."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...report import (
    Hashes,
    Metric,
    Report,
    Section,
    Table,
    Volatile,
    mean_metric,
    verdict_of,
)
from ..measured import FINAL
from .charts import cell_bars, curve_charts, difference_chart
from .finals import final_words
from .findings import findings
from .recipe import Cell, cells_of
from .run import Found
from .summary import MEASURES, Comparison, Difference, Measure, Summary, measures_of

_HEADLINES = 6
_SPELT_OUT = 4  # comparisons whose numbers the summary's sentences give; tables give all


def report(found: Found, facts: Mapping[str, Any], volatile: Volatile) -> Report:
    """The whole study as a report.

    Args:
        facts: of the environment.
        volatile: times and host.
    """
    recipe, summary = found.study.recipe, found.summary
    notes = findings(found)
    reports = {name: o.report for name, o in found.outcomes.items() if o.report is not None}
    trained = {name: r for name, r in reports.items() if r.verb == "train"}
    return Report(
        verb="study",
        title=recipe.title,
        summary=(*([recipe.question] if recipe.question else []), _ran(found), *_sentences(summary)),
        verdict=verdict_of(notes),
        headline=_headline(summary),
        findings=notes,
        sections=(
            *(section for measure in MEASURES if (section := _measure_section(measure, found)) is not None),
            _cells_section(found),
            *_curves_sections(found),
            _runs_section(found),
        ),
        command=found.study.command,
        config=recipe.model_dump(mode="json", exclude_none=True),
        environment=dict(facts),
        seeds={f"seed {k}": seed for k, seed in enumerate(recipe.seeds)},
        hashes=Hashes(models={n: r.hashes.models["last"] for n, r in trained.items() if "last" in r.hashes.models}),
        volatile=volatile.model_copy(
            update={"extra": {"seconds of runs": {n: r.volatile.seconds for n, r in reports.items()}}}
        ),
    )


def _ran(found: Found) -> str:
    recipe, trained = found.study.recipe, [o for o in found.outcomes.values() if o.run.cell.verb == "train"]
    done = sum(o.report is not None for o in trained)
    failed = sum(o.error is not None for o in trained)
    cells = len({o.run.cell.name for o in trained})
    ending = f", {failed} failed" if failed else ""
    return (
        f"{done} of {len(trained)} trainings have ended{ending}: {cells} cells, seeds {_seeds(recipe.seeds)}; the runs of "
        "one seed share images, initial weights and the order of batches, so differences are taken seed by seed."
    )


def _seeds(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _sentences(summary: Summary) -> tuple[str, ...]:
    """For each of the main measures: where the interval of the difference excludes 0, and where it does not."""
    lines: list[str] = []
    words = {"lower": "lower in", "higher": "higher in", "open": "not told apart in"}
    brief = len(summary.comparisons) > _SPELT_OUT
    for measure in (m for m in MEASURES if m.key in ("gap", "loss_last", "robust_last", FINAL)):
        groups: dict[str, list[str]] = {"lower": [], "higher": [], "open": []}
        for comparison in summary.comparisons:
            found = comparison.differences.get(measure.key)
            if found is not None and found.mean.n > 1:
                side = "lower" if found.mean.high < 0 else "higher" if found.mean.low > 0 else "open"
                number = "" if brief else f" ({_signed(found, measure)})"
                groups[side].append(f"{comparison.compare.name}{number}")
        parts = [f"{words[side]} {'; '.join(names)}." for side, names in groups.items() if names]
        if parts:
            lines.append(f"{measure.name}: {' '.join([parts[0], *(part[0].upper() + part[1:] for part in parts[1:])])}")
    return tuple(lines)


def _signed(found: Difference, measure: Measure) -> str:
    digits = 1 if measure.unit else 2
    value, low, high = (f"{x:+.{digits}f}" for x in (found.mean.value, found.mean.low, found.mean.high))
    return f"{value} [{low}, {high}]{measure.unit and ' ' + measure.unit}"


def _headline(summary: Summary) -> tuple[Metric, ...]:
    """The first comparisons' gaps and accuracies; without comparisons, the cells' robust accuracies."""
    chosen = [m for m in MEASURES if m.key in ("gap", "robust_last")]
    made = [
        _metric(comparison, measure)
        for comparison in summary.comparisons[: _HEADLINES // 2]
        for measure in chosen
        if measure.key in comparison.differences
    ]
    if made:
        return tuple(made)
    cells = [c for c in summary.cells.values() if not c.hidden and "robust_last" in c.means]
    return tuple(
        mean_metric(f"Robust accuracy, {c.name}", c.means["robust_last"], unit="%", note="last epoch", group=c.name)
        for c in cells[:_HEADLINES]
    )


def _metric(comparison: Comparison, measure: Measure) -> Metric:
    found = comparison.differences[measure.key]
    name = measure.name.partition(" (")[0]
    note = f"{comparison.compare.a} minus {comparison.compare.b}, last epoch"
    return mean_metric(f"{name}: {comparison.compare.name}", found.mean, unit=measure.unit, note=note)


def _measure_section(measure: Measure, found: Found) -> Section | None:
    """One measure: a chart and a table of its differences; None without any."""
    comparisons = found.summary.comparisons
    known = [(c, c.differences[measure.key]) for c in comparisons if measure.key in c.differences]
    if not known:
        return None
    rows: tuple[Any, ...] = tuple(
        (
            c.compare.name,
            f"{c.compare.a} - {c.compare.b}",
            d.mean,
            f"{d.below} / {d.above}",
            _short(d.p),
            _short(d.holm),
        )
        for c, d in known
    )
    unit = ", points" if measure.unit else ""
    table = Table(
        title="The differences in numbers",
        columns=("Comparison", "Cells", f"Difference{unit}", "Seeds below / above 0", "p", "p, Holm"),
        rows=rows,
        note="Paired by seed; 95 % Student intervals over the seeds. p: two-sided, Student's paired test; Holm's adjusts for "
        f"the {len(known)} comparisons of this table.",
    )
    text = _final_words(found) if measure.key == FINAL else ""
    return Section(title=measure.name, text=text, charts=(difference_chart(measure, known),), tables=(table,))


def _final_words(found: Found) -> str:
    """By which attack the last epochs were evaluated, on how many images; nothing without a table [final]."""
    final, measured = found.study.recipe.final, [m for c in found.summary.cells.values() for m in c.measured.values()]
    counts = [m.metrics[FINAL].n for m in measured if FINAL in m.metrics]
    return "" if final is None else final_words(final, [count for count in counts if count is not None])


def _short(p: float | None) -> float | None:
    """A p-value in two digits, as many as it bears."""
    return p if p is None else float(f"{p:.2g}")


def _cells_section(found: Found) -> Section:
    """Every cell's means: losses in one table, shares in another."""
    shown = [cell for cell in found.summary.cells.values() if not cell.hidden]
    measures = measures_of(found.study.recipe)
    tables: list[Table] = []
    for title, chosen in (
        ("Losses, means over the seeds", [m for m in measures if not m.unit]),
        ("Accuracies in %, means over the seeds", [m for m in measures if m.unit]),
    ):
        rows: tuple[Any, ...] = tuple(
            (cell.name, len(cell.measured), *(cell.means.get(measure.key) for measure in chosen)) for cell in shown
        )
        columns = ("Cell", "Seeds", *(m.name.partition(" (")[0] for m in chosen))
        tables.append(Table(title=title, columns=columns, rows=rows))
    text = (
        "The 95 % Student intervals over the seeds show how far a cell varies, not how far two cells differ: for that see "
        "the paired differences."
    )
    return Section(title="Cells", text=text, charts=cell_bars(shown), tables=tables)


def _curves_sections(found: Found) -> tuple[Section, ...]:
    charts = curve_charts(found.study.recipe, found.summary)
    if not charts:
        return ()
    text = (
        "Means over the seeds, with 95 % Student intervals as bands, on the slices of the learning curves. A test loss that "
        "rises while the training loss falls is robust overfitting."
    )
    return (Section(title="Learning curves", text=text, charts=charts),)


def _runs_section(found: Found) -> Section:
    """What differs between the cells, and what became of their runs; how long they took is volatile."""
    recipe, rows = found.study.recipe, list[tuple[Any, ...]]()
    for name, cell in cells_of(recipe).items():
        result = found.summary.cells[name]
        ended = sum(o.report is not None for o in found.outcomes.values() if o.run.cell.name == name)
        rows.append((name, _options(cell, recipe.base), ended, len(result.errors), len(result.missing)))
    table = Table(title="Cells and their runs", columns=("Cell", "Options", "Ended", "Failed", "Not run"), rows=rows)
    base = ", ".join(f"{key} {value}" for key, value in recipe.base.items())
    notes = "\n\n".join(" ".join(part.split()) for part in recipe.notes.split("\n\n"))
    text = "\n\n".join(
        [f"Options of all cells: {base or 'the defaults'}.", *filter(None, [_final_words(found)]), notes]
    )
    return Section(title="What was run", text=text, tables=(table,))


def _options(cell: Cell, base: Mapping[str, Any]) -> str:
    known = {key.replace("-", "_"): value for key, value in base.items()}
    own = {key: value for key, value in cell.options.items() if known.get(key) != value}
    verb = [] if cell.verb == "train" else [cell.verb]
    return ", ".join([*verb, *(f"{key} {value}" for key, value in own.items())]) or "none of its own"
