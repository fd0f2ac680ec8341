"""A transfer report in words: what was found, and how."""

import math

from ..attacks.transfer_matrix import Transfer
from ..attacks.transfer_text import percent
from ..stats import Mean
from .transfer import Job
from .transfer_config import REGIONAL


def summary(job: Job, found: Transfer) -> tuple[str, ...]:
    """The report's first sentences."""
    first, others = found.regions[0], found.regions[1:]
    regional, pairs = found.attack == REGIONAL, f"mean of {len(found.pairs)} pairs"
    fixed = _percent(found.mean(first))
    if regional:
        lines = [
            f"Of {len(job.data)} images, perturbed in {first} on one model, {fixed} fool another after {job.config.steps} "
            f"steps ({pairs}), {_percent(found.mean(first, aimed=True))} into the class that the first was led to; "
            f"{_percent(found.mean(first, oracle=True))} do so at some step, which only an attacker who may ask the target can "
            "choose."
        ]
    else:
        ball = f"{job.config.norm} ball of {job.config.eps:.4g}"
        lines = [
            f"Of {len(job.data)} images, perturbed by {found.attack} in a {ball} in {first} on one model, {fixed} fool another "
            f"({pairs})."
        ]
    for name in others:
        ratio = found.ratio(name, first, what="left") if regional else None
        norm = "" if ratio is None else "; no common success" if not ratio.common else (
            f"; L2 x{_times(ratio.value)} of {first}'s on the source"
        )  # fmt: skip
        lines.append(f"{name}: {_percent(found.mean(name))}{norm}.")
    lines.append(
        "Intervals are 95 %, by bootstrap over images, each with all its pairs; of 0 and 100 %, where resamples do not vary, "
        "they are Wilson intervals of the images."
    )
    return tuple(lines)


def how(job: Job) -> str:
    """The attack in a paragraph."""
    config = job.config
    if config.attack == REGIONAL:
        return (
            f"{config.steps} steps of {config.step:.4g} along the sign of the gradient towards a class drawn for each image, "
            f"the same for all regions and sources ({config.loss} loss), within the region and [0, 1], without a ball (Ozbulak "
            "et al. 2020). Only images that source and target both get right count. One trajectory a source serves all targets."
        )
    return (
        f"{config.attack} on every image that the source gets right, to its end, in a {config.norm} ball of "
        f"{config.eps:.4g} whose mask is the region, within [0, 1]. Only images that source and target both get right count."
    )


def _percent(value: Mean) -> str:
    if not value.n:
        return "an unknown share (no image that both get right)"
    return percent(value)


def _times(value: Mean) -> str:
    if not math.isfinite(value.high):
        return f"{value.value:.2f} (interval unknown)"
    return f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"
