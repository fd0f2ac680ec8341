"""Objectives that stop: finished examples are dropped, and the verdicts are those of the plain loop."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from shaketable import core as st

Make = Callable[..., Any]
BALL = st.Ball("linf", 0.15, box=(0, 1))


@dataclass
class Plain:
    """A loop that never drops anything, and remembers at which look each example was first misclassified."""

    point: Tensor
    first: Tensor
    iterates: list[Tensor]

    @property
    def fooled(self) -> Tensor:
        return self.first >= 0


def plain(model: Any, x: Tensor, y: Tensor, ball: Any, steps: int, start: Tensor, momentum: float = 0.0) -> Plain:
    delta, first, iterates = start, torch.full((len(x),), -1), []
    limits, velocity = ball.on(x), torch.zeros_like(x)
    for k in range(steps + 1):
        point = limits.clip(x + delta).requires_grad_()
        logits = model(point)
        iterates.append(point.detach())
        wrong = logits.argmax(1) != y
        first = torch.where((first < 0) & wrong, k, first)
        if k == steps:
            break
        (grad,) = torch.autograd.grad(st.cross_entropy(logits, y).sum(), point)
        if momentum:
            velocity = grad = momentum * velocity + grad / grad.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-300)
        with torch.no_grad():
            radius = ball.radius if isinstance(ball.radius, float) else ball.radius[:, None, None, None]
            delta = limits.project(delta + 0.25 * radius * limits.steepest(grad, x, delta), x)
    return Plain(iterates[-1], first, iterates)


@dataclass
class Watched:
    """An objective that notes which rows it was asked for."""

    inner: Any
    rows: list[list[int]] = field(default_factory=list)
    stops: bool = True

    def __call__(self, point: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.judge(point, rows)[0]

    def judge(self, point: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        self.rows.append(list(range(len(point))) if rows is None else rows.tolist())
        return self.inner.judge(point, rows)


@pytest.fixture
def setting(network: Make, images: Make) -> tuple[Any, Tensor, Tensor]:
    """A network, images and its own predictions for labels: all right at first. Float64, so that batches agree."""
    model, x = network(dtype=torch.float64), images(64, dtype=torch.float64)
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("own", [False, True])
def test_verdicts_points_and_calls_are_those_of_the_plain_loop(setting: Any, momentum: float, own: bool) -> None:
    model, x, y = setting
    radius = torch.linspace(0.02, 0.5, 64, dtype=torch.float64) if own else 0.15
    mask = torch.arange(64)[:, None, None, None] % 8 != torch.arange(8)[None, None, :, None] if own else None
    ball = st.Ball("linf", radius, box=(0, 1), mask=mask)
    start = ball.on(x).sample(x, st.generator(3))
    wanted = plain(model, x, y, ball, 10, start, momentum)
    assert 10 <= int(wanted.fooled.sum()) <= 54  # some fall, some hold, or the test would show nothing
    assert len(set(wanted.first.tolist())) > 3  # and they fall at different steps
    objective = Watched(st.ce(model, y, stop=True))
    found = st.perturb(objective, x, ball, by=st.PGD(10, momentum=momentum), start=start)
    assert torch.equal(found.flags.stopped, wanted.fooled)
    assert torch.equal(model(found.point).argmax(1) != y, wanted.fooled)
    for row, k in enumerate(wanted.first.tolist()):
        assert torch.allclose(found.point[row], wanted.iterates[k][row], rtol=1e-9, atol=1e-12)
    alive = [[row for row in range(64) if not 0 <= int(wanted.first[row]) < k] for k in range(11)]
    assert objective.rows == alive
    assert found.calls == st.Calls(sum(map(len, alive)), sum(map(len, alive[:-1])))
    assert found.value is not None
    assert torch.allclose(found.value, st.ce(model, y)(found.point).detach(), rtol=1e-9)


def test_the_same_without_dropping_but_for_the_calls(setting: Any) -> None:
    model, x, y = setting
    dropped = st.perturb(st.margin(model, y, stop=True), x, BALL)
    kept = st.perturb(st.margin(model, y), x, BALL, by=st.PGD(keep="best"))
    assert kept.value is not None
    assert torch.equal(dropped.flags.stopped, kept.value > 0)
    assert dropped.calls.forward < 0.9 * kept.calls.forward
    assert dropped.calls.backward < 0.9 * kept.calls.backward
    assert not bool(kept.flags.stopped.any())


def test_restarts_are_for_survivors_alone(setting: Any) -> None:
    model, x, y = setting
    objective = Watched(st.ce(model, y, stop=True))
    by = st.PGD(4, restarts=3)
    found = st.perturb(objective, x, BALL, by=by, start="sample", generator=st.generator(0))
    source, alive = st.generator(0), set(range(64))
    at = 0
    for _ in range(3):
        start = BALL.sample(x, source)
        run = plain(model, x, y, BALL, 4, start)
        assert objective.rows[at] == sorted(alive)
        for k in range(5):
            assert set(objective.rows[at + k]) == {r for r in alive if not 0 <= int(run.first[r]) < k}
        at += 5
        alive -= set(torch.nonzero(run.fooled)[:, 0].tolist())
    assert at == len(objective.rows)
    assert torch.equal(torch.nonzero(~found.flags.stopped)[:, 0], torch.tensor(sorted(alive)))
    assert torch.equal(model(found.point).argmax(1) == y, ~found.flags.stopped)


def test_restarts_end_when_nothing_is_left(setting: Any) -> None:
    model, x, y = setting
    objective = Watched(st.ce(model, (y + 1) % 4, stop=True))
    found = st.perturb(objective, x, BALL, by=st.PGD(5, restarts=4), start="sample", generator=st.generator(0))
    assert objective.rows == [list(range(64))]
    assert found.calls == st.Calls(64, 64)
    assert bool(found.flags.stopped.all())


def test_all_finished_at_the_start_stay_where_they_are(setting: Any) -> None:
    model, x, y = setting
    found = st.perturb(st.ce(model, (y + 1) % 4, stop=True), x, BALL)
    assert torch.equal(found.point, x)
    assert found.calls.forward == 64
    assert found.value is not None
    assert torch.allclose(found.value, st.ce(model, (y + 1) % 4)(x).detach())


def test_a_finished_example_keeps_its_point_even_if_an_earlier_value_was_higher() -> None:
    """The verdict counts, not the value: with keep="best" a fooled point replaces a better-valued one."""

    class Odd:
        stops = True

        def judge(self, point: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
            return -(point[:, 0] ** 2), point[:, 0] > 0.3

        def __call__(self, point: Tensor, rows: Tensor | None) -> Tensor:
            return self.judge(point, rows)[0]

    x = torch.tensor([[-0.1], [-0.4]])  # one step of .5 leaps over the top at 0: to .4, which is finished, and to .1
    found = st.perturb(Odd(), x, st.Ball("linf", 0.5), by=st.PGD(1, 1.0, keep="best"))
    assert found.flags.stopped.tolist() == [True, False]
    assert found.point[:, 0].tolist() == pytest.approx([0.4, 0.1])
    assert found.value is not None
    assert found.value.tolist() == pytest.approx([-0.16, -0.01])


@pytest.mark.parametrize("n", [1, 2])
def test_small_batches(setting: Any, n: int) -> None:
    model, x, y = setting
    whole = st.perturb(st.ce(model, y, stop=True), x, BALL)
    for first in range(0, 12, n):
        part = slice(first, first + n)
        found = st.perturb(st.ce(model, y[part], stop=True), x[part], BALL)
        assert torch.equal(found.flags.stopped, whole.flags.stopped[part])
        assert torch.allclose(found.point, whole.point[part], rtol=1e-9, atol=1e-12)


def test_empty_batch(setting: Any) -> None:
    _, x, y = setting

    def model(_: Tensor) -> Tensor:
        raise AssertionError("many a model cannot run an empty batch")

    for by in (st.PGD(), st.PGD(keep="best"), st.PGD(restarts=2)):
        found = st.perturb(
            st.ce(model, y[:0], stop=True), x[:0], BALL, by=by, start="sample", generator=st.generator(0)
        )
        assert found.point.shape == found.delta.shape == (0, 3, 8, 8)
        assert found.value is not None
        assert found.value.shape == found.size.shape == found.flags.stopped.shape == (0,)
        assert found.calls == st.Calls(0, 0)


@pytest.mark.parametrize("loss", [st.ce, st.margin, st.dlr])
def test_targeted_attacks_stop_at_the_target(setting: Any, loss: Any) -> None:
    model, x, y = setting
    target = (y + 1) % 4
    found = st.perturb(loss(model, target, targeted=True, stop=True), x, st.Ball("linf", 0.3, box=(0, 1)))
    reached = model(found.point).argmax(1) == target
    assert torch.equal(found.flags.stopped, reached)
    assert int(reached.sum()) > 0
    assert found.calls.forward < 64 * 11


def test_a_ball_over_the_whole_batch_drops_nothing(setting: Any) -> None:
    model, x, y = setting
    found = st.perturb(st.ce(model, y, stop=True), x, st.Ball("l2", 1.0, per="tensor", box=(0, 1)), by=st.PGD(3))
    assert not bool(found.flags.stopped.any())
    assert found.value is not None
    assert torch.allclose(found.value, st.ce(model, y)(found.point).detach())
