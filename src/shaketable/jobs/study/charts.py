"""The charts of a study: differences seed by seed with their intervals, cells beside each other, mean learning curves."""

from collections.abc import Sequence
from typing import Literal

from ...report import Chart, Series
from ..measured import FINAL
from .recipe import Recipe
from .summary import CellResult, Comparison, Difference, Measure, Summary, mean_curve

_CHARTS = 6  # of learning curves, where the recipe does not say which
_SPLITS: dict[str, Literal["solid", "dash", "dot"]] = {"test": "solid", "train": "dot"}
_CURVES = ("robust loss", "robust accuracy")
_GROUPS = ("first", "second", "third", "fourth", "fifth", "sixth")  # a colour means a place in its chart, not a cell


def difference_chart(measure: Measure, known: Sequence[tuple[Comparison, Difference]]) -> Chart:
    """The mean difference of each comparison with its interval, and every seed's own."""
    names = tuple(c.compare.name for c, _ in known)
    means = [d.mean for _, d in known]
    bounded = [m.n > 1 for m in means]
    mean = Series(
        name="mean, 95 % interval", x=names, y=tuple(m.value for m in means),
        low=tuple(m.low if b else None for m, b in zip(means, bounded, strict=True)),
        high=tuple(m.high if b else None for m, b in zip(means, bounded, strict=True)), group=_GROUPS[0],
    )  # fmt: skip
    points = [(c.compare.name, value, f"seed {seed}") for c, d in known for seed, value in d.values.items()]
    seeds = Series(
        name="each seed", x=tuple(x for x, _, _ in points), y=tuple(y for _, y, _ in points),
        labels=tuple(label for _, _, label in points), group=_GROUPS[1],
    )  # fmt: skip
    spread = "; ".join(f"{c.compare.name}: {d.mean.value:+.3g} [{d.mean.low:.3g}, {d.mean.high:.3g}]" for c, d in known)
    wanted = {-1: "Below 0 is better.", 1: "Above 0 is better.", 0: ""}[measure.better]
    return Chart(
        kind="scatter", title="Paired differences", series=(seeds, mean), x_label="",
        y_label="difference" + (f", {measure.unit}" if measure.unit else ""),
        caption=f"{wanted} An interval that excludes 0 tells the two cells apart.".strip(), description=f"{spread}. {wanted}",
    )  # fmt: skip


def cell_bars(cells: Sequence[CellResult]) -> tuple[Chart, ...]:
    """Robust gap and robust accuracy of every cell."""
    made: list[Chart] = []
    for key, title, label in (
        ("gap", "Robust gap of each cell", "robust loss, test minus training"),
        ("robust_last", "Robust accuracy of each cell, last epoch", "robust accuracy, %"),
        (FINAL, "Robust accuracy of each cell, last epoch, final attack", "robust accuracy, %"),
    ):
        known = [(cell.name, cell.means[key]) for cell in cells if key in cell.means]
        if not known:
            continue
        series = Series(
            name=title, x=tuple(name for name, _ in known), y=tuple(m.value for _, m in known),
            low=tuple(m.low if m.n > 1 else None for _, m in known),
            high=tuple(m.high if m.n > 1 else None for _, m in known), group=_GROUPS[0],
        )  # fmt: skip
        ends = "; ".join(f"{name}: {m.value:.3g}" for name, m in known)
        made.append(Chart(kind="bar", title=title, series=(series,), x_label="", y_label=label, description=f"{ends}."))
    return tuple(made)


def curve_charts(recipe: Recipe, summary: Summary) -> tuple[Chart, ...]:
    """Mean robust loss and accuracy against the epoch, for each group of cells that the recipe names.

    Without `[[curves]]` in the recipe each comparison's two cells make a group, the first six of them; without
    comparisons, the first four cells.
    """
    groups = [(c.title, c.cells) for c in recipe.curves]
    groups = groups or [(c.name, (c.b, c.a)) for c in recipe.compare[:_CHARTS]]
    shown = tuple(name for name, cell in summary.cells.items() if not cell.hidden)
    groups = groups or [("all cells", shown[:4])]
    charts = [
        _chart(title, [summary.cells[name] for name in cells], kind) for title, cells in groups for kind in _CURVES
    ]
    return tuple(chart for chart in charts if chart is not None)


def _chart(title: str, cells: Sequence[CellResult], kind: str) -> Chart | None:
    series: list[Series] = []
    for k, cell in enumerate(cells):
        for split, dash in _SPLITS.items():
            curves = [m.curves[kind][split] for m in cell.measured.values() if split in m.curves.get(kind, {})]
            points = mean_curve(curves)
            if points:
                low, high = ([getattr(m, end) if m.n > 1 else None for _, m in points] for end in ("low", "high"))
                line = Series(
                    name=f"{cell.name}, {split}", x=tuple(x for x, _ in points), y=tuple(m.value for _, m in points),
                    low=low, high=high, group=_GROUPS[k % len(_GROUPS)], dash=dash,
                )  # fmt: skip
                series.append(line)
    if not series:
        return None
    rates = kind == "robust accuracy"
    ends = "; ".join(f"{s.name}: {s.y[0]:.3f} at first, {s.y[-1]:.3f} at the end" for s in series)
    return Chart(
        kind="line", title=f"{kind.capitalize()}: {title}", series=tuple(series), x_label="epoch",
        y_label=kind if rates else f"{kind} (cross-entropy)", y_format="percent" if rates else "number",
        description=f"The mean {kind} over the epochs. {ends}.",
    )  # fmt: skip
