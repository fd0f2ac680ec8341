"""What the reader of `shaketable flatness` must know: constant predictors, blind attacks, weak searches, lost cells."""

from collections.abc import Iterator, Sequence

from ...report import Finding
from ..findings import reported
from .run import Job, Measured
from .text import name_of

SILENT = 0.05  # the share of images without a gradient from which on it is a finding


def findings(job: Job, measured: Sequence[Measured]) -> tuple[Finding, ...]:
    """What the reader must know."""
    several, made = len(job.subjects) > 1, list[Finding]()
    for subject in job.subjects:
        name = f"{subject.source.name}: " if several else ""
        for f in subject.contract.findings:
            made.append(reported(f, name))
        made += _of_model(subject.source.name, [one for one in measured if one.measurement.subject is subject])
    unknown = [one for one in measured if "is not known" in one.measurement.images.note]
    if unknown:
        message = "Which images the model was trained on is not known; the train part of the data was measured."
        remedy = "Give the run's folder, with its config.json."
        made.append(Finding(level="warning", code="training-images-unknown", message=message, remedy=remedy))
    if aside := [one.outcome.aside for one in measured if one.outcome.aside]:
        message = f"{len(aside)} files of finished measurements were damaged, and were measured again: {', '.join(aside[:3])}."
        made.append(Finding(level="warning", code="damaged-cell", message=message, remedy="Look at the disk."))
    return tuple(made)


def _of_model(name: str, measured: Sequence[Measured]) -> Iterator[Finding]:
    known = [one for one in measured if one.found is not None]
    constant = [one for one in known if one.found is not None and one.found.constant]
    if constant:
        message = f"{name} predicts the same whatever it sees, so that it is perfectly flat: it gets no rank."
        yield Finding(
            level="finding", code="constant-predictor", message=message, remedy="Measure a model that was trained."
        )
    silent = max((one.found.facts.get("silent", 0.0) for one in known if one.found is not None), default=0.0)
    if silent >= SILENT and not constant:
        message = (
            f"{name}: the attack saw no gradient for {100 * silent:.0f} % of the images, whose loss is the clean one."
        )
        remedy = "Look for a saturated or quantised output; the flatness of a masked model says nothing."
        yield Finding(level="finding", code="silent-attack", message=message, remedy=remedy)
    weak = [
        name_of(one)
        for one in known
        if one.found is not None and "worst" in one.found.name and one.found.value.high < 0
    ]
    if weak:
        message = f"{name}: the search found nothing worse than the weights as they are ({weak[0]})."
        remedy = "Give it more restarts or steps, or the reference fewer: --preset equal, worst(restarts=20)."
        yield Finding(level="warning", code="weak-search", message=message, remedy=remedy)
    for one in measured:
        if one.outcome.error:
            what = f"{one.measurement.chosen.text}, {one.measurement.images.part} images, of {name}"
            message = f"{what} was not measured: {one.outcome.error}"
            yield Finding(
                level="finding", code="not-measured", message=message, remedy="Run it again once it is mended."
            )
