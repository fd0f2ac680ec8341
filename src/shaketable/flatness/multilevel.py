"""A mean to a stated standard error, from few dear draws and many cheap ones: pilot, plan, and the plan carried out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core import InputError
from ..stats import Mean, student_quantile

FOLDS = 4
"""Each fold's draws are planned from the pilots of the others."""


@dataclass(frozen=True)
class Plan:
    """How many draws are made at each level, decided by the pilot before anything else is drawn.

    Args:
        pilot: draws of the pilot, all of them at every level, and all of them part of the estimate.
        draws: for each fold, how many of its draws are made at each level, cheapest first; the pilot's are counted.
        passes: forward and backward passes, together, of one draw at each level.
        standard_error: the estimate's, over repeats of pilot and plan.
        limited: whether more would have been needed than the passes that were allowed.
    """

    pilot: int
    draws: tuple[tuple[int, ...], ...]
    passes: tuple[int, ...]
    standard_error: float
    limited: bool

    @property
    def totals(self) -> tuple[int, ...]:
        """Draws at each level, over all folds."""
        return tuple(sum(level) for level in zip(*self.draws, strict=True))

    @property
    def cost(self) -> int:
        """Forward and backward passes of all draws, the pilot's included."""
        return sum(count * passes for count, passes in zip(self.totals, self.passes, strict=True))


@dataclass(frozen=True)
class Sampled:
    """A mean with its 95 % Student interval, the standard error that its draws show, and the plan that it is from."""

    value: Mean
    standard_error: float
    plan: Plan


