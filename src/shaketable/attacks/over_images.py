"""Means over pairs of models and over images, with intervals that draw each image with all its pairs."""

import math
from typing import Any

from ..stats import Mean, Rate


def over_images(values: list[list[float]], kept: list[list[bool]], seed: int, *, pooled: bool = False) -> Mean:
    """The mean over pairs of their means over images (or over all alike), resampling images with all their pairs.

    Args:
        values: of each pair an entry for each image; outcomes, 0 or 1, unless `pooled`.
        kept: which of them count.
        seed: of the resampling.
        pooled: all entries that count weigh alike.

    Where all outcomes are 0, or all are 1, the resamples are too: the interval is then Wilson's, of as many draws as there
    are images that count, since the pairs of an image are not independent. Where outcomes differ and the resamples do not,
    or one image counts, the spread is unknown and the interval is (-inf, inf).

    Checked by tests/attacks/test_transfer.py.
    """
    import numpy as np

    value, weight = np.asarray(values, dtype=float), np.asarray(kept, dtype=float)
    value = value * weight
    images = int((weight.sum(0) > 0).sum()) if weight.size else 0

    def of(counts: Any) -> Any:
        sums, sizes = counts @ value.T, counts @ weight.T
        if pooled:
            return sums.sum(-1) / sizes.sum(-1)
        return np.nanmean(np.where(sizes > 0, sums / np.where(sizes > 0, sizes, 1), np.nan), -1)

    if images == 0:
        return Mean(math.nan, math.nan, math.nan, 0, math.nan, "bootstrap")
    centre = float(of(np.ones(value.shape[1])))
    if not pooled and centre in (0.0, 1.0):
        low, high = Rate(images if centre else 0, images).interval
        return Mean(centre, low, high, images, 0.0 if images > 1 else math.nan, "bootstrap")
    unknown = Mean(centre, -math.inf, math.inf, images, math.nan, "bootstrap")
    if images == 1:
        return unknown
    rng = np.random.default_rng(seed)
    n = value.shape[1]
    counts = rng.multinomial(n, np.full(n, 1 / n), 2000).astype(float)
    drawn = of(counts[(counts @ weight.T).sum(1) > 0])
    if not pooled and float(np.ptp(drawn)) <= 1e-12:
        return unknown
    low, high = (float(q) for q in np.quantile(drawn, [0.025, 0.975]))
    return Mean(centre, low, high, images, float(np.std(drawn, ddof=1)) * math.sqrt(images), "bootstrap")
