"""Learning rates as values: known points, range, continuity, and what is refused."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shaketable.core import InputError
from shaketable.training import SCHEDULES
from shaketable.training.schedule import Constant, Cosine, Cyclic, Late, MultiStep

shares = st.floats(0.0, 1.0)


def test_the_papers_steps() -> None:
    schedule = MultiStep()
    assert [schedule(done) for done in (0.0, 0.25, 0.4999999)] == [1.0, 1.0, 1.0]
    assert [schedule(done) for done in (0.5, 0.7499999)] == [0.1, 0.1]
    assert [schedule(done) for done in (0.75, 1.0)] == [pytest.approx(0.01)] * 2


@settings(deadline=None)
@given(st.integers(1, 400), st.data())
def test_a_step_falls_on_its_epoch(epochs: int, data: st.DataObject) -> None:
    """k / n as the loop computes it reaches k / n as it is written: no step comes an epoch late by rounding."""
    k = data.draw(st.integers(0, epochs))
    schedule = MultiStep(at=(k / epochs,), factor=0.5)
    found = [schedule(epoch / epochs) for epoch in range(epochs)]
    assert found == [1.0] * k + [0.5] * (epochs - k)


def test_late_steps_at_epochs_140_and_145_of_150() -> None:
    found = [Late()(epoch / 150) for epoch in range(150)]
    assert found == pytest.approx([1.0] * 140 + [0.1] * 5 + [0.01] * 5)
    assert Late(at=(0.9,), factor=0.5)(0.9) == 0.5


def test_others() -> None:
    assert {Constant()(done / 10) for done in range(10)} == {1.0}
    assert MultiStep(at=())(0.9) == 1.0
    assert MultiStep(at=(0.1, 0.1), factor=0.5)(0.2) == 0.25
    assert SCHEDULES["multistep"] is MultiStep
    assert SCHEDULES["constant"] is Constant


@pytest.mark.parametrize("name", list(SCHEDULES))
@settings(deadline=None)
@given(done=shares)
def test_every_schedule_is_a_factor(name: str, done: float) -> None:
    factor = SCHEDULES[name]()(done)
    assert isinstance(factor, float)
    assert 0.0 <= factor <= 1.0


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Cyclic(), {0.0: 0.0, 0.25: 0.5, 0.5: 1.0, 0.75: 0.5, 1.0: 0.0}),
        (Cyclic(cycles=2), {0.0: 0.0, 0.125: 0.5, 0.25: 1.0, 0.5: 0.0, 0.75: 1.0, 0.875: 0.5, 1.0: 0.0}),
        (Cyclic(cycles=4), {0.125: 1.0, 0.375: 1.0, 0.625: 1.0, 0.875: 1.0, 0.25: 0.0, 0.5: 0.0, 0.75: 0.0}),
        (Cyclic(low=0.1, peak=0.25), {0.0: 0.1, 0.125: 0.55, 0.25: 1.0, 0.625: 0.55, 1.0: 0.1}),
        (Cosine(), {0.0: 1.0, 1 / 3: 0.75, 0.5: 0.5, 2 / 3: 0.25, 1.0: 0.0}),
        (Cosine(low=0.2), {0.0: 1.0, 0.5: 0.6, 1.0: 0.2}),
        (Cosine(warmup=0.2), {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 0.6: 0.5, 1.0: 0.0}),
        (Cosine(low=0.5, warmup=0.5), {0.0: 0.5, 0.25: 0.75, 0.5: 1.0, 0.75: 0.75, 1.0: 0.5}),
    ],
)
def test_known_points(schedule: Callable[[float], float], expected: dict[float, float]) -> None:
    assert {done: schedule(done) for done in expected} == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("schedule", "slope"),
    [
        (Cyclic(), 2.0),
        (Cyclic(cycles=3), 6.0),
        (Cyclic(cycles=2, low=0.5, peak=0.1), 10.0),
        (Cosine(), math.pi / 2),
        (Cosine(low=0.3, warmup=0.25), 4.0),
    ],
)
@settings(deadline=None)
@given(one=shares, other=shares)
def test_continuity(schedule: Callable[[float], float], slope: float, one: float, other: float) -> None:
    """No jump: the factor changes by no more than the steepest slope allows, between any two shares."""
    assert abs(schedule(one) - schedule(other)) <= slope * abs(one - other) + 1e-9
    assert 0.0 <= schedule(one) <= 1.0


def test_one_cycle_is_torchs() -> None:
    """Reference: torch's CyclicLR, as Wong et al. 2020 call it."""
    steps, peak = 40, 0.2
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    theirs = torch.optim.lr_scheduler.CyclicLR(
        optimiser, base_lr=0.0, max_lr=peak, step_size_up=steps // 2, step_size_down=steps // 2
    )
    for step in range(steps):
        assert peak * Cyclic()(step / steps) == pytest.approx(optimiser.param_groups[0]["lr"], abs=1e-15)
        optimiser.step()
        theirs.step()


def test_cosine_is_torchs() -> None:
    """Reference: torch's CosineAnnealingLR."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=30, eta_min=0.01)
    for step in range(30):
        assert 0.1 * Cosine(low=0.1)(step / 30) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-12)
        optimiser.step()
        theirs.step()


@pytest.mark.parametrize(
    ("make", "values", "argument"),
    [
        *(
            (make, values, argument)
            for make in (MultiStep, Late)
            for values, argument in (
                ({"at": (0.75, 0.5)}, "at"),
                ({"at": (50, 75)}, "at"),
                ({"at": (-0.1,)}, "at"),
                ({"at": (float("nan"),)}, "at"),
                ({"at": 0.5}, "at"),
                ({"at": ("half",)}, "at"),
                ({"factor": 0.0}, "factor"),
                ({"factor": -0.1}, "factor"),
                ({"factor": float("nan")}, "factor"),
                ({"factor": "0.1"}, "factor"),
            )
        ),
        (Cyclic, {"cycles": 0}, "cycles"),
        (Cyclic, {"cycles": 1.5}, "cycles"),
        (Cyclic, {"low": -0.1}, "low"),
        (Cyclic, {"low": 1.1}, "low"),
        (Cyclic, {"low": float("nan")}, "low"),
        (Cyclic, {"low": "0"}, "low"),
        (Cyclic, {"peak": 0.0}, "peak"),
        (Cyclic, {"peak": 1.0}, "peak"),
        (Cyclic, {"peak": None}, "peak"),
        (Cosine, {"low": 2}, "low"),
        (Cosine, {"warmup": 1.0}, "warmup"),
        (Cosine, {"warmup": 5}, "warmup"),
        (Cosine, {"warmup": -0.1}, "warmup"),
        (Cosine, {"warmup": True}, "warmup"),
    ],
)
def test_bad_values(make: Callable[..., object], values: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        make(**values)
    assert caught.value.argument == argument
    assert caught.value.remedy
