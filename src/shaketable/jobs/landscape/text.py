"""What the report of `shaketable landscape` says in words: sentences, labels of axes, how it was measured, findings."""

import math
from collections.abc import Iterator, Sequence

from ...report import Finding
from ...stats import Mean, mean
from ..choices import parse
from ..findings import reported
from .plan import Job
from .run import Drawn, value_of

SILENT = 0.05  # the share of images without a gradient from which on it is a finding
OF = {"layer": "each layer's norm", "filter": "each filter's norm", "model": "the norm of all weights"}
"""What a radius is relative to."""
_KINDS = {"random": "random", "adversarial": "adversarial", "hessian": "Hessian"}


def labels_of(job: Job) -> tuple[str, ...]:
    """The axes' labels."""
    if job.config.trajectory:
        return tuple(f"direction {k + 1}" for k in range(job.dims))
    line, kind = job.pictures[0].lines[0], kind_of(job)
    if job.dims > 1:
        return tuple(f"{kind} direction {k + 1}" for k in range(job.dims))
    return (f"{kind} step; 1 is {line.radius:g} of {OF[line.normalise]}",)


def kind_of(job: Job) -> str:
    """Random, adversarial, Hessian, or the name of the user's own."""
    name = parse(job.pictures[0].lines[0].direction, "direction")[0]
    return _KINDS.get(name, name)


def rises(one: Drawn) -> list[float]:
    """Of each line: how much the robust loss rises to the border of the grid, on average over it."""
    at_w = value_of(one.at, "robust_loss")
    if at_w is None:
        return []
    ends = [{axis[0], axis[-1]} for axis in one.grids]
    found: list[float] = []
    for line in one.lines:
        known = [
            point.robust_loss
            for point in line
            if point is not None and any(c in end for c, end in zip(point.coordinates, ends, strict=True))
        ]
        if known:
            found.append(math.fsum(known) / len(known) - at_w)
    return found


def rise_of(one: Drawn) -> Mean | float | None:
    """The mean of the lines' rises with its interval; of adversarial ones the largest; of one line the number."""
    found = rises(one)
    if not found:
        return None
    if one.combine == "max":
        return max(found)
    return mean(found) if len(found) > 1 else found[0]


def sentences(job: Job, drawn: Sequence[Drawn]) -> tuple[str, ...]:
    """What a stranger should take away."""
    said = [_of_run(one) if job.config.trajectory else _of_model(job, one) for one in drawn]
    images = job.pictures[0].images
    attack = f"{job.config.attack}, {job.config.norm}, eps {job.config.eps:.4g}"
    last = f"The {len(images.data)} {images.part} images were attacked anew at every point ({attack})."
    return (*[line for line in said if line][:5], last)


def _of_model(job: Job, one: Drawn) -> str | None:
    rise, at_w = rise_of(one), value_of(one.at, "robust_loss")
    if rise is None or at_w is None:
        return None
    line, count, kind = one.picture.lines[0], len(one.lines), kind_of(job)
    number = rise.value if isinstance(rise, Mean) else rise
    ends = f" [{rise.low:.2f}, {rise.high:.2f}]" if isinstance(rise, Mean) else ""
    where = {
        1: f"{count} {kind} direction{'s' if count > 1 else ''}",
        2: f"two {kind} directions",
        3: f"three {kind} directions",
    }
    change = "raises" if number >= 0 else "changes"
    worst = ", at worst," if one.combine == "max" and count > 1 else ""
    by = f"along {where[job.dims]} by {line.radius:g} of {OF[line.normalise]}{worst}"
    return f"{one.name}: moving the weights {by} {change} the robust loss by {number:.2f}{ends} from {at_w:.2f}."


def _of_run(one: Drawn) -> str | None:
    if not one.axes:
        return None
    explained = one.axes[0]["explained"]
    shares = " and ".join(f"{100 * share:.0f} %" for share in explained)
    losses = [value_of(point, "robust_loss") for point in one.path]
    went = "" if losses[0] is None or losses[-1] is None else (
        f" The robust loss went from {losses[0]:.2f} at the first to {losses[-1]:.2f} at the last of them."
    )  # fmt: skip
    what = "direction holds" if len(explained) == 1 else f"{len(explained)} directions hold"
    return f"The first {what} {shares} of how the {len(one.path)} checkpoints vary.{went}"


def how(job: Job) -> str:
    """How it was measured."""
    config, line = job.config, job.pictures[0].lines[0]
    if config.trajectory:
        first = (
            "The directions are the principal components of all checkpoints' weights, about their mean; the origin is the "
            "last checkpoint (Li et al. 2018). A point's running statistics are the same mixture of the checkpoints' as its "
            "weights, kept within what they were. The path shows each checkpoint's place in the plane; the losses along it "
            "are the checkpoints' own. Distances along the axes are those of the weights, all of them as one vector."
        )
    else:
        first = {
            "random": "Directions are Gaussian, the same for all models of one architecture and seed.",
            "adversarial": "Directions are where a joint ascent on weights and images ends, from random starts: the worst "
            "case's search (Stutz, Hein and Schiele 2021).",
            "hessian": "Directions are the top eigenvectors of the Hessian of the loss by the weight matrices.",
        }.get(parse(line.direction, "direction")[0], f"Directions are made by {line.direction}.")
        first += f" A coordinate of 1 is {line.radius:g} of {OF[line.normalise]}. Normalisation layers do not move."
    lines = [
        first,
        f"At every point the images are attacked anew, by {config.attack} ({config.norm}, eps {config.eps:.4g}) with the same "
        "random starts, so that what differs between two points or two models is the loss. Adversarial images kept from "
        "the weights themselves would make other points look better than they are.",
        "Pictures depend on how directions are scaled: layer by layer or filter by filter they are equally long, but filter "
        "by filter small filters move less, which looks flatter. Compare pictures of one scale alone.",
    ]
    notes = dict.fromkeys(p.images.note for p in job.pictures if p.images.note)
    return "\n\n".join([*lines, *(f"Images: {note}." for note in notes)])


def findings(job: Job, drawn: Sequence[Drawn]) -> tuple[Finding, ...]:
    """What the reader must know."""
    several, made = len(drawn) > 1, list[Finding]()
    for one in drawn:
        name = f"{one.name}: " if several else ""
        for f in one.picture.subject.contract.findings:
            made.append(reported(f, name))
        made += _of_drawn(one)
    return tuple(made)


def _of_drawn(one: Drawn) -> Iterator[Finding]:
    points = [point for line in one.lines for point in line if point is not None]
    if one.at is not None and one.at.silent >= SILENT:
        share = f"{100 * one.at.silent:.0f} % of the images, at the weights themselves"
        message = f"{one.name}: the attack saw no gradient for {share}."
        remedy = "Look for a saturated or quantised output; the landscape of a masked model says nothing."
        yield Finding(level="finding", code="silent-attack", message=message, remedy=remedy)
    holes = sum(not math.isfinite(point.robust_loss) for point in points)
    if holes:
        message = f"{one.name}: at {holes} of {len(points)} points the loss is not finite; they are left out."
        yield Finding(level="info", code="not-finite", message=message, remedy="Draw it with a smaller --radius.")
    if one.errors:
        message = f"{one.name}: {len(one.errors)} points or directions were not measured: {one.errors[0]}"
        yield Finding(level="finding", code="not-measured", message=message, remedy="Run it again once it is mended.")
