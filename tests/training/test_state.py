"""The state of a training: it survives `torch.save` and a load that runs no code, at any step, to the bit."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shaketable.core import PGD, Ball, Calls
from shaketable.training import Epoch, Plan, SliceRecord, State, Step, awp, begin, fit

Make = Callable[..., Any]

PLAN = Plan(
    weights=awp(), within=Ball("linf", 0.1, box=(0.0, 1.0)), attack=PGD(2), evaluation=PGD(2), epochs=3, batch_size=8,
    rate=0.05, seed=4,
)  # fmt: skip


def reread(content: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def alike(a: Any, b: Any) -> bool:
    """Equal values, tensors to the bit and of one dtype."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    return type(a) is type(b) and a == b


def test_a_training_goes_on_from_any_moment(dataset: Make, small: Make) -> None:
    train, slices = dataset(24), {"validation": dataset(10, seed=1, flipped=0.3)}
    state = begin(small(dropout=0.2), PLAN)
    moments: list[tuple[dict[str, Tensor], dict[str, Any]]] = []

    def keep() -> None:
        moments.append((copy.deepcopy(state.model.state_dict()), reread(state.state_dict())))

    keep()
    for _ in fit(state, PLAN, train, slices):
        keep()
    assert len(moments) == 1 + 3 * (3 + 1)
    for weights, saved in moments:
        again = begin(small(dropout=0.2, seed=9), PLAN)
        again.model.load_state_dict(weights)
        again.load_state_dict(saved)
        assert alike(again.state_dict(), saved)
        for _ in fit(again, PLAN, train, slices):
            pass
        assert alike(again.model.state_dict(), state.model.state_dict())
        assert alike(again.state_dict(), state.state_dict())


def test_histories_come_back_as_what_they_were(small: Make) -> None:
    record = SliceRecord(10, 0.5, 7, float("inf"), 3)
    history = [Epoch(1, 0.7, {"test": record}, True, False, 2), Epoch(2, 0.6, {}, False, True, 0)]
    state = begin(small(), PLAN)
    state.history, state.calls, state.constant, state.silent = list(history), Calls(5, 4), 3, 2
    other = begin(small(), PLAN)
    other.load_state_dict(reread(state.state_dict()))
    assert other.history == history
    assert isinstance(other.history[0].slices["test"], SliceRecord)
    assert (other.calls, other.constant, other.silent) == (Calls(5, 4), 3, 2)


def test_the_best_epoch_is_the_last_that_was_called_best(small: Make) -> None:
    state = begin(small(), PLAN)
    assert state.best_epoch is None
    state.history = [Epoch(k + 1, 0.0, {}, best, False, 0) for k, best in enumerate([True, False, True, False])]
    assert state.best_epoch == 3


def test_events_and_records_are_frozen() -> None:
    for event in (Step(1, 1, 2, 0.5), Epoch(1, 0.5, {}, False, False, 0), SliceRecord(1, 0.0, 0, 0.0, 0)):
        with pytest.raises(AttributeError):
            event.loss = 1.0  # pyright: ignore[reportAttributeAccessIssue]


def test_a_state_starts_at_nothing_done(small: Make) -> None:
    state = begin(small(), PLAN)
    assert isinstance(state, State)
    assert (state.epoch, state.step, state.history, state.best, state.calls) == (0, 0, [], {}, Calls())
