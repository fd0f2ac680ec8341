"""The report of a labelling: how many images of each class, how confident the labels are, and how often they are right."""

from typing import Any

import torch
from torch import Tensor

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
    number_metric,
    rate_metric,
    verdict_of,
)
from ..stats import Rate, mean
from .command import command_of
from .findings import reported
from .ground import config_of
from .pseudolabel import FILE, Labelled, Labelling

BINS = 10  # of the confidences
QUANTILES = {"Confidence, 5 % quantile": 0.05, "Confidence, median": 0.5, "Confidence, 95 % quantile": 0.95}


def report(labelling: Labelling, labelled: Labelled) -> Report:
    """Put everything into a report; here alone the labels are compared with the data's own, where there are some.

    Checked by tests/end_to_end/test_pseudolabel.py.
    """
    config, loaded, data = labelling.config, labelling.match.loaded, labelling.chosen.data
    findings = _findings(labelling, labelled)
    right = _right(labelling, labelled)
    kept = Rate(int(labelled.kept.sum()), len(labelled.kept))
    chosen = labelled.confidence[labelled.kept]
    headline = [
        rate_metric("Images kept", kept, note=f"their confidence is at least {config.min_confidence:g}"),
        mean_metric("Mean confidence", mean(chosen.tolist()), note="of the images kept"),
    ]
    if right is not None:
        headline.insert(0, rate_metric("Accuracy of the pseudo-labels", _rate(right, labelled.kept)))
    return Report(
        verb="pseudolabel",
        title=f"Labels of {loaded.name} for {data.name}",
        summary=_sentences(labelling, kept, right, labelled),
        verdict=verdict_of(findings),
        headline=tuple(headline),
        findings=findings,
        sections=(
            Section(
                title="The pseudo-labels",
                metrics=_metrics(labelled, right),
                charts=(_histogram(labelled),),
                tables=(_by_class(labelling, labelled, right), _by_confidence(labelled, right)),
            ),
            Section(title="The model", text="\n\n".join(loaded.notes) or "It was loaded as it is."),
        ),
        command=command_of("pseudolabel", config),
        config=config_of(config),
        environment=environment(device=str(labelling.ground.device)),
        seeds={"seed": config.seed},
        hashes=Hashes(
            models={loaded.name: loaded.sha256} if loaded.sha256 else {},
            data={data.name: data.fingerprint, FILE: labelled.sha256},
        ),
        volatile=elapsed_since(labelling.ground.started, extra={"file": str(config.out / FILE)}),
    )


def _right(labelling: Labelling, labelled: Labelled) -> Tensor | None:
    """Which labels are the data's own; None where those are of other classes, or there are none."""
    return labelled.labels == labelling.chosen.data.labels if labelling.match.true else None


def _rate(right: Tensor, among: Tensor) -> Rate:
    return Rate(int((right & among).sum()), int(among.sum()))


def _sentences(labelling: Labelling, kept: Rate, right: Tensor | None, labelled: Labelled) -> tuple[str, ...]:
    config, data = labelling.config, labelling.chosen.data
    first = f"{labelling.match.loaded.name} labelled {kept.n} images of {data.name}"
    if config.min_confidence:
        lines = [f"{first}; {kept.hits} of them, with a confidence of {config.min_confidence:g} or more, are kept."]
    else:
        lines = [f"{first}; all of them are kept."]
    if right is not None:
        rate = _rate(right, labelled.kept)
        lines.append(
            f"{100 * rate.value:.1f} % of their labels are the data's own, which were not used and are not in the file."
        )
    else:
        lines.append("How many of their labels are right is not known: the data has no labels of these classes.")
    lines.append(f"They are in {FILE}, beside this report, for `shaketable train --unlabelled`.")
    return tuple(lines)


