"""The weight perturbation as a value: when it is due, what it takes, and what it refuses."""

from typing import Any

import pytest

from shaketable.core import PGD, Ball, InputError
from shaketable.training import AWP_BALL, AWP_STEP, WEIGHTS, WeightPerturbation, awp


@pytest.mark.parametrize(
    ("warmup", "every", "due"),
    [
        (0, 1, "1111 1111 1111"),
        (1, 1, "0000 1111 1111"),
        (3, 1, "0000 0000 0000"),
        (0, 3, "1001 0010 0100"),
        (1, 3, "0000 0010 0100"),
        (0, 100, "1000 0000 0000"),
    ],
)
def test_due(warmup: int, every: int, due: str) -> None:
    """Three epochs of four steps; steps are counted from the start of the training."""
    weights = WeightPerturbation(warmup=warmup, every=every)
    found = [str(int(weights.due(step // 4, step))) for step in range(12)]
    assert "".join(found) == due.replace(" ", "")


def test_the_short_form() -> None:
    assert awp() == WeightPerturbation(AWP_BALL, AWP_STEP, "matrices", 0, 1)
    given = awp(0.005, warmup=10, every=2, steps=4)
    assert given.within == Ball("l2", 0.005, per="tensor", relative=True)
    assert given.by == PGD(4, 0.25)
    assert (given.warmup, given.every) == (10, 2)
    assert WEIGHTS["none"]() is None
    assert WEIGHTS["awp"](gamma=0.02) == awp(0.02)


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ({"gamma": -0.1}, "radius"),
        ({"gamma": float("nan")}, "radius"),
        ({"gamma": "0.1"}, "radius"),
        ({"warmup": -1}, "warmup, every"),
        ({"every": 0}, "warmup, every"),
        ({"steps": 0}, "steps"),
        ({"steps": -3}, "steps"),
        ({"steps": 1.5}, "steps"),
    ],
)
def test_bad_values(given: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        awp(**given)
    assert caught.value.argument == argument
    assert caught.value.remedy
