"""Means over levels to a stated standard error: unbiased, calibrated, as planned, on draws whose mean is known."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from shaketable.core import InputError
from shaketable.flatness.multilevel import FOLDS, Plan, sample

PASSES = (6, 42)
TRUTH = 1.4
Draw = Callable[[int, int], list[float]]


def skewed(seed: int, size: int = 1500) -> Draw:
    """A cheap level that is off by .4, and the dear one: sums of exponential numbers, which are far from symmetric."""
    a, b, c, d = np.random.default_rng(seed).exponential(size=(4, size))
    return from_array(np.stack([(a + b) / 2, 0.4 + 0.15 * (c + d - 2) + 0.05 * (a - 1)], 1))


def from_array(numbers: Any) -> Draw:
    return lambda k, depth: numbers[k, : depth + 1].tolist()


@pytest.mark.parametrize("asked", [0.2, 0.12])
def test_many_repeats_are_unbiased_and_as_exact_as_they_say(asked: float) -> None:
    """Both where the pilot suffices and where the plan adds much to it."""
    repeats = 200
    found = [sample(skewed(seed), PASSES, standard_error=asked, pilot=16, most=10**9) for seed in range(repeats)]
    values = np.array([f.value.value for f in found])
    spread = values.std(ddof=1)
    assert abs(values.mean() - TRUTH) < 4 * spread / math.sqrt(repeats)
    stated = math.sqrt(np.mean([f.standard_error**2 for f in found]))
    assert 0.85 < stated / spread < 1.15
    assert spread < 1.15 * asked
    covered = np.mean([f.value.low <= TRUTH <= f.value.high for f in found])
    assert 0.90 < covered < 0.985
    more = np.mean([f.plan.totals[0] for f in found])
    assert (more > 40) == (asked == 0.12)


def test_the_folds_are_what_keeps_it_unbiased() -> None:
    """Of a skewed draw, the mean of a sample whose size was chosen by its own first draws is off; theirs is not."""
    repeats, asked, folded, naive = 400, 0.2, [], []
    numbers = np.random.default_rng(5).exponential(size=(repeats, 500, 1))
    for row in numbers:
        folded.append(sample(from_array(row), (1,), standard_error=asked, pilot=8, most=500).value.value)
        size = min(500, max(8, math.ceil(row[:8, 0].var(ddof=1) / asked**2)))
        naive.append(row[:size, 0].mean())
    error = float(np.std(folded)) / math.sqrt(repeats)
    assert abs(np.mean(folded) - 1) < 3 * error
    assert np.mean(naive) - 1 < -5 * error  # and such a bias would be seen


def test_a_good_cheap_level_spares_passes() -> None:
    """With correlation .97 at a seventh of the passes, about half of them, as the formula says."""
    rng = np.random.default_rng(1)
    base = rng.standard_normal((6000, 1))
    numbers = np.concatenate([base, 0.25 * rng.standard_normal((6000, 1))], 1)
    two = sample(from_array(numbers), PASSES, standard_error=0.03, pilot=80, most=10**9)
    one = sample(from_array(numbers.sum(1, keepdims=True)), (42,), standard_error=0.03, pilot=80, most=10**9)
    expected = (math.sqrt(1 * 6) + math.sqrt(0.0625 * 42)) ** 2 / (1.0625 * 42)
    assert two.plan.cost / one.plan.cost == pytest.approx(expected, rel=0.1)
    shares = two.plan.totals[1] / two.plan.totals[0]
    assert shares == pytest.approx(math.sqrt(0.0625 / 42) / math.sqrt(1 / 6), rel=0.15)


def test_levels_that_do_not_pay_are_joined() -> None:
    """A middle level that adds noise rather than knowledge is drawn no oftener than the dear one that corrects it."""
    rng = np.random.default_rng(2)
    a, b, c = rng.standard_normal((3, 8000, 1))
    numbers = np.concatenate([a, 0.01 * b, 0.5 * c], 1)  # nothing new at level 1, much at level 2
    plan = sample(from_array(numbers), (1, 20, 40), standard_error=0.03, pilot=16, most=10**9).plan
    counts = plan.totals
    assert counts[0] > 4 * counts[1]
    assert counts[1] == counts[2]
    assert plan.cost == counts[0] + 20 * counts[1] + 40 * counts[2]


def test_draws_are_made_as_planned() -> None:
    """Each draw once, each to one depth; the first ones to all levels; and the plan is a matter of the pilot alone."""
    numbers = np.random.default_rng(3).standard_normal((3000, 2)) * [1.0, 0.2]
    made: dict[int, int] = {}
    told: list[tuple[int, int]] = []

    def draw(k: int, depth: int) -> list[float]:
        assert k not in made
        made[k] = depth
        return from_array(numbers)(k, depth)

    found = sample(
        draw, PASSES, standard_error=0.05, pilot=16, most=10**9, progress=lambda done, of: told.append((done, of))
    )
    plan = found.plan
    assert [made[k] for k in range(16)] == [1] * 16
    assert (len(made), sum(made.values())) == plan.totals
    assert plan.cost == len(made) * 6 + sum(made.values()) * 42
    for fold, counts in enumerate(plan.draws):
        mine = [depth for k, depth in made.items() if k % FOLDS == fold]
        assert (len(mine), sum(mine)) == counts
    assert told == [(k + 1, 16) for k in range(16)] + [(k + 1, len(made)) for k in range(16, len(made))]
    numbers[16:] *= 3.0
    made.clear()
    again = sample(draw, PASSES, standard_error=0.05, pilot=16, most=10**9)
    assert again.plan == plan
    assert again.standard_error > 2 * found.standard_error  # what is stated is what the draws show
    assert plan.standard_error <= 0.05
    assert found.value.n == len(made)


def test_a_folds_draws_have_no_say_in_how_many_it_makes() -> None:
    numbers = np.random.default_rng(4).standard_normal((3000, 1))
    before = sample(from_array(numbers), (1,), standard_error=0.05, pilot=16, most=10**9).plan
    numbers[1:16:FOLDS] *= 5.0
    after = sample(from_array(numbers), (1,), standard_error=0.05, pilot=16, most=10**9).plan
    assert after.draws[1] == before.draws[1]
    assert all(after.draws[fold] > before.draws[fold] for fold in (0, 2, 3))


def test_a_budget_bounds_the_plan_and_is_said() -> None:
    draw = skewed(0)
    free = sample(draw, PASSES, standard_error=0.04, pilot=16, most=10**9).plan
    ample = FOLDS * max(int(np.dot(fold, PASSES)) for fold in free.draws)  # each fold has a fourth
    costs = []
    for most in (768, 1500, 3000, ample):
        found = sample(draw, PASSES, standard_error=0.04, pilot=16, most=most)
        assert 0.9 * most < found.plan.cost <= most or most == ample
        assert found.plan.limited == (most < ample)
        assert (found.plan.standard_error <= 0.04) == (not found.plan.limited)
        costs.append(found.plan.cost)
    assert found.plan == free
    assert all(a < b for a, b in pairwise(costs))


def test_draws_that_do_not_vary() -> None:
    found = sample(lambda _k, depth: [2.0, 0.5][: depth + 1], PASSES, standard_error=0.1, pilot=8, most=10**9)
    assert (found.value.value, found.value.low, found.value.high) == (2.5, 2.5, 2.5)
    assert found.standard_error == 0.0
    assert found.plan == Plan(8, ((2, 2),) * FOLDS, PASSES, 0.0, False)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"standard_error": 0.0}, "standard_error"),
        ({"standard_error": -1.0}, "standard_error"),
        ({"standard_error": math.nan}, "standard_error"),
        ({"standard_error": math.inf}, "standard_error"),
        ({"pilot": 4}, "pilot"),
        ({"pilot": 10}, "pilot"),
        ({"pilot": 16.0}, "pilot"),
        ({"most": 16 * 48 - 1}, "most"),
    ],
)
def test_bad_input(change: dict[str, Any], argument: str) -> None:
    given: dict[str, Any] = {"standard_error": 0.1, "pilot": 16, "most": 16 * 48} | change
    with pytest.raises(InputError) as caught:
        sample(skewed(0), PASSES, **given)
    assert caught.value.argument == argument
    assert caught.value.remedy
