"""Intervals against SciPy, and their coverage."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as some

from shaketable.core.errors import InputError
from shaketable.stats import (
    Mean,
    Rate,
    binomial_p,
    bootstrap,
    difference,
    mean,
    paired,
    student_p,
    student_quantile,
)

numbers = some.lists(some.floats(-1e3, 1e3), min_size=2, max_size=30)


@settings(deadline=None, derandomize=True)
@given(some.integers(1, 10_000).flatmap(lambda n: some.tuples(some.integers(0, n), some.just(n))))
def test_rate_is_wilsons(counts: tuple[int, int]) -> None:
    hits, n = counts
    rate = Rate(hits, n)
    expected = scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert rate.value == hits / n
    assert rate.interval == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= rate.interval[0] <= rate.value <= rate.interval[1] <= 1


def test_rates_at_the_edges() -> None:
    assert math.isnan(Rate(0, 0).value)
    assert Rate(0, 0).interval == (0.0, 1.0)
    assert Rate(0, 1).interval[0] == 0.0
    assert Rate(1, 1).interval[1] == 1.0
    assert Rate(0, 50).interval == pytest.approx((0, 0.07134759913335), abs=1e-9)
    assert str(Rate(1, 2)) == "50.0 % [9.5, 90.5] (1/2)"
    for hits, n in ((-1, 3), (4, 3), (1, 0), (math.nan, 3)):
        with pytest.raises(InputError, match="hits: expected 0 <= hits <= n"):
            Rate(hits, n)  # pyright: ignore


@settings(deadline=None, derandomize=True)
@given(numbers)
def test_mean_is_students(values: list[float]) -> None:
    found = mean(values)
    deviation = float(np.std(values, ddof=1))
    assert (found.n, found.law) == (len(values), "student")
    assert found.value == pytest.approx(float(np.mean(values)), abs=1e-9)
    assert found.deviation == pytest.approx(deviation, abs=1e-9)
    if deviation > 1e-6:
        low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values))
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)


def test_mean_keeps_its_digits_far_from_zero() -> None:
    found = mean([1e9 + 1, 1e9 + 2, 1e9 + 3])
    assert found.value == 1e9 + 2
    assert found.deviation == 1.0


@pytest.mark.parametrize("law", [mean, lambda values: bootstrap(values, seed=0)])
def test_one_value_has_no_interval_and_none_is_an_error(law: Any) -> None:
    one = law([0.25])
    assert (one.value, one.low, one.high, one.n) == (0.25, -math.inf, math.inf, 1)
    assert math.isnan(one.deviation)
    with pytest.raises(InputError, match="values: expected at least one number"):
        law([])


@settings(deadline=None, derandomize=True)
@given(some.lists(some.tuples(some.floats(-9, 9), some.floats(-9, 9)), min_size=3, max_size=20))
def test_paired_is_scipys_paired_test(pairs: list[tuple[float, float]]) -> None:
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    found = paired(a, b)
    assert found.value == pytest.approx(np.mean(a) - np.mean(b), abs=1e-9)
    if found.deviation > 1e-6:
        interval = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_pairs_that_move_together_have_a_narrow_difference() -> None:
    base = [0.1, 0.9, 0.3, 0.7]
    found = paired([v + 0.05 for v in base], base)
    assert found.low == pytest.approx(0.05)
    assert found.high == pytest.approx(0.05)
    with pytest.raises(InputError, match="b: expected as many values as in a, 2"):
        paired([1, 2], [1])


@settings(deadline=None, derandomize=True)
@given(numbers, numbers)
def test_difference_is_welchs(a: list[float], b: list[float]) -> None:
    found = difference(a, b)
    assert found.value == pytest.approx(np.mean(a) - np.mean(b), abs=1e-9)
    if min(np.std(a), np.std(b)) > 1e-3:
        interval = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-7, abs=1e-7)
    with pytest.raises(InputError, match="a, b: expected two or more"):
        difference(a, b[:1])


def test_difference_of_constants() -> None:
    found = difference([2.0, 2.0], [1.0, 1.0, 1.0])
    assert (found.value, found.low, found.high, found.n) == (1, 1, 1, 5)


def test_bootstrap_covers_a_known_mean() -> None:
    """Of exponential losses, whose mean is 1: 95 % intervals hold it nearly as often (percentiles of skew: a bit less)."""
    rng = np.random.default_rng(0)
    intervals = [bootstrap(rng.exponential(size=100), seed=k, resamples=400) for k in range(400)]
    held = sum(m.low <= 1 <= m.high for m in intervals)
    assert scipy.stats.binomtest(held, 400, 0.93).pvalue > 0.01
    assert all(m.law == "bootstrap" and m.low < m.value < m.high for m in intervals)


def test_bootstrap_is_scipys_but_for_its_draws() -> None:
    values = np.random.default_rng(1).exponential(size=60)
    found = bootstrap(values, seed=0, resamples=20_000)
    peer = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(9)
    )
    width = found.high - found.low
    assert found.low == pytest.approx(peer.confidence_interval.low, abs=0.03 * width)
    assert found.high == pytest.approx(peer.confidence_interval.high, abs=0.03 * width)
    assert found.value == pytest.approx(values.mean())
    assert found.deviation == pytest.approx(values.std(ddof=1))


def test_bootstrap_draws_as_many_resamples_as_asked() -> None:
    values = np.random.default_rng(1).normal(size=5000)  # more than one block of resamples, the last not a whole one
    found, rng = bootstrap(values, seed=3, resamples=1000), np.random.default_rng(3)
    means = [values[rng.integers(0, 5000, 5000)].mean() for _ in range(1000)]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), rel=1e-12)


def test_bootstrap_is_its_seed() -> None:
    values = np.random.default_rng(1).normal(size=5000)  # more than one block of resamples
    one = bootstrap(values, seed=3, resamples=1000)
    assert one == bootstrap(values.tolist(), seed=3, resamples=1000)
    assert one != bootstrap(values, seed=4, resamples=1000)
    assert one.high - one.low == pytest.approx(2 * 1.96 / 5000**0.5, rel=0.1)
    with pytest.raises(InputError, match="resamples: expected"):
        bootstrap(values, seed=0, resamples=0)


def test_a_mean_says_its_count() -> None:
    assert str(Mean(0.5, 0.25, 0.75, 3, 0.1)) == "0.500 [0.250, 0.750] (n = 3)"


@settings(deadline=None, derandomize=True)
@given(some.floats(0.3, 1e6), some.floats(-40, 40))
def test_students_quantile_and_p_are_scipys(freedom: float, t: float) -> None:
    assert student_quantile(freedom) == pytest.approx(float(scipy.stats.t.ppf(0.975, freedom)), rel=1e-9)
    assert student_p(t, freedom) == pytest.approx(2 * float(scipy.stats.t.sf(abs(t), freedom)), rel=1e-9)


@settings(deadline=None, derandomize=True)
@given(some.integers(0, 3000).flatmap(lambda n: some.tuples(some.integers(0, n), some.just(n))), some.floats(0, 1))
def test_binomial_p_is_scipys(counts: tuple[int, int], p: float) -> None:
    hits, n = counts
    expected = scipy.stats.binomtest(hits, n, p, alternative="greater").pvalue if n else 1.0
    assert binomial_p(hits, n, p) == pytest.approx(float(expected), rel=1e-9, abs=1e-290)


def test_intervals_do_not_import_all_of_scipys_laws() -> None:
    """Which takes a second, at each start of the command."""
    code = (
        "import sys; from shaketable import stats\n"
        "stats.difference([1., 2.], [3., 5.]), stats.student_p(1., 2.), stats.binomial_p(1, 2, .5)\n"
        "assert 'scipy.special' in sys.modules and 'scipy.stats' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