def _metrics(labelled: Labelled, right: Tensor | None) -> tuple[Metric, ...]:
    chosen = labelled.confidence[labelled.kept].sort().values
    metrics = [
        number_metric(name, float(chosen[min(int(share * len(chosen)), len(chosen) - 1)]))
        for name, share in QUANTILES.items()
    ]
    if right is not None and not bool(labelled.kept.all()):
        everything = torch.ones_like(labelled.kept)
        metrics.append(rate_metric("Accuracy, with the images left out", _rate(right, everything)))
        metrics.append(rate_metric("Accuracy, of the images left out", _rate(right, ~labelled.kept)))
    return tuple(metrics)


def _by_class(labelling: Labelling, labelled: Labelled, right: Tensor | None) -> Table:
    rows: list[tuple[Any, ...]] = []
    for index, name in enumerate(labelling.match.classes):
        mine = labelled.kept & (labelled.labels == index)
        count = int(mine.sum())
        confidence = float(labelled.confidence[mine].mean()) if count else None
        accuracy = (_rate(right, mine) if right is not None and count else None,) if right is not None else ()
        rows.append((name, count, confidence, *accuracy))
    columns = ("Class", "Images", "Mean confidence", *(("Right",) if right is not None else ()))
    note = "Of the images that are kept, by the label that they were given."
    return Table(title="By class", columns=columns, rows=tuple(rows), note=note)


def _bins(labelled: Labelled) -> list[tuple[str, Tensor]]:
    """The tenths of the confidence, from the lowest that has images on, and the images in each; 1 is in the last."""
    place = (labelled.confidence * BINS).floor().long().clamp_(max=BINS - 1)
    first = int(place.min())
    return [(f"{k / BINS:.1f} to {(k + 1) / BINS:.1f}", place == k) for k in range(first, BINS)]


def _by_confidence(labelled: Labelled, right: Tensor | None) -> Table:
    rows: list[tuple[Any, ...]] = []
    for name, inside in _bins(labelled):
        accuracy = (_rate(right, inside) if bool(inside.any()) else None,) if right is not None else ()
        rows.append((name, int(inside.sum()), int((inside & labelled.kept).sum()), *accuracy))
    columns = ("Confidence", "Images", "Kept", *(("Right",) if right is not None else ()))
    return Table(title="By confidence", columns=columns, rows=tuple(rows), note="Of all images that were labelled.")


def _histogram(labelled: Labelled) -> Chart:
    bins = _bins(labelled)
    counts = [int(inside.sum()) for _, inside in bins]
    series = Series(name="images", x=tuple(name for name, _ in bins), y=tuple(float(count) for count in counts))
    most = max(range(len(counts)), key=counts.__getitem__)
    peak = f"most, {counts[most]}, are from {bins[most][0]}"
    return Chart(
        kind="bar", title="How confident the labels are", series=(series,), x_label="confidence", y_label="images",
        description=f"A histogram of the confidence of all {sum(counts)} labels; {peak}.",
    )  # fmt: skip


def _findings(labelling: Labelling, labelled: Labelled) -> tuple[Finding, ...]:
    found = labelling.match
    made = list(labelling.chosen.findings)
    made += [
        reported(f)  # as of an evaluation
        for f in found.contract.findings
    ]
    counts = torch.bincount(labelled.labels[labelled.kept], minlength=len(found.classes))
    missing = [name for name, count in zip(found.classes, counts.tolist(), strict=True) if not count]
    if len(found.classes) - len(missing) < 2:
        message = f"Every label is {found.classes[int(counts.argmax())]!r}: there is nothing to learn from these."
        remedy = "Look whether the model and the images belong together, and at --min-confidence."
        made.append(Finding(level="finding", code="one-class", message=message, remedy=remedy))
    elif missing:
        message = f"No image was given {len(missing)} of the {len(found.classes)} classes: {', '.join(missing[:10])}."
        remedy = "Label more images, or lower --min-confidence."
        made.append(Finding(level="warning", code="missing-classes", message=message, remedy=remedy))
    return tuple(made)
