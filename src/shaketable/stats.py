"""Rates and means with their intervals: a number without its count and its spread is not reported.

Every rate is a `Rate` (hits out of n, with a 95 % Wilson interval); every mean over draws, seeds or images is a `Mean`
(with a 95 % bootstrap or Student interval); a comparison on the same images or seeds is a `Mean` of paired differences.
SciPy's special functions are imported when first needed; `scipy.stats`, which holds the same laws, takes a second to import.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .core.errors import InputError

Z95 = 1.959963984540054  # the normal distribution's .975 quantile


@dataclass(frozen=True)
class Rate:
    """Hits out of n, with the 95 % Wilson score interval (Wilson 1927).

    Args:
        hits: how many of the n; 0 <= hits <= n.
        n: how many were counted; may be 0, then the value is NaN and the interval is (0, 1).

    Checked by tests/test_stats.py against `scipy.stats.binomtest(...).proportion_ci("wilson")`.
    """

    hits: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.n:
            raise InputError("hits", "0 <= hits <= n", f"{self.hits} of {self.n}", "Count each item once.")

    @property
    def value(self) -> float:
        """hits / n; NaN if n is 0."""
        return self.hits / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval (low, high), within [0, 1]."""
        if not self.n:
            return 0.0, 1.0
        p, z2 = self.hits / self.n, Z95 * Z95
        middle = (p + z2 / (2 * self.n)) / (1 + z2 / self.n)
        half = Z95 / (1 + z2 / self.n) * math.sqrt(p * (1 - p) / self.n + z2 / (4 * self.n * self.n))
        low = 0.0 if self.hits == 0 else max(0.0, middle - half)
        return low, 1.0 if self.hits == self.n else min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}] ({self.hits}/{self.n})"


@dataclass(frozen=True)
class Mean:
    """A mean of n values with its 95 % interval and the law by which the interval was made.

    Args:
        value: the mean.
        low, high: the interval.
        n: how many values (draws, seeds, images) it is over.
        deviation: their standard deviation (n - 1), NaN for one value.
        law: "student" or "bootstrap".
    """

    value: float
    low: float
    high: float
    n: int
    deviation: float
    law: str = "student"

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.n})"


def mean(values: Sequence[float]) -> Mean:
    """The mean with its 95 % Student interval.

    Args:
        values: one or more numbers that were drawn independently (seeds, draws, images). One value has the interval
            (-inf, inf): its spread is unknown.

    Checked by tests/test_stats.py against SciPy.
    """
    n = len(values)
    if n == 0:
        raise InputError("values", "at least one number", "none", "Measure something first.")
    centre = math.fsum(values) / n
    if n == 1:
        return Mean(centre, -math.inf, math.inf, 1, math.nan)
    deviation = math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (n - 1))
    half = student_quantile(n - 1) * deviation / math.sqrt(n)
    return Mean(centre, centre - half, centre + half, n, deviation)


def paired(a: Sequence[float], b: Sequence[float]) -> Mean:
    """The mean of a - b over pairs that share their image, seed or draw, with its 95 % Student interval.

    Args:
        a, b: equally many numbers; a[i] and b[i] belong together.

    Checked by tests/test_stats.py.
    """
    if len(a) != len(b):
        raise InputError("b", f"as many values as in a, {len(a)}", f"{len(b)}", "Pair them first.")
    return mean([x - y for x, y in zip(a, b, strict=True)])


def difference(a: Sequence[float], b: Sequence[float]) -> Mean:
    """The mean of a minus the mean of b, drawn independently, with its 95 % Welch interval.

    Args:
        a, b: two or more numbers each, of any lengths; the `n` of the result counts both.

    Checked by tests/test_stats.py against SciPy's Welch test.
    """
    first, second = mean(a), mean(b)
    if min(first.n, second.n) < 2:
        raise InputError("a, b", "two or more values each", f"{first.n} and {second.n}", "Measure more.")
    u, v = first.deviation**2 / first.n, second.deviation**2 / second.n
    centre, variance = first.value - second.value, u + v
    freedom = variance**2 / (u**2 / (first.n - 1) + v**2 / (second.n - 1)) if variance else first.n + second.n - 2
    half = student_quantile(freedom) * math.sqrt(variance)
    n = first.n + second.n
    return Mean(centre, centre - half, centre + half, n, math.sqrt(variance * n))


def bootstrap(values: Sequence[float], *, seed: int, resamples: int = 2000) -> Mean:
    """The mean with its 95 % percentile bootstrap interval (Efron), for skewed values such as per-image losses.

    Args:
        values: one or more numbers. One value has the interval (-inf, inf): its spread is unknown.
        seed: of the resampling.
        resamples: 2000, enough for two digits of the interval.

    Checked by tests/test_stats.py (coverage of a known mean).
    """
    import numpy as np

    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise InputError("values", "at least one number", "none", "Measure something first.")
    if resamples < 1:
        raise InputError("resamples", "a whole number >= 1", f"{resamples}", "2000 is usual.")
    if data.size == 1:
        return Mean(float(data[0]), -math.inf, math.inf, 1, math.nan, "bootstrap")
    rng = np.random.default_rng(seed)
    block = max(1, 2_000_000 // data.size)
    means = np.concatenate(
        [
            data[rng.integers(0, data.size, (min(block, resamples - k), data.size))].mean(1)
            for k in range(0, resamples, block)
        ]
    )
    low, high = (float(q) for q in np.quantile(means, [0.025, 0.975]))
    return Mean(float(data.mean()), low, high, int(data.size), float(data.std(ddof=1)), "bootstrap")


def student_quantile(freedom: float) -> float:
    """The .975 quantile of Student's law: a 95 % interval is so many standard errors to each side.

    Checked by tests/test_stats.py against `scipy.stats.t`.
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def student_p(t: float, freedom: float) -> float:
    """The two-sided p-value of Student's test.

    Checked by tests/test_stats.py against `scipy.stats.t`.
    """
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(t)))


def binomial_p(hits: int, n: int, p: float) -> float:
    """The p-value of the exact binomial test that the rate is above p: how probable `hits` or more of n are.

    Checked by tests/test_stats.py against `scipy.stats.binomtest(..., alternative="greater")`.
    """
    from scipy.special import betainc

    return float(betainc(hits, n - hits + 1, p)) if hits else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjustment (1979): p-values that hold together, in the given order.

    Checked by tests/jobs/test_study_summary.py by hand-computed values.
    """
    order = sorted(range(len(p)), key=lambda k: p[k])
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, k in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[k]))
        adjusted[k] = highest
    return adjusted
