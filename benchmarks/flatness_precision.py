"""Average-case flatness to a stated standard error: passes, bias and calibration, by repeating the estimators.

Everything is drawn anew, nothing is replayed. Theirs is the paper's protocol, independent draws of nu that all images are
attacked at anew (`average`). An estimator's price is its variance times its passes, which does not change with the number of
draws; the ratio of two prices is that of the passes for one standard error. Passes are forward plus backward passes of an
image. The backward pass goes to the images alone and costs about a forward pass; both counts are in the facts. Of an
independent draw n (2 steps + 1) are counted, of ours all that were spent, one more forward pass for each attack included.

What is compared is E[RLoss(w + nu)]: RLoss(w) is measured in the same way, and at the same cost, by both.
"""

import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from cells import BALL, Comparison
from subjects import subject
from timing import Ratio

from shaketable import stats
from shaketable.core import PGD
from shaketable.flatness.average import average
from shaketable.flatness.loss_at import ATTACK
from shaketable.flatness.precision import Estimated, difference, estimate

ASKED = 0.03
SEEDS = {"AT": 1, "AT-AWP": 2}
COMMON: dict[str, Any] = {"within": BALL, "reference_restarts": 1}


@dataclass(frozen=True)
class Repeats:
    """An estimator, repeated: each time's value, standard error, forward and backward passes and CPU seconds."""

    values: list[float]
    errors: list[float]
    covers: Callable[[float], float]
    forward: list[int]
    backward: list[int]
    seconds: list[float]

    @property
    def passes(self) -> list[int]:
        """Both kinds."""
        return [f + b for f, b in zip(self.forward, self.backward, strict=True)]


def one_model(count: int, repetitions: int) -> Iterator[Comparison]:
    """AT-AWP: 2.5 times fewer passes than independent draws."""
    s = subject("AT-AWP", min(count, 250))

    def ours(seed: int, **options: Any) -> Estimated:
        return estimate(s.model, s.x, s.y, seed=seed, **{"standard_error": ASKED, **COMMON, **options})

    draws = _independent("AT-AWP", len(s.x), 10 * repetitions)
    facts = {"one at a time": _ablation(ours), "peak memory, MB, by draws": _memory()}
    yield from _compared("flatness, one model", ours, [draws], len(s.x), repetitions, 2.5, facts)


def two_models(count: int, repetitions: int) -> Iterator[Comparison]:
    """AT minus AT-AWP: 4 times fewer passes than independent draws for each."""
    a, b = (subject(name, min(count, 250)) for name in ("AT", "AT-AWP"))

    def ours(seed: int, **options: Any) -> Estimated:
        settings = {"standard_error": ASKED, **COMMON, **options}
        return difference(a.model, b.model, a.x, a.y, seed=seed, **settings)

    draws = [_independent(name, len(a.x), 10 * repetitions) for name in ("AT", "AT-AWP")]
    apart = [estimate(s.model, s.x, s.y, seed=5, standard_error=ASKED, **COMMON) for s in (a, b)]
    together = ours(5)
    price = sum(math.sqrt(_price(e)) for e in apart) ** 2  # passes shared out between the two as is best
    facts = {"price of estimating each apart, over that of common draws": price / _price(together)}
    yield from _compared("flatness, a difference", ours, draws, len(a.x), repetitions, 4.0, facts)


@dataclass(frozen=True)
class Independent:
    """RLoss(w + nu) of independent draws for one model, and the CPU seconds of one."""

    losses: list[float]
    seconds: float


@cache
def _independent(name: str, images: int, samples: int) -> Independent:
    s, seed = subject(name, images), SEEDS[name]  # each model's draws are its own
    began = time.process_time()
    found = average(s.model, s.x, s.y, seed=seed, samples=samples, **COMMON)
    seconds = (time.process_time() - began) / (samples + 1)
    return Independent([found.reference + draw for draw in found.draws], seconds)


