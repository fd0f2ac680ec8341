"""What transfer depends on: the target, how sure it is of an image, the steps, and a few images that fool everything."""

from ..core.errors import InputError
from ..stats import Mean
from .over_images import over_images
from .transfer_matrix import Transfer


def by_target(found: Transfer, target: str, region: str | None = None) -> Mean:
    """The mean over sources of the rate at which a target is fooled at the last step; the interval is over images."""
    pairs = [(s, t) for s, t in found.pairs if t == target]
    if not pairs:
        raise InputError("target", f"a target, of {list(found.models)}", repr(target), "Name a model with a source.")
    hits = [[float(hit) for hit in found.hits(s, t, region)] for s, t in pairs]
    return over_images(hits, [found.valid(s, t) for s, t in pairs], found.seed)


def by_margin(found: Transfer, region: str | None = None, *, parts: int = 4) -> tuple[Mean, ...]:
    """The mean over pairs of the transfer rate at the last step, in equal parts of the images by the target's margin.

    Args:
        parts: of each pair's images, from those that the target gets right by a hair to those it is sure of: the clean true
            logit minus the largest other.

    Where transfer lives in the first part alone, it says more of the target's errors than of the perturbation.
    """
    if parts < 1:
        raise InputError("parts", "at least 1", f"{parts}", "4 gives quarters.")
    groups = [_ranked(found.valid(s, t), found.margins[t], parts) for s, t in found.pairs]
    hits = [[float(hit) for hit in found.hits(s, t, region)] for s, t in found.pairs]
    return tuple(
        over_images(hits, [[g == part for g in group] for group in groups], found.seed) for part in range(parts)
    )


def by_step(found: Transfer, step: int, region: str | None = None) -> Mean:
    """The mean over pairs of the share of images that have fooled the target at some iterate up to a step."""
    first = [found.first(s, t, region) for s, t in found.pairs]
    hits = [[float(k is not None and k <= step) for k in row] for row in first]
    return over_images(hits, [found.valid(s, t) for s, t in found.pairs], found.seed)


def carriers(found: Transfer, region: str | None = None) -> tuple[int, int]:
    """The fewest images that make half of all transfers at the last step, and how many make any."""
    counts = [sum(column) for column in zip(*(found.hits(s, t, region) for s, t in found.pairs), strict=True)]
    most, total, taken, k = sorted(counts, reverse=True), sum(counts), 0, 0
    while 2 * taken < total:
        taken, k = taken + most[k], k + 1
    return k, sum(count > 0 for count in counts)


def _ranked(valid: list[bool], margins: list[float], parts: int) -> list[int]:
    """The part of each image by its margin among the valid ones; -1 of the others."""
    rows = sorted((i for i, ok in enumerate(valid) if ok), key=lambda i: margins[i])
    part = [-1] * len(valid)
    for rank, i in enumerate(rows):
        part[i] = rank * parts // len(rows)
    return part
