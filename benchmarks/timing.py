"""Timing on a machine that is not quiet: process CPU time on one thread, interleaved, with intervals of the ratios.

Checked by tests/benchmarks/test_timing.py.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Ratio:
    """A ratio of two medians, with its 95 % bootstrap interval over repetitions; infinite where the lower median is not > 0."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Took:
    """What a candidate returns that has taken its own time, of a part of what it does."""

    seconds: float


def interleave(candidates: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """CPU seconds of each candidate in each repetition.

    Every repetition runs all candidates, in an order that rotates, so that drift of the machine (its clock, its other
    users) meets all of them alike. Each runs once before, unmeasured. Garbage is collected between runs.
    """
    names = list(candidates)
    for name in names:
        candidates[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.freeze()  # what is there by now is not looked through again and again
    try:
        for repetition in range(repetitions):
            turn = repetition % len(names)
            for name in names[turn:] + names[:turn]:
                seconds[name].append(_seconds(candidates[name]))
    finally:
        gc.unfreeze()
    return seconds


def _seconds(candidate: Callable[[], object]) -> float:
    gc.collect()
    gc.disable()
    try:
        began = time.process_time()
        done = candidate()
        elapsed = time.process_time() - began
    finally:
        gc.enable()
    return done.seconds if isinstance(done, Took) else elapsed


def ratio(above: ArrayLike, below: ArrayLike, *, resamples: int = 4000) -> Ratio:
    """The median of one over the median of the other, both measured side by side in the same repetitions.

    Repetitions are resampled, so what belongs to one stays together. Either may be a sum or a difference of times, made
    repetition by repetition: what all runs of a repetition share (a slower clock, a neighbour) is then gone before the
    median is taken.
    """
    a, b = np.asarray(above, float), np.asarray(below, float)
    rows = np.random.default_rng(0).integers(0, len(a), (resamples, len(a)))
    drawn = _over(np.median(a[rows], axis=1), np.median(b[rows], axis=1))
    low, high = (float(q) for q in np.quantile(drawn, [0.025, 0.975], method="closest_observation"))
    return Ratio(float(_over(np.median(a), np.median(b))), low, high)


def _over(a: Any, b: Any) -> Any:
    """a / b; infinite where b, a time that noise may have turned round, is not positive."""
    return np.where(b > 0, a / np.where(b > 0, b, 1.0), np.inf)