def _compared(
    cell: str,
    ours: Callable[..., Estimated],
    draws: list[Independent],
    images: int,
    repetitions: int,
    bar: float,
    facts: dict[str, Any],
) -> Iterator[Comparison]:
    found = _repeat(ours, 5 * repetitions)
    theirs = [d.losses for d in draws]
    passes = images * (2 * ATTACK.steps + 1) * len(draws)
    plain = ours(10**6, standard_error=ASKED / 3, levels=())
    centre = plain.value.value + plain.reference
    mean, error = statistics.fmean(found.values), statistics.stdev(found.values) / math.sqrt(len(found.values))
    signed = [statistics.fmean(losses) for losses in theirs]
    protocol = signed[0] - sum(signed[1:])
    spread = math.sqrt(sum(statistics.variance(losses) / len(losses) for losses in theirs))
    biases = {
        "independent draws": _off(mean - protocol, math.hypot(error, spread)),
        "a long run without the cheap attack": _off(mean - centre, math.hypot(error, plain.standard_error)),
    }
    facts = facts | {
        "images": images, "repeats": len(found.values), "independent draws": len(theirs[0]),
        "standard error asked for": ASKED,
        "standard deviation over repeats": statistics.stdev(found.values),
        "standard error stated (root mean square)": math.sqrt(statistics.fmean(e * e for e in found.errors)),
        "95 % intervals that hold the long run's mean": found.covers(centre),
        "forward": statistics.fmean(found.forward), "backward": statistics.fmean(found.backward),
        "passes of an independent draw": passes,
        "standard deviation of an independent draw": math.sqrt(sum(statistics.variance(losses) for losses in theirs)),
        "mean": mean, "bias against (z)": {name: b[1] for name, b in biases.items()},
        "bias, 95 % interval": {name: b[0] for name, b in biases.items()},
    }  # fmt: skip
    if any(abs(z) > 4 for _, z in biases.values()):
        raise AssertionError(f"the estimates are biased: {biases}")
    seconds = sum(d.seconds for d in draws)
    other = "independent draws, passes for one standard error"
    ratio = _ratio(theirs, passes, found.values, found.passes)
    yield Comparison(cell, other, ratio, bar, True, found.seconds, [seconds], facts)
    timed = _ratio(theirs, seconds, found.values, found.seconds)
    yield Comparison(
        cell, "independent draws, CPU time for one standard error", timed, None, False, found.seconds, [seconds]
    )


def _repeat(ours: Callable[..., Estimated], repeats: int) -> Repeats:
    done, seconds = [], []
    for seed in range(100, 100 + repeats):
        began = time.process_time()
        done.append(ours(seed))
        spent = done[-1].calls, done[-1].reference_calls
        share = spent[0].forward / (spent[0].forward + spent[1].forward)
        seconds.append(share * (time.process_time() - began))  # without the reference

    def covers(truth: float) -> float:
        return statistics.fmean(e.value.low <= truth - e.reference <= e.value.high for e in done)

    return Repeats(
        [e.value.value + e.reference for e in done], [e.standard_error for e in done], covers,
        [e.calls.forward for e in done], [e.calls.backward for e in done], seconds,
    )  # fmt: skip


def _ratio(theirs: list[list[float]], paid: float, ours: list[float], spent: Sequence[float], resamples=4000) -> Ratio:
    """Their variance times what a draw costs over ours, with its 95 % bootstrap interval over draws and repeats."""
    rng = np.random.default_rng(0)

    def over(variance: Any, values: np.ndarray, costs: np.ndarray) -> Any:
        return variance * paid / (values.var(-1, ddof=1) * costs.mean(-1))

    values, costs = np.array(ours), np.array(spent, float)
    resampled = [np.array(v)[rng.integers(0, len(v), (resamples, len(v)))].var(1, ddof=1) for v in theirs]
    rows = rng.integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(over(sum(resampled), values[rows], costs[rows]), [0.025, 0.975])
    value = over(sum(statistics.variance(v) for v in theirs), values, costs)
    return Ratio(float(value), float(low), float(high))


def _off(bias: float, error: float) -> tuple[str, float]:
    half = stats.Z95 * error
    return f"{bias:+.4f} [{bias - half:+.4f}, {bias + half:+.4f}]", bias / error


def _passes(e: Estimated) -> int:
    return e.calls.forward + e.calls.backward


def _price(e: Estimated) -> float:
    return e.standard_error**2 * _passes(e)


def _ablation(ours: Callable[..., Estimated]) -> dict[str, float]:
    """What each ingredient is worth: the price of one run without it, over ours; by stated variances, so good to a third."""
    whole = _price(ours(7))
    without = {
        "without pairs": {"antithetic": False},
        "without the cheap attack": {"levels": ()},
        "all images at every nu": {"images": 10**6},
        "64 images at every nu": {"images": 64},
    }
    return {name: _price(ours(7, **change)) / whole for name, change in without.items()}


def _memory() -> dict[str, int]:
    """Peak memory of a process of its own for each number of draws."""
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(1, maxtasksperchild=1) as pool:
        return {str(draws): pool.apply(_peak, (draws,)) for draws in (32, 128, 512)}


def _peak(draws: int) -> int:
    s = subject("AT-AWP", 64)
    estimate(s.model, s.x, s.y, seed=0, standard_error=10.0, pilot=draws, by=PGD(3), most=10**9, **COMMON)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
