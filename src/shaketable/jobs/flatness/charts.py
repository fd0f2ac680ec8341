"""The charts of `shaketable flatness`: the rise against the radius, along a run, and model beside model."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from ...report import Chart, Series
from ...stats import Mean
from .run import Measured
from .text import is_curvature, is_run, radius_of, sized, title_of

_DASHES: dict[str, Literal["solid", "dash", "dot"]] = {"train": "dot", "test": "solid"}
RUN = "run"  # the colour of all checkpoints of a run
MANY = 3  # models, of which a chart shows both splits
_LABEL = "rise of the loss"


def radius_charts(known: Sequence[Measured]) -> tuple[Chart, ...]:
    """The rise against the radius, a chart for each measure that has several radii."""
    charts: list[Chart] = []
    names = list(dict.fromkeys(one.measurement.subject.source.name for one in known))
    if is_run(known):  # its begin and its end
        known = [one for one in known if one.measurement.subject.source.name in (names[0], names[-1])]
    elif len(names) > MANY and any(one.measurement.images.part == "test" for one in known):
        known = [one for one in known if one.measurement.images.part == "test"]
    for title, group in _by_title(known).items():
        radii = {radius for one in group if (radius := _radius(one)) is not None}
        if len(radii) > 1:
            wide = min(radii) > 0 and max(radii) / min(radii) > 20
            series = _series(group, _radius)
            chart = Chart(
                kind="line", title=f"{title} against the radius", series=series, x_label="radius", y_label=_LABEL,
                x_scale="log" if wide else "linear", description=_ends(series, "radius"),
            )  # fmt: skip
            charts.append(chart)
    return tuple(charts)


def along_charts(known: Sequence[Measured]) -> tuple[Chart, ...]:
    """The rise against the epoch, a chart for each measure and radius, where there are checkpoints of several epochs."""
    if not is_run(known):
        return ()
    charts: list[Chart] = []
    for title, group in _by_title(known, radii=True).items():
        series = _series(group, _epoch, of_run=True)
        chart = Chart(
            kind="line", title=f"{title} along the run", series=series, x_label="epoch", y_label=_label(group),
            description=_ends(series, "epoch"),
        )  # fmt: skip
        charts.append(chart)
    return tuple(charts)


def model_charts(known: Sequence[Measured]) -> tuple[Chart, ...]:
    """The rise of each model, a chart for each measure and radius."""
    charts: list[Chart] = []
    for title, group in _by_title(known, radii=True).items():
        series: list[Series] = []
        for part in dict.fromkeys(one.measurement.images.part for one in group):
            own = [one for one in group if one.measurement.images.part == part]
            series.append(_line(f"{part} images", [(one.measurement.subject.source.name, _value(one)) for one in own]))
        told = "; ".join(f"{x}: {y:.3g}" for s in series for x, y in zip(s.x, s.y, strict=True) if y is not None)
        chart = Chart(
            kind="bar",
            title=f"{title} of each model",
            series=series,
            x_label="",
            y_label=_label(group),
            description=told,
        )
        charts.append(chart)
    return tuple(charts)


def _by_title(known: Sequence[Measured], *, radii: bool = False) -> dict[str, list[Measured]]:
    """The measurements under what they are called, with their radius if asked for."""
    groups: dict[str, list[Measured]] = {}
    for one in known:
        assert one.found is not None
        groups.setdefault(sized(one.found) if radii else title_of(one.found), []).append(one)
    return groups


def _series(
    group: Sequence[Measured], place: Callable[[Measured], float | None], *, of_run: bool = False
) -> tuple[Series, ...]:
    """A line for each model and split; one for each split, if the models are checkpoints of a run."""
    lines: dict[tuple[str, str], dict[float, Mean]] = {}
    for one in group:
        x, images = place(one), one.measurement.images
        if x is not None:
            model = "" if of_run else one.measurement.subject.source.name
            lines.setdefault((model, images.part), {})[x] = _value(one)
    several = len({model for model, _ in lines}) > 1
    return tuple(
        _line(
            f"{model}, {part}" if several else f"{part} images", sorted(points.items()), group=model or RUN,
            dash=_DASHES[part],
        )
        for (model, part), points in lines.items()
    )  # fmt: skip


def _line(name: str, points: Sequence[tuple[Any, Mean]], **look: Any) -> Series:
    """Points with their intervals, where these are finite."""
    values = [value for _, value in points]
    bounded = [math.isfinite(value.low) and math.isfinite(value.high) for value in values]
    low, high = (
        [getattr(v, end) if b else None for v, b in zip(values, bounded, strict=True)] for end in ("low", "high")
    )
    return Series(name=name, x=[x for x, _ in points], y=[v.value for v in values], low=low, high=high, **look)


def _ends(series: Sequence[Series], what: str) -> str:
    return "; ".join(
        f"{s.name}: {s.y[0]:.3g} at {what} {s.x[0]:g}, {s.y[-1]:.3g} at {what} {s.x[-1]:g}" for s in series
    )  # fmt: skip


def _label(group: Sequence[Measured]) -> str:
    found = group[0].found
    return "eigenvalue" if found is not None and is_curvature(found) else _LABEL


def _value(one: Measured) -> Mean:
    assert one.found is not None
    return one.found.value


def _radius(one: Measured) -> float | None:
    return None if one.found is None else radius_of(one.found)


def _epoch(one: Measured) -> float | None:
    epoch = one.measurement.subject.source.epoch
    return None if epoch is None else float(epoch)
