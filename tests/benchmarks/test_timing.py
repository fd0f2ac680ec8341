"""The benchmark's clock: ratios of times whose truth is known, and who is run how often."""

import gc
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "timing.py"


@pytest.fixture(scope="module")
def timing() -> ModuleType:
    if not FILE.exists():
        pytest.skip("the benchmarks are not there")
    spec = importlib.util.spec_from_file_location("benchmarks_timing", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def noisy(rounds: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A long time, the same with 1 more, and a pass of 1: a machine that drifts by half, and 2 % of noise of their own."""
    draw = np.random.default_rng(seed)
    drift = np.linspace(1.0, 1.5, rounds) * draw.choice([1.0, 1.6], rounds, p=[0.8, 0.2])
    long, longer, one = (drift * true * (1 + 0.02 * draw.standard_normal(rounds)) for true in (10.0, 11.0, 1.0))
    return long, longer, one


def test_ratio_of_constant_times_is_exact(timing: ModuleType) -> None:
    found = timing.ratio([3.0] * 5, [2.0] * 5)
    assert (found.value, found.low, found.high) == (1.5, 1.5, 1.5)


def test_ratio_is_that_of_the_medians(timing: ModuleType) -> None:
    assert timing.ratio([1.0, 2.0, 90.0], [4.0, 1.0, 0.5]).value == 2.0


@pytest.mark.parametrize("seed", range(5))
def test_interval_of_a_small_difference_holds_the_truth(timing: ModuleType, seed: int) -> None:
    long, longer, one = noisy(140, seed)
    found = timing.ratio(longer - long, one)
    assert found.low <= 1.0 <= found.high
    assert found.high - found.low < 0.3


def test_repetitions_stay_together(timing: ModuleType) -> None:
    """With the same times in another order per list, what the repetitions share is lost and the interval grows."""
    long, longer, one = noisy(140)
    paired = timing.ratio(longer - long, one)
    parted = timing.ratio(longer - np.random.default_rng(1).permutation(long), one)
    assert parted.high - parted.low > 3 * (paired.high - paired.low)
    drift = np.linspace(1.0, 3.0, 40)
    together, apart = timing.ratio(2 * drift, drift), timing.ratio(2 * drift, drift[::-1])
    assert together.low == pytest.approx(2.0)
    assert together.high == pytest.approx(2.0)
    assert apart.high - apart.low > 0.1


@pytest.mark.parametrize(
    ("below", "value", "high"),
    [([0.0, 0.0, 0.0], np.inf, np.inf), ([-1.0, -2.0, -1.0], np.inf, np.inf), ([1.0, 1.0, -1.0], 1.0, np.inf)],
    ids=["zero", "negative", "sometimes negative"],
)
def test_a_time_that_noise_turned_round_gives_no_finite_bound(
    timing: ModuleType, below: list[float], value: float, high: float
) -> None:
    found = timing.ratio([1.0, 1.0, 1.0], below)
    assert found.value == value
    assert found.high == high
    assert found.low > 0


def test_ratio_is_the_same_again(timing: ModuleType) -> None:
    long, longer, _ = noisy(9)
    assert timing.ratio(longer, long) == timing.ratio(longer, long)


def test_all_run_equally_often_in_turns(timing: ModuleType) -> None:
    ran: list[str] = []

    def candidate(name: str) -> Callable[[], None]:
        return lambda: ran.append(name)

    seconds = timing.interleave({name: candidate(name) for name in "abc"}, 4)
    assert "".join(ran) == "abc" + "abc" + "bca" + "cab" + "abc"  # the first of each is not measured
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_seconds_are_of_the_processor(timing: ModuleType) -> None:
    def works() -> None:
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass

    seconds = timing.interleave({"sleeps": lambda: time.sleep(0.03), "works": works}, 3)
    assert min(seconds["works"]) >= 0.02
    assert max(seconds["sleeps"]) < 0.02


def test_a_part_that_took_its_own_time_is_believed(timing: ModuleType) -> None:
    assert timing.interleave({"part": lambda: timing.Took(0.25)}, 2) == {"part": [0.25, 0.25]}


def test_garbage_collection_is_on_again_after_an_error(timing: ModuleType) -> None:
    calls, frozen = iter([None]), gc.get_freeze_count()

    def fails_when_measured() -> None:
        if next(calls, StopIteration) is StopIteration:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        timing.interleave({"broken": fails_when_measured}, 1)
    assert gc.isenabled()
    assert gc.get_freeze_count() <= frozen
