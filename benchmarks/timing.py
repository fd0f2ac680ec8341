"""Timing on a machine that is not quiet: process CPU time on one thread, interleaved, with intervals of the ratios."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """How many times longer theirs takes: the ratio of the medians, with its 95 % bootstrap interval over repetitions."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interleave(candidates: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """CPU seconds of each candidate in each repetition.

    Every repetition runs all candidates, in an order that rotates, so that drift of the machine (its clock, its other
    users) meets all of them alike. Each runs once before, unmeasured. Garbage is collected between runs.
    """
    names = list(candidates)
    for name in names:
        candidates[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(repetitions):
        turn = repetition % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            gc.disable()
            began = time.process_time()
            candidates[name]()
            seconds[name].append(time.process_time() - began)
            gc.enable()
    return seconds


def ratio(theirs: list[float], ours: list[float], *, resamples: int = 4000) -> Ratio:
    """Theirs over ours. Repetitions are resampled in pairs, since both were measured side by side."""
    a, b = np.array(theirs), np.array(ours)
    rows = np.random.default_rng(0).integers(0, len(a), (resamples, len(a)))
    drawn = np.median(a[rows], axis=1) / np.median(b[rows], axis=1)
    low, high = (float(q) for q in np.quantile(drawn, [0.025, 0.975]))
    return Ratio(statistics.median(theirs) / statistics.median(ours), low, high)
