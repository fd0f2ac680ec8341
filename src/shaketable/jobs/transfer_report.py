"""The report of `shaketable transfer`: matrices, regions compared image by image, survival, what the sources themselves did."""

from collections.abc import Sequence
from typing import Any

from ..attacks.transfer_matrix import Ratio, Transfer
from ..report import (
    Chart,
    Finding,
    Hashes,
    Metric,
    Report,
    Section,
    Series,
    Table,
    elapsed_since,
    environment,
    mean_metric,
    verdict_of,
)
from .command import command_of
from .findings import reported
from .ground import config_of
from .transfer import Job
from .transfer_config import REGIONAL
from .transfer_pictures import examples
from .transfer_why import why
from .transfer_words import how, summary

NORMS = {"l0": "L0", "l2": "L2", "linf": "Linf"}
FEW = 10  # images that both get right, below which a rate says little


def report(job: Job, found: Transfer) -> Report:
    """All of it."""
    findings = _findings(job, found)
    return Report(
        verb="transfer",
        title=f"Transfer between {len(job.models)} models on {job.data.name}",
        summary=summary(job, found),
        verdict=verdict_of(findings),
        headline=_headline(found),
        findings=findings,
        sections=(
            _matrices(found),
            *([_regions(found)] if found.attack == REGIONAL else []),
            _survival(found),
            why(found),
            *_claims(job, found),
            *examples(job, found),
            _sources(found),
            _how(job),
        ),
        command=command_of("transfer", job.config.model_copy(update={"workers": 1})),
        config=config_of(job.config),
        environment=environment(device=str(job.ground.device)),
        seeds={"seed": job.config.seed},
        hashes=Hashes(
            models={m.name: m.file for m in job.models if m.file}, data={job.data.name: job.data.fingerprint}
        ),
        volatile=elapsed_since(job.ground.started),
    )


def _headline(found: Transfer) -> tuple[Metric, ...]:
    """The mean rate of each region, of which at least one image counts."""
    made = list[Metric]()
    for name in found.regions[:6]:
        mean, note = found.mean(name), f"mean of {len(found.pairs)} pairs"
        if mean.n:
            alike = f", Wilson interval of {mean.n} images" if mean.value in (0, 1) else ""
            made.append(mean_metric(f"Transfer, {name}", mean, note=note + alike))
    return tuple(made)


def _matrices(found: Transfer) -> Section:
    charts, tables, ways = [], [], {"after the last step": {}}
    if found.attack == REGIONAL:
        ways |= {"after the last step, into the class led to": {"aimed": True}, "at some step": {"oracle": True}}
    for name in found.regions:
        for title, way in ways.items():
            rows = [[_rate(found, s, t, name, **way) for t in found.models] for s in found.models]
            tables.append(
                Table(
                    title=f"{name}, {title}", columns=("Made on", *found.models),
                    rows=tuple((s, *row) for s, row in zip(found.models, rows, strict=True)),
                )
            )  # fmt: skip
            if way:
                continue
            series = [
                Series(name=s, x=found.models, y=tuple(None if r is None else r.value for r in row))
                for s, row in zip(found.models, rows, strict=True)
            ]
            charts.append(
                Chart(
                    kind="heatmap", title=f"Transfer, {name}", series=tuple(series), x_label="shown to", y_label="made on",
                    y_format="percent", description=f"Share of images made on a row's model in {name} that fool a column's.",
                )
            )  # fmt: skip
    text = "Of the images that both models get right, the share that fools the target. 95 % Wilson intervals."
    if found.attack == REGIONAL:
        text = (
            "Of the images that both models get right, the share that fools the target: after the last step, which is what an "
            "attacker without access to the target has, and at some step, which takes an oracle (the paper's figure). 95 % "
            "Wilson intervals."
        )
    return Section(title="Who fools whom", text=text, charts=tuple(charts), tables=tuple(tables))


def _rate(found: Transfer, source: str, target: str, region: str, **how: bool) -> Any:
    return None if source == target else found.rate(source, target, region, **how)


def _regions(found: Transfer) -> Section:
    first, rows = found.regions[0], []
    for name in found.regions[1:]:
        for what, said in (
            ("left", "source errs"),
            ("reached", "source gives the target class"),
            ("transfer", "target errs"),
        ):
            for norm, shown in NORMS.items():
                ratio = found.ratio(name, first, norm=norm, what=what)  # pyright: ignore[reportArgumentType]
                rows.append((name, said, shown, *_ratio(ratio)))
    text = (
        f"A region's norm over {first}'s, at the first step at which each succeeded, paired: on the images (and pairs of "
        "models) on which both did. Below 1 is smaller. Successes at the first step in both are left out, since there the "
        "ratio is that of the areas. Where the two succeed on very different shares, what is common is a selection. 95 % "
        "intervals by bootstrap over images; from 0 to infinity of one image."
    )
    columns = ("Region", "When", "Norm", "Ratio", "Common", "Region succeeds", f"{first} succeeds", "At step 1")
    return Section(
        title="Are norms smaller in a region?",
        text=text,
        tables=(Table(title="Paired norms", columns=columns, rows=tuple(rows)),),
    )