def sample(
    draw: Callable[[int, int], Sequence[float]],
    passes: Sequence[int],
    *,
    standard_error: float,
    pilot: int,
    most: int,
    progress: Callable[[int, int], None] | None = None,
) -> Sampled:
    """Estimate E[f_L], of which f_0, ..., f_L-1 are cheaper approximations, by E[f_0] + sum_l E[f_l - f_l-1].

    That is multilevel Monte Carlo (Giles 2008) with nested draws: every draw has its f_0, of some f_1 is found as well, of
    fewer f_2. With one cheap level it is a control variate of coefficient 1, whose mean is sampled too.

    Args:
        draw: (k, depth) -> f_0, f_1 - f_0, ..., f_depth - f_depth-1 of the k-th draw; draws are independent.
        passes: what f_l costs in addition, for each level.
        standard_error: what is asked for.
        pilot: draws at every level from which the plan is made; a multiple of 4, 8 or more.
        most: passes at most, a fourth of them for each fold. Where they do not suffice, as much as they allow is planned, and
            the plan says so.
        progress: called with (draws done, draws planned).

    The number of draws at each level minimises the passes for the variance that the pilot shows: N_l goes with
    sqrt(variance_l / passes_l), levels being joined where that would rise (the pilot's number is the least). A variance
    from nu + 1 draws is taken nu / (nu - 2) times, so that the standard error asked for is that over repeats (Stein 1945).

    Unbiased: a number of draws that depends on the draws themselves biases their mean (by about skewness * standard error
    / sqrt(N)). So the draws are dealt to 4 folds; how many a fold makes depends on the pilots of the other three
    alone, and the folds' means count alike. Nothing of the pilot is thrown away.

    Raises:
        InputError: a standard error that is not above 0, another pilot, or `most` below the pilot's passes.

    Checked by tests/flatness/test_multilevel.py: hundreds of repeats on skewed draws of known mean, coverage, the plan.
    """
    require_affordable(standard_error, pilot, most, passes)
    tell = progress or (lambda _done, _of: None)
    top = len(passes) - 1
    folds: list[list[Any]] = [[] for _ in range(FOLDS)]
    for k in range(pilot):
        folds[k % FOLDS].append(np.asarray(draw(k, top), dtype=np.float64))
        tell(k + 1, pilot)
    plan = _plan([np.stack(rows) for rows in folds], passes, standard_error, pilot, most)
    done, planned = pilot, plan.totals[0]
    for fold, counts in enumerate(plan.draws):
        for index in range(pilot // FOLDS, counts[0]):
            depth = max(level for level, count in enumerate(counts) if index < count)
            found = np.full(top + 1, np.nan)
            found[: depth + 1] = draw(index * FOLDS + fold, depth)
            folds[fold].append(found)
            done += 1
            tell(done, planned)
    return _mean([np.stack(rows) for rows in folds], plan)


def _plan(pilots: list[Any], passes: Sequence[int], standard_error: float, pilot: int, most: int) -> Plan:
    draws, variance, limited = [], 0.0, False
    for fold in range(FOLDS):
        others = np.concatenate([rows for other, rows in enumerate(pilots) if other != fold])
        freedom = len(others) - 1
        covariance = np.atleast_2d(np.cov(others, rowvar=False)) * freedom / (freedom - 2)
        shares, target = _shares(np.diag(covariance), passes), FOLDS * standard_error**2
        need = _Need(covariance, np.asarray(passes), shares, target, pilot // FOLDS, most / FOLDS)
        counts, short = need.draws()
        draws.append(tuple(int(count) for count in counts))
        variance += _variance(covariance, counts) / FOLDS**2
        limited = limited or short
    return Plan(pilot, tuple(draws), tuple(int(p) for p in passes), math.sqrt(variance), limited)


@dataclass(frozen=True)
class _Need:
    """What a fold is planned for: the variance it is to reach, and the passes that it may take."""

    covariance: Any
    passes: Any
    shares: Any
    target: float
    least: int
    budget: float

    def draws(self) -> tuple[Any, bool]:
        """Draws at each level, and whether the budget stood in the way."""
        if self.enough(0.0):
            return self.counts(0.0), False
        scale = 1.0
        while not self.enough(scale) and not self.dear(scale):
            scale *= 2
        if self.enough(scale):
            scale = _bisect(self.enough, scale)[1]
        short = self.dear(scale)
        return self.counts(_bisect(self.dear, scale)[0] if short else scale), short

    def counts(self, scale: float) -> Any:
        """Draws at each level, in proportion."""
        return np.maximum(self.least, np.ceil(scale * self.shares)).astype(np.int64)

    def enough(self, scale: float) -> bool:
        """Whether so many reach the variance."""
        return _variance(self.covariance, self.counts(scale)) <= self.target

    def dear(self, scale: float) -> bool:
        """Whether so many take more passes than there are."""
        return float(self.counts(scale) @ self.passes) > self.budget


def _bisect(reached: Callable[[float], bool], high: float) -> tuple[float, float]:
    """Numbers between 0 and one where a condition holds, next to each other, before and after it begins to hold."""
    low = 0.0
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return low, high


def _shares(variances: Any, passes: Sequence[int]) -> Any:
    """sqrt(variance / passes) of each level, never rising: neighbours that would are taken as one (isotonic regression)."""
    blocks: list[list[float]] = []
    for variance, cost in zip(variances, passes, strict=True):
        blocks.append([float(variance), float(cost), 1])
        while len(blocks) > 1 and blocks[-1][0] * blocks[-2][1] >= blocks[-2][0] * blocks[-1][1]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    return np.concatenate([np.full(int(n), math.sqrt(variance / cost)) for variance, cost, n in blocks])


def _variance(covariance: Any, counts: Any) -> float:
    """Of the sum of the levels' means, when the draws of each level are among those of the one before."""
    return max(0.0, float((covariance / np.maximum.outer(counts, counts)).sum()))


def _mean(folds: list[Any], plan: Plan) -> Sampled:
    """The folds' means, averaged; the variance of what each draw adds, from all draws that go as deep or deeper."""
    counts = np.array(plan.draws)
    levels = range(counts.shape[1])
    parts = [rows[:n, level].mean() for rows, row in zip(folds, counts, strict=True) for level, n in enumerate(row)]
    centre = math.fsum(parts) / FOLDS
    variance = spread = 0.0
    for depth in levels:
        rows = np.concatenate([fold[:n, : depth + 1] for fold, n in zip(folds, counts[:, depth], strict=True)])
        covariance = np.atleast_2d(np.cov(rows, rowvar=False))
        deeper = counts[:, depth + 1] if depth + 1 < counts.shape[1] else 0
        weights = 1.0 / counts[:, : depth + 1]
        each = np.einsum("fi,ij,fj->f", weights, covariance, weights).clip(min=0.0)
        added = float((counts[:, depth] - deeper) @ each) / FOLDS**2
        variance += added
        spread += added**2 / (len(rows) - 1)
    n = plan.totals[0]
    freedom = variance**2 / spread if spread else n - 1
    error = math.sqrt(variance)
    half = student_quantile(freedom) * error
    return Sampled(Mean(centre, centre - half, centre + half, n, error * math.sqrt(n)), error, plan)


def require_affordable(standard_error: float, pilot: int, most: int, passes: Sequence[int]) -> None:
    """Raise an `InputError` unless a standard error can be asked for, with this pilot, within so many passes."""
    if not 0 < standard_error < math.inf:
        raise InputError("standard_error", "a number > 0", str(standard_error), "Ask for a tenth of the effect.")
    if not isinstance(pilot, int) or pilot < 2 * FOLDS or pilot % FOLDS:
        raise InputError("pilot", "a multiple of 4, 8 or more", str(pilot), "16 is usual.")
    if most < (least := pilot * sum(passes)):
        remedy = "Allow more, or take a smaller pilot or fewer images a draw."
        raise InputError("most", f"at least the pilot's {least} passes", str(most), remedy)
