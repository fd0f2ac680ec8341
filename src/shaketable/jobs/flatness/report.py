"""The report of `shaketable flatness`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...report import Hashes, Metric, Report, Section, Table, elapsed_since, environment, mean_metric, verdict_of
from ...stats import Mean, mean, paired
from ..command import command_of
from ..ground import config_of
from ..run_images import folder_of
from .charts import RUN, along_charts, model_charts, radius_charts
from .config import FlatnessConfig
from .findings import findings
from .run import CELLS, Job, Measured
from .text import group_of, how, is_curvature, is_run, name_of, over, radius_of, sentences, title_of

HEADLINE, FEW = 6, 12  # metrics in the headline, and in all, on the page beside the table


def report(job: Job, measured: Sequence[Measured]) -> Report:
    """Everything that was measured, with its intervals and its passes."""
    config, notes = job.config, findings(job, measured)
    names = [subject.source.name for subject in job.subjects]
    data = measured[0].measurement.images.place.source
    of_run = is_run([one for one in measured if one.found is not None])
    metrics, headline = _metrics(job, measured, grouped=not of_run)
    files = {subject.source.name: subject.file or subject.sha256 for subject in job.subjects}
    now = sum(one.outcome.result is not None for one in measured)
    return Report(
        verb="flatness",
        title=f"Flatness of {_named(names, of_run, config)} on {data}",
        summary=sentences(job, measured),
        verdict=verdict_of(notes),
        headline=headline,
        findings=notes,
        sections=_sections(job, measured, metrics),
        command=command_of(
            "flatness", config.model_copy(update={"workers": type(config).model_fields["workers"].default})
        ),
        config=config_of(config),
        environment=environment(device=str(job.ground.device)),
        seeds={"seed": config.seed},
        hashes=Hashes(models=files, data=_data(measured)),
        volatile=elapsed_since(job.ground.started, extra={"ledger": str(config.out / CELLS), "measurements": now}),
    )


def _data(measured: Sequence[Measured]) -> dict[str, str]:
    """The images' hashes by split; by model and split where models have training images of their own."""
    hashes = {(one.measurement.images.part, one.measurement.task.cell.data): one for one in measured}
    parts = [part for part, _ in hashes]
    names = {key: one.measurement.subject.source.name for key, one in hashes.items()}
    return {key[0] if parts.count(key[0]) == 1 else f"{names[key]}, {key[0]}": key[1] for key in hashes}


def _named(names: Sequence[str], of_run: bool, config: FlatnessConfig) -> str:
    if len(names) == 1:
        return names[0]
    folder = folder_of(Path(config.model[0]).resolve())
    return f"{len(names)} checkpoints of {folder.name}" if of_run else f"{len(names)} models"


def _sections(job: Job, measured: Sequence[Measured], metrics: tuple[Metric, ...]) -> tuple[Section, ...]:
    known = [one for one in measured if one.found is not None]
    several = len(job.subjects) > 1
    charts = [*radius_charts(known), *(along_charts(known) or (model_charts(known) if several else ()))]
    tables = tuple(table for made in (_table, _curvature) if (table := made(known, several)) is not None)
    sections = [Section(title="Flatness", metrics=metrics, charts=tuple(charts), tables=tables)]
    if several and (differences := _differences(known)):
        sections.append(Section(title="Compared with the first model", tables=(differences,)))
    sections += [section for made in (_by_correctness, _precision) if (section := made(known, several)) is not None]
    return (*sections, Section(title="How it was measured", text=how(job, measured)))


def _metrics(job: Job, measured: Sequence[Measured], *, grouped: bool) -> tuple[tuple[Metric, ...], tuple[Metric, ...]]:
    """All measurements as metrics, if they are few; and six of them: of several models the first measure of each."""
    several, made, first = len(job.subjects) > 1, list[Metric](), list[Metric]()
    known = [one for one in measured if one.found is not None]
    for one in known:
        assert one.found is not None
        name = one.measurement.subject.source.name
        title = f"{name}: {name_of(one)}" if several else name_of(one)
        metric = mean_metric(title, one.found.value, note=f"over {over(one.found)}", group=name if grouped else RUN)
        made.append(metric)
        if not several or group_of(one) == group_of(known[0]):
            first.append(metric)
    if several and len(first) > HEADLINE:  # the last one is the end of a run
        first = [*first[: HEADLINE - 1], first[-1]]
    return tuple(made) if len(made) <= FEW else (), tuple(first[:HEADLINE])


def _curvature(known: Sequence[Measured], several: bool) -> Table | None:
    """The Hessian's eigenvalues, where they were asked for."""
    rows: list[tuple[Any, ...]] = []
    for one in known:
        found = one.found
        assert found is not None
        if is_curvature(found):
            own, f = (one.measurement.subject.source.name,) if several else (), found.facts
            rows.append((
                *own, one.measurement.images.part, title_of(found), found.reference, found.value, f.get("lambda_min"),
                f.get("convexity"), f["residual"], found.calls.forward, found.calls.backward,
            ))  # fmt: skip
    if not rows:
        return None
    columns = ("Images", "Measure", "Loss", "Largest", "Smallest", "Ratio", "Residual", "Forward", "Backward")
    return Table(
        title="Eigenvalues of the Hessian", columns=("Model", *columns) if several else columns, rows=tuple(rows),
        note="Largest: with the 95 % Student interval over the images, for this eigenvector. Ratio: of the smallest to the "
        "largest in size, 0 where the loss is convex.",
    )  # fmt: skip


