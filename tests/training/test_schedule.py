"""Learning rates as values."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shaketable.core import InputError
from shaketable.training import SCHEDULES, Constant, MultiStep


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


def test_others() -> None:
    assert {Constant()(done / 10) for done in range(10)} == {1.0}
    assert MultiStep(at=())(0.9) == 1.0
    assert MultiStep(at=(0.1, 0.1), factor=0.5)(0.2) == 0.25
    assert {"multistep": MultiStep, "constant": Constant} == SCHEDULES


@pytest.mark.parametrize(
    ("values", "argument"),
    [
        ({"at": (0.75, 0.5)}, "at"),
        ({"at": (50, 75)}, "at"),
        ({"at": (-0.1,)}, "at"),
        ({"at": (float("nan"),)}, "at"),
        ({"factor": 0.0}, "factor"),
        ({"factor": -0.1}, "factor"),
        ({"factor": float("nan")}, "factor"),
    ],
)
def test_bad_values(values: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        MultiStep(**values)
    assert caught.value.argument == argument
    assert caught.value.remedy
