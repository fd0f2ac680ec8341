"""The charts of `shaketable landscape`: curves, contours and surfaces, volumes with their slices, and a run's path."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ...report import Chart, Series
from ...stats import Mean
from .run import Drawn, value_of

LOSSES: dict[str, str] = {"robust_loss": "robust loss", "clean_loss": "clean loss"}
ACCURACIES: dict[str, str] = {"robust": "robust accuracy", "clean": "clean accuracy"}
NAMES = LOSSES | ACCURACIES
_FAR = 4.0  # colours end at the 9th decile if the largest value is so many times as large


def curves(drawn: Sequence[Drawn], x_label: str) -> tuple[Chart, ...]:
    """Robust and clean loss, and the accuracies, of all models along one axis."""
    charts: list[Chart] = []
    pairs: tuple[tuple[str, Mapping[str, str], Literal["number", "percent"]], ...] = (
        ("Robust and clean loss", LOSSES, "number"), ("Robust and clean accuracy", ACCURACIES, "percent"),
    )  # fmt: skip
    for title, quantities, form in pairs:
        series = [_curve(one, quantity, len(drawn) > 1) for quantity in quantities for one in drawn]
        charts.append(
            Chart(
                kind="line", title=title, series=series, x_label=x_label, y_format=form,
                y_label="accuracy" if form == "percent" else "cross-entropy", caption=_over(drawn),
                description="; ".join(map(_told, series)),
            )
        )  # fmt: skip
    return tuple(charts)


def _curve(one: Drawn, quantity: str, several: bool) -> Series:
    values = one.values(quantity)
    spread = any(value is not None and math.isfinite(value.high - value.low) for value in values)
    low, high = ([_bounded(getattr(v, end), quantity) if v else None for v in values] for end in ("low", "high"))
    return Series(
        name=f"{one.name}, {quantity.split('_')[0]}" if several else NAMES[quantity],
        x=one.grids[0],
        y=[None if v is None else v.value for v in values],
        low=low if spread else None,
        high=high if spread else None,
        group=one.name,
        dash="solid" if quantity.startswith("robust") else "dot",
    )


def _bounded(end: float, quantity: str) -> float:
    """An interval's end; that of an accuracy within what accuracies can be."""
    return min(1.0, max(0.0, end)) if quantity in ACCURACIES else end


def _over(drawn: Sequence[Drawn]) -> str:
    count = max(len(one.lines) for one in drawn)
    if count < 2:
        return "Along one direction."
    if drawn[0].combine == "max":
        return f"The worst of {count} directions at each point."
    return f"Means over {count} directions; bands are 95 % Student intervals over them."


def _told(series: Series) -> str:
    """What one who cannot see a curve is told: its ends, its middle and its least."""
    known = [(y, x) for x, y in zip(series.x, series.y, strict=True) if y is not None and math.isfinite(y)]
    if not known:
        return f"{series.name}: nothing was measured"
    least, where = min(known)
    ends = [f"{y:.3g} at {x:g}" for y, x in (known[0], known[-1])]
    return f"{series.name}: {ends[0]}, {ends[1]}, least {least:.3g} at {where:g}"


def surfaces(one: Drawn, spans: Mapping[str, tuple[float, float]], labels: Sequence[str]) -> tuple[Chart, ...]:
    """Contours of losses and robust accuracy over two axes, a run's path over them, and the robust loss as a surface."""
    shown: tuple[tuple[str, Literal["contour", "surface"]], ...] = (
        ("robust_loss", "contour"), ("robust_loss", "surface"), ("clean_loss", "contour"), ("robust", "contour"),
    )  # fmt: skip
    charts: list[Chart] = []
    for quantity, kind in shown:
        rows = _rows(one.values(quantity), one.grids)
        title = f"{NAMES[quantity].capitalize()}{', as a surface' if kind == 'surface' else ''}"
        charts.append(
            Chart(
                kind=kind, title=title, series=rows, x_label=labels[0], y_label=labels[1], z_label=NAMES[quantity],
                y_format="percent" if quantity in ACCURACIES else "number", span=spans.get(quantity),
                path=_path(one, quantity) if kind == "contour" else None, description=_extent(one, quantity),
            )
        )  # fmt: skip
    return tuple(charts)


