"""The report of `shaketable landscape`."""

import math
from collections.abc import Sequence
from typing import Any

from ...core import Calls
from ...report import (
    Hashes,
    Metric,
    Report,
    Section,
    Table,
    elapsed_since,
    environment,
    mean_metric,
    number_metric,
    rate_metric,
    verdict_of,
)
from ...stats import Mean, paired
from ..command import command_of
from ..ground import config_of
from .charts import curves, path_charts, spans_of, surfaces, volumes
from .plan import Job
from .run import CELLS, Drawn
from .text import OF, findings, how, kind_of, labels_of, rise_of, rises, sentences


def report(job: Job, drawn: Sequence[Drawn]) -> Report:
    """The pictures, and the numbers that go with them."""
    config, notes = job.config, findings(job, drawn)
    names = [one.name for one in drawn]
    data = job.pictures[0].images.place.source
    what = "Path of a training through the adversarial loss" if config.trajectory else "Adversarial loss around"
    of = "" if config.trajectory else f" {names[0] if len(names) == 1 else f'{len(names)} models'}"
    subjects = [one.picture.subject for one in drawn]
    return Report(
        verb="landscape",
        title=f"{what}{of} on {data}",
        summary=sentences(job, drawn),
        verdict=verdict_of(notes),
        headline=_headline(job, drawn),
        findings=notes,
        sections=_sections(job, drawn),
        command=command_of("landscape", config.model_copy(update={"workers": 1})),
        config=config_of(config),
        environment=environment(device=str(job.ground.device)),
        seeds={"seed": config.seed},
        hashes=Hashes(
            models={s.source.name: s.file or s.sha256 for s in subjects},
            data={one.name: one.picture.place.data_sha for one in drawn},
        ),
        volatile=elapsed_since(job.ground.started, extra={"ledger": str(config.out / CELLS)}),
    )


def _headline(job: Job, drawn: Sequence[Drawn]) -> tuple[Metric, ...]:
    made: list[Metric] = []
    for one in drawn[:3]:
        name = f", {one.name}" if len(drawn) > 1 else ""
        if one.at is not None:
            note = "the last checkpoint" if job.config.trajectory else "at the weights themselves"
            made.append(rate_metric(f"Robust accuracy{name}", one.at.robust, note=note, group=one.name))
        if not job.config.trajectory and (rise := rise_of(one)) is not None:
            made.append(_rise_metric(job, one, f"Rise of the robust loss{name}", rise))
        if job.config.trajectory and one.axes:
            shares = one.axes[0]["explained"]
            made += [
                number_metric(f"Explained by direction {k + 1}", round(100 * s, 1), unit="%")
                for k, s in enumerate(shares)
            ]
    return tuple(made[:6])


def _rise_metric(job: Job, one: Drawn, title: str, rise: Mean | float) -> Metric:
    line = one.picture.lines[0]
    note = f"at the border, {line.radius:g} of {OF[line.normalise]}, {kind_of(job)} directions"
    if isinstance(rise, Mean):
        return mean_metric(title, rise, note=note, group=one.name)
    return number_metric(title, rise, note=note, group=one.name)


def _sections(job: Job, drawn: Sequence[Drawn]) -> tuple[Section, ...]:
    labels, spans = labels_of(job), spans_of(drawn)
    pictured = [one for one in drawn if any(point for line in one.lines for point in line)]
    sections: list[Section] = []
    if job.dims == 1 and pictured:
        sections.append(Section(title="The loss along the directions", charts=curves(pictured, labels[0])))
    for one in pictured if job.dims > 1 else ():
        charts = surfaces(one, spans, labels) if job.dims == 2 else volumes(one, spans, labels)
        text, title = "", "The loss around the weights"
        if len(pictured) > 1:
            text, title = "The colours of a quantity mean the same for all models.", one.name
        if job.config.trajectory:
            text = "The line is the training's path, its star the last checkpoint, which is the origin."
            title = "The loss around the path"
        sections.append(Section(title=title, text=text, charts=charts))
    if job.config.trajectory and drawn[0].path:
        sections.append(Section(title="Along the path", charts=path_charts(drawn[0]), tables=(_path_table(drawn[0]),)))
    sections.append(_numbers(job, drawn))
    if (table := _differences(job, drawn)) is not None:
        sections.append(Section(title="Compared with the first model", tables=(table,)))
    sections.append(Section(title="How it was measured", text=how(job)))
    return tuple(sections)