def _table(known: Sequence[Measured], several: bool) -> Table | None:
    rows: list[tuple[Any, ...]] = []
    for one in known:
        found = one.found
        assert found is not None
        own = (one.measurement.subject.source.name,) if several else ()
        if is_curvature(found):
            continue
        rows.append((
            *own, one.measurement.images.part, title_of(found), radius_of(found), found.reference, found.value, over(found),
            found.calls.forward, found.calls.backward,
        ))  # fmt: skip
    if not rows:
        return None
    columns = ("Images", "Measure", "Radius", "Loss at w", "Rise", "Interval over", "Forward", "Backward")
    return Table(
        title="How much the loss rises",
        columns=("Model", *columns) if several else columns,
        rows=tuple(rows),
        note="95 % Student intervals: over the draws for average cases, whose images are fixed; over the images for worst "
        "cases, whose search is fixed. Forward and backward: passes, counted in images, of each measurement by itself.",
    )


def _by_correctness(known: Sequence[Measured], several: bool) -> Section | None:
    rows: list[tuple[Any, ...]] = []
    for one in known:
        found = one.found
        assert found is not None
        parts, own = found.split(), (one.measurement.subject.source.name,) if several else ()
        if len(found.correct) == found.examples:
            rows.append((
                *own, one.measurement.images.part, title_of(found), radius_of(found), int(found.correct.sum()), parts.correct,
                int((~found.correct).sum()), parts.incorrect,
            ))  # fmt: skip
    if not rows:
        return None
    columns = ("Images", "Measure", "Radius", "Right", "Rise, right", "Wrong", "Rise, wrong")
    text = (
        "The same rises, over the images that the model classifies rightly without an attack, and over those that it does "
        "not. Where the loss of wrong images alone rises, flatness says little of robustness."
    )
    table = Table(
        title="Split by correctness", columns=("Model", *columns) if several else columns, rows=tuple(rows),
        note="95 % Student intervals over the images of each kind.",
    )  # fmt: skip
    return Section(title="Right and wrong images", text=text, tables=(table,))


def _between(low: float, high: float) -> str:
    return f"{low:,.0f} to {high:,.0f}" if math.isfinite(high) else f"more than {low:,.0f}"


def _precision(known: Sequence[Measured], several: bool) -> Section | None:
    """What a stated standard error took."""
    rows: list[tuple[Any, ...]] = []
    for one in known:
        found = one.found
        assert found is not None
        if "asked" in found.facts:
            own, f = (one.measurement.subject.source.name,) if several else (), found.facts
            rows.append((
                *own, one.measurement.images.part, radius_of(found), f["asked"], f["standard_error"], bool(f["reached"]),
                found.value.n, int(f["dear_draws"]), int(f["passes"]),
                _between(f["independent_passes_low"], f["independent_passes_high"]),
            ))  # fmt: skip
    if not rows:
        return None
    columns = (
        "Images",
        "Radius",
        "Asked",
        "Standard error",
        "Reached",
        "Draws",
        "Full attacks",
        "Passes",
        "As the paper",
    )
    text = (
        "The average case was drawn until its standard error was planned to be what was asked for: pairs nu, -nu that meet a "
        "few images each, many of them with a cheap attack, whose error fewer draws with the full attack correct. The plan is "
        "made from the first draws; the clock has no part in it."
    )
    table = Table(
        title="Passes for a standard error", columns=("Model", *columns) if several else columns, rows=tuple(rows),
        note="Passes: forward and backward, counted in images, for the draws. As the paper: what independent draws of the "
        "weights, all images attacked in full, would take to the same standard error.",
    )  # fmt: skip
    return Section(title="Precision", text=text, tables=(table,))


def _differences(known: Sequence[Measured]) -> Table | None:
    """Each model against the first one that is no constant predictor, on the same images."""
    rows: list[tuple[Any, ...]] = []
    for key in dict.fromkeys(group_of(one) for one in known):
        group = [one for one in known if group_of(one) == key and one.found is not None and not one.found.constant]
        for one in group[1:]:
            if (difference := _difference(group[0], one)) is not None:
                first, other = group[0].measurement.subject.source.name, one.measurement.subject.source.name
                rows.append((f"{other} minus {first}", name_of(one), difference, _verdict(difference, other, first)))
    if not rows:
        return None
    return Table(
        title="Differences", columns=("Models", "Measure", "Difference", "So"), rows=tuple(rows),
        note="Paired, 95 % Student intervals: over the draws for average cases, whose directions are the same for models "
        "of one architecture; over the images else. With --standard-error the two intervals are added as if they were "
        "independent, which is wider than need be. They say nothing of another training with another seed.",
    )  # fmt: skip


def _difference(first: Measured, other: Measured) -> Mean | None:
    a, b = first.found, other.found
    if a is None or b is None or first.measurement.task.cell.data != other.measurement.task.cell.data:
        return None
    if "asked" in a.facts and "asked" in b.facts:
        centre, half = b.value.value - a.value.value, math.hypot(_half(a.value), _half(b.value))
        return Mean(centre, centre - half, centre + half, min(a.value.n, b.value.n), math.nan)
    if over(a).endswith("images") and over(b).endswith("images"):
        return mean((b.per_image - a.per_image).tolist())
    return paired(b.draws, a.draws) if len(a.draws) == len(b.draws) and len(a.draws) > 1 else None


def _half(value: Mean) -> float:
    return (value.high - value.low) / 2


def _verdict(difference: Mean, other: str, first: str) -> str:
    if not math.isfinite(difference.low) or difference.low <= 0 <= difference.high:
        return "not told apart"
    return f"{first if difference.low > 0 else other} is flatter"