def volumes(one: Drawn, spans: Mapping[str, tuple[float, float]], labels: Sequence[str]) -> tuple[Chart, ...]:
    """The robust loss over three axes, and its slices through the middle."""
    span, values = spans.get("robust_loss"), one.values("robust_loss")
    charts = [
        Chart(
            kind="volume", title="Robust loss, in three directions", series=_rows(values, one.grids), x_label=labels[0],
            y_label=labels[1], z_label=labels[2], span=span, description=_extent(one, "robust_loss"),
            caption="Surfaces of equal loss, from the lowest inside to the highest.",
        )
    ]  # fmt: skip
    sizes = [len(axis) for axis in one.grids]
    for across in (2, 1, 0):
        kept = [axis for axis in range(3) if axis != across]
        middle = sizes[across] // 2
        slices = [
            value
            for index, value in zip(itertools.product(*map(range, sizes)), values, strict=True)
            if index[across] == middle
        ]
        charts.append(
            Chart(
                kind="contour", title=f"Robust loss where {labels[across]} is {one.grids[across][middle]:.3g}",
                series=_rows(slices, [one.grids[axis] for axis in kept]), x_label=labels[kept[0]], y_label=labels[kept[1]],
                z_label="robust loss", span=span, description=_extent(one, "robust_loss"),
            )
        )  # fmt: skip
    return tuple(charts)


def _rows(values: Sequence[Mean | None], grids: Sequence[Sequence[float]]) -> list[Series]:
    """The values of a grid, whose last axis runs fastest, as rows along its first axis."""
    by_place = dict(zip(itertools.product(*grids), values, strict=True))
    rows: list[Series] = []
    for rest in itertools.product(*reversed(grids[1:])):
        at = tuple(reversed(rest))
        found = [by_place[(x, *at)] for x in grids[0]]
        name = ", ".join(f"{c:.3g}" for c in at)
        rows.append(Series(name=name, x=grids[0], y=[None if v is None else v.value for v in found], at=at))
    return rows


def _path(one: Drawn, quantity: str) -> Series | None:
    """A run's path over its plane, each checkpoint with what was measured at itself."""
    axes = one.axes[0] if one.axes else {}
    if "path" not in axes or len(one.grids) != 2:
        return None
    labels: list[str] = []
    for point, (source, _) in zip(one.path, one.picture.checkpoints, strict=True):
        value = value_of(point, quantity)
        said = "not measured" if value is None else f"{value:.1%}" if quantity in ACCURACIES else f"{value:.3g}"
        labels.append(f"{_when(source.epoch, source.name)}: {said}")
    return Series(
        name="the training's path", x=[c[0] for c in axes["path"]], y=[c[1] for c in axes["path"]], labels=labels
    )


def _when(epoch: int | None, name: str) -> str:
    return name if epoch is None else f"epoch {epoch}"


def path_charts(one: Drawn) -> tuple[Chart, ...]:
    """Losses and accuracies of a run's checkpoints themselves."""
    epochs = [source.epoch for source, _ in one.picture.checkpoints]
    dated = None not in epochs and sorted(epochs) == epochs  # pyright: ignore[reportArgumentType]
    x: Any = epochs if dated else list(range(1, len(epochs) + 1))
    charts: list[Chart] = []
    for title, quantities in (("Loss along the path", LOSSES), ("Accuracy along the path", ACCURACIES)):
        series = [
            Series(
                name=name, x=x, y=[value_of(point, quantity) for point in one.path], group="run",
                dash="solid" if quantity.startswith("robust") else "dot",
            )
            for quantity, name in quantities.items()
        ]  # fmt: skip
        shares = quantities is ACCURACIES
        charts.append(
            Chart(
                kind="line", title=title, series=series, x_label="epoch" if dated else "checkpoint",
                y_label="accuracy" if shares else "cross-entropy", y_format="percent" if shares else "number",
                caption="Of the checkpoints themselves, not of their places in the plane.",
                description="; ".join(map(_told, series)),
            )
        )  # fmt: skip
    return tuple(charts)


def spans_of(drawn: Sequence[Drawn]) -> dict[str, tuple[float, float]]:
    """The values at the ends of the colours of each quantity, the same for all models."""
    spans: dict[str, tuple[float, float]] = {}
    for quantity in NAMES:
        known = sorted(
            v.value for one in drawn for v in one.values(quantity) if v is not None and math.isfinite(v.value)
        )
        if not known:
            continue
        decile = known[9 * (len(known) - 1) // 10]
        high = decile if quantity in LOSSES and known[-1] > _FAR * decile else known[-1]
        spans[quantity] = (known[0], high if high > known[0] else known[0] + 1e-3)
    return spans


def _extent(one: Drawn, quantity: str) -> str:
    places = list(itertools.product(*one.grids))
    known = [(v.value, p) for v, p in zip(one.values(quantity), places, strict=True) if v and math.isfinite(v.value)]
    if not known:
        return "Nothing was measured."
    (low, lowest), (high, highest) = min(known), max(known)
    share = quantity in ACCURACIES
    told = [f"{100 * v:.1f} %" if share else f"{v:.3g}" for v in (low, high)]
    where = [f"({', '.join(f'{c:.3g}' for c in p)})" for p in (lowest, highest)]
    return f"{one.name}: {NAMES[quantity]} from {told[0]} at {where[0]} to {told[1]} at {where[1]}."