def _ratio(ratio: Ratio) -> tuple[Any, ...]:
    value = ratio.value if ratio.common else None
    return value, ratio.common, ratio.first, ratio.second, ratio.at_once


def _survival(found: Transfer) -> Section:
    charts = []
    for norm, label in (("l2", "L2"), ("linf", "Linf")):
        series = []
        for name in found.regions:
            curve = found.survival(name, norm=norm)  # pyright: ignore[reportArgumentType]
            if curve.sizes:
                series.append(Series(name=name, x=(0.0, *curve.sizes), y=(1.0, *curve.shares), group=name))
        if series:
            charts.append(
                Chart(
                    kind="line", title=f"What withstands, by {label}", series=tuple(series), x_label=label,
                    y_label="share left", y_format="percent",
                    description=f"Share of images and pairs of models that are not fooled up to an {label} norm.",
                )
            )  # fmt: skip
    text = (
        "Kaplan-Meier estimates: an image that never fooled the target is counted as withstanding the norm of its last step, "
        "and not left out, which would favour regions that fail more often."
    )
    return Section(title="What withstands", text=text, charts=tuple(charts))


def _claims(job: Job, found: Transfer) -> list[Section]:
    """Which successes lie inside the ball that the models claim to withstand; none without a claim."""
    claimed = job.config.claimed
    if claimed is None:
        return []
    rows: tuple[Any, ...] = tuple(
        (
            s,
            name,
            found.white_box(s, name),
            found.inside(s, claimed, name),
            found.inside(s, claimed, name, what="reached"),
        )
        for s in found.models
        for name in found.regions
    )
    columns = ("Model", "Region", "Errs", "Of these inside", "Of those that reach the class led to, inside")
    text = (
        "The attack knows no ball. Of the images that it makes its own model err on, the share whose largest change is at most "
        f"{claimed:.4g} where the model first erred: only these are a failure of a defence that claims this Linf radius."
    )
    return [
        Section(
            title="Inside the claimed ball", text=text, tables=(Table(title="Successes", columns=columns, rows=rows),)
        )
    ]


def _sources(found: Transfer) -> Section:
    regional, rows = found.attack == REGIONAL, []
    for row in found.rows:
        for name in found.regions:
            part, more = row["regions"][name], ()
            if regional:
                steps = sorted(
                    k
                    for k, ok in zip(part["reached"]["first"], row["correct"][row["source"]], strict=True)
                    if ok and k > 0
                )
                reached = found.white_box(row["source"], name, "reached")
                more = (reached, steps[len(steps) // 2] if steps else None, part["saturated"])
            errs = found.white_box(row["source"], name)
            rows.append((row["source"], name, part["area"], errs, *more, sum(part["calls"]) + part["checks"]))
    led = ("Gives the target class", "Median step", "Saturated images") if regional else ()
    columns = ("Model", "Region", "Area", "Errs", *led, "Passes")
    text = "The attack on its own model: whether it leaves the true class" + (
        ", and whether it reaches the class it is led to." if regional else "."
    )
    margins = [(name, *_quartiles(values)) for name, values in found.margins.items()]
    return Section(
        title="In the white box", text=text,
        tables=(
            Table(title="By source", columns=columns, rows=tuple(rows)),
            Table(
                title="Margins on clean images", columns=("Model", "Lower quartile", "Median", "Upper quartile"),
                rows=tuple(margins),
                note="The true logit minus the largest other: images of a low margin are fooled by anything.",
            ),
        ),
    )  # fmt: skip


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    a, b, c = (ordered[int(q * (len(ordered) - 1))] for q in (0.25, 0.5, 0.75))
    return a, b, c


def _how(job: Job) -> Section:
    notes = "\n\n".join(dict.fromkeys(f"{m.name}: {note}" for m in job.models for note in m.notes))
    return Section(title="How", text="\n\n".join(text for text in (how(job), job.note, notes) if text))


def _findings(job: Job, found: Transfer) -> tuple[Finding, ...]:
    made = [reported(f, f"{m.name}: ") for m in job.models for f in m.contract.findings]
    few = [(s, t) for s, t in found.pairs if sum(found.valid(s, t)) < FEW]
    if few:
        pairs = ", ".join(f"{s} to {t}" for s, t in few[:4])
        message = f"fewer than {FEW} images that both get right: {pairs}"
        made.append(Finding(level="finding", code="few-images", message=message, remedy="Give more images: --count."))
    return tuple(made)