def _numbers(job: Job, drawn: Sequence[Drawn]) -> Section:
    """At the weights and at the border, the axes' own facts, and the passes."""
    rows: list[tuple[Any, ...]] = []
    for one in drawn:
        at = one.at
        rise = () if job.config.trajectory else (rise_of(one),)
        losses = (None, None, None, None) if at is None else (at.robust_loss, at.clean_loss, at.robust, at.clean)
        calls = _calls(one)
        rows.append((one.name, *losses, *rise, calls.forward, calls.backward))
    rise = () if job.config.trajectory else ("Rise at the border",)
    losses = ("Robust loss", "Clean loss", "Robust accuracy", "Clean accuracy")
    note = (
        "Rise: the robust loss on the border of what is drawn minus that at the weights; of several random directions with "
        "its 95 % Student interval over them, of adversarial ones the largest. "
    )
    passes = "Forward and backward: passes of one image, for all that was measured."
    table = Table(
        title="At the weights themselves",
        columns=("Model", *losses, *rise, "Forward", "Backward"),
        rows=tuple(rows),
        note=(note if rise else "") + passes,
    )
    facts = _facts(drawn)
    return Section(title="Numbers", tables=(table, facts) if facts is not None else (table,))


def _facts(drawn: Sequence[Drawn]) -> Table | None:
    """What is known of the axes."""
    rows: list[tuple[Any, ...]] = []
    for one in drawn:
        for k, axes in enumerate(one.axes):
            line = f"{one.name}, line {k + 1}" if len(one.axes) > 1 else one.name
            rows += [(line, name.replace("_", " "), value) for name, value in axes.get("facts", {}).items()]
            rows += [(line, "cosine of two directions", value) for value in axes.get("cosines", ())]
            rows += [
                (line, f"share of the variance, direction {i + 1}", v) for i, v in enumerate(axes.get("explained", ()))
            ]
    if not rows:
        return None
    return Table(title="The directions", columns=("Model", "What", "Value"), rows=tuple(rows))


def _path_table(one: Drawn) -> Table:
    axes: Any = one.axes[0] if one.axes else {"path": [()] * len(one.path), "off": [None] * len(one.path)}
    dims = len(axes["path"][0])
    rows: list[tuple[Any, ...]] = []
    for (source, _), point, place, off in zip(
        one.picture.checkpoints, one.path, axes["path"], axes["off"], strict=True
    ):
        losses = (None, None, None) if point is None else (point.robust_loss, point.clean_loss, point.robust)
        rows.append((source.name, source.epoch, *place, off, *losses))
    columns = (
        "Checkpoint", "Epoch", *(f"Direction {k + 1}" for k in range(dims)), "Off the plane", "Robust loss", "Clean loss",
        "Robust accuracy",
    )  # fmt: skip
    note = (
        "Off the plane: the share of a checkpoint's distance from the last one that lies outside of these directions."
    )
    return Table(title="The checkpoints", columns=columns, rows=tuple(rows), note=note)


def _calls(one: Drawn) -> Calls:
    points = [point for line in (*one.lines, one.path, (one.at,)) for point in line if point is not None]
    total = sum((point.calls for point in points), Calls())
    return sum((Calls(axes.get("forward", 0), axes.get("backward", 0)) for axes in one.axes), total)


def _differences(job: Job, drawn: Sequence[Drawn]) -> Table | None:
    """Each model's rises against the first one's, direction by direction, where they are random."""
    rows: list[tuple[Any, ...]] = []
    if kind_of(job) != "random" or job.config.trajectory:
        return None
    first = drawn[0]
    for one in drawn[1:]:
        a, b = rises(first), rises(one)
        if len(a) == len(b) and len(a) > 1 and all(map(math.isfinite, (*a, *b))):
            found = paired(b, a)
            verdict = (
                "not told apart"
                if found.low <= 0 <= found.high
                else f"{first.name if found.low > 0 else one.name} is flatter"
            )
            rows.append((f"{one.name} minus {first.name}", found, verdict))
    if not rows:
        return None
    note = (
        "Paired by direction, which is the same for models of one architecture; 95 % Student intervals over the directions. "
        "They say nothing of another training with another seed."
    )
    return Table(title="Rise at the border", columns=("Models", "Difference", "So"), rows=tuple(rows), note=note)
