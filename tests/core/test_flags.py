"""What `perturb` says of gradients that vanish, are not finite, or are not there: the classic silent failures."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shaketable import core as st

Make = Callable[..., Any]
BALL = st.Ball("linf", 0.1)
X = torch.full((4, 3), 0.5)


def scaled(*factors: float) -> Callable[[Tensor, Tensor | None], Tensor]:
    """A linear objective whose gradient is another for each example."""
    slope = torch.tensor(factors)

    def value(point: Tensor, rows: Tensor | None) -> Tensor:
        return point.sum(1) * (slope if rows is None else slope[rows])

    return value


def test_examples_without_a_gradient_are_flagged() -> None:
    found = st.perturb(scaled(1, 0, 1e-13, 1e-11), X, BALL, by=st.PGD(2))
    assert found.flags.vanishing.tolist() == [False, True, True, False]
    assert found.flags.nonfinite.tolist() == [False] * 4
    assert found.delta[1].tolist() == [0, 0, 0]
    assert found.delta[2].tolist() == pytest.approx([0.05] * 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_examples_that_are_not_finite_are_flagged_and_stay(bad: float, norm: str) -> None:
    found = st.perturb(scaled(1, bad, 2, -1), X, st.Ball(norm, 1), by=st.PGD(3, momentum=0.5))
    assert found.flags.nonfinite.tolist() == [False, True, False, False]
    assert found.delta[1].tolist() == [0, 0, 0]
    assert bool(torch.isfinite(found.point).all())
    assert bool(found.delta[[0, 2, 3]].any(1).all())


def test_entries_that_are_not_finite_do_not_spoil_the_others() -> None:
    slopes = torch.tensor([[1.0, 1, 1], [math.nan, 1, -1], [1, math.inf, 1], [0, -math.inf, 1]])
    found = st.perturb(lambda p, rows: (p * slopes).sum(1), X, BALL, by=st.PGD(3, 1.0))
    expected = [[0.1, 0.1, 0.1], [0, 0.1, -0.1], [0.1, 0, 0.1], [0, 0, 0.1]]
    assert torch.allclose(found.delta, torch.tensor(expected))
    assert found.flags.nonfinite.tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    "objective",
    [
        scaled(0, 0, 0, 0),
        scaled(math.nan, math.nan, math.nan, math.nan),
        scaled(0, math.nan, math.inf, 0),
        lambda p, rows: p.detach().sum(1),
        lambda p, rows: torch.ones(4, requires_grad=True) * 2,
        lambda p, rows: (p.sum(1) > 0).float() + 0 * torch.ones(4, requires_grad=True),
    ],
)
def test_no_gradient_for_any_example_is_an_error(objective: Any) -> None:
    with pytest.raises(st.GradientError, match="gradient"):
        st.perturb(objective, X, BALL)


def test_a_detached_model_is_an_error(network: Make, images: Make, labels: Make) -> None:
    model = network()
    with pytest.raises(st.GradientError, match="detached value"):
        st.perturb(st.ce(lambda x: model(x).detach(), labels()), images(), BALL)
    with pytest.raises(st.GradientError, match="detached value"):
        st.perturb(st.ce(lambda x: torch.from_numpy(model(x).detach().numpy()), labels()), images(), BALL)


def test_a_rounding_defence_is_an_error_and_names_the_remedy(network: Make, images: Make, labels: Make) -> None:
    model = network()
    with pytest.raises(st.GradientError, match="without gradients"):
        st.perturb(st.ce(lambda x: model((x * 8).round() / 8), labels()), images(), BALL)


@pytest.mark.parametrize("stop", [False, True])
def test_a_model_that_gives_nan_is_an_error(images: Make, labels: Make, stop: bool) -> None:
    """Even though each example counts as misclassified: a broken model is no fooled one."""
    with pytest.raises(st.GradientError):
        st.perturb(st.ce(lambda x: x.flatten(1)[:, :4] * math.nan, labels() * 0 + 1, stop=stop), images(), BALL)


def test_finished_examples_need_no_gradient(images: Make) -> None:
    def model(x: Tensor) -> Tensor:
        return 0 * x.flatten(1)[:, :4] + torch.tensor([0.0, 0, 1, 0])  # always the class 2, and never a slope

    found = st.perturb(st.ce(model, torch.tensor([0, 1, 3, 0, 1, 3]), stop=True), images(), BALL)
    assert bool(found.flags.stopped.all())
    assert bool(found.flags.vanishing.all())
    with pytest.raises(st.GradientError):
        st.perturb(st.ce(model, torch.tensor([2] * 6), stop=True), images(), BALL)


def test_the_flags_of_restarts_are_of_all_starts() -> None:
    """The first start of row 0 is blind, the second sees; row 1 is broken at the first. A blind restart is no error."""
    looks: list[int] = []

    def value(point: Tensor, rows: Tensor | None) -> Tensor:
        looks.append(1)
        run = (len(looks) - 1) // 3
        return point.sum(1) * torch.tensor([[0, math.nan, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]][run])

    found = st.perturb(value, X, BALL, by=st.PGD(2, restarts=3), start="sample", generator=st.generator(0))
    assert len(looks) == 9
    assert found.flags.vanishing.tolist() == [False, False, False, True]
    assert found.flags.nonfinite.tolist() == [False, True, False, False]


def test_a_nan_value_is_never_the_best() -> None:
    def value(point: Tensor, rows: Tensor | None) -> Tensor:
        line = point.sum(1)
        return torch.where(line > 1.68, torch.full_like(line, math.nan), line)

    found = st.perturb(value, X, BALL, by=st.PGD(8, 0.25, keep="best"))
    assert found.value is not None
    assert bool((found.value <= 1.68).all())
    assert found.value.tolist() == pytest.approx([1.65] * 4, abs=1e-5)


def test_a_value_after_a_nan_is_the_best() -> None:
    def value(point: Tensor, rows: Tensor | None) -> Tensor:
        line = point.sum(1)
        return torch.where(line < 1.55, line * 1.0 + math.nan, line)  # its gradient is 1 all the same

    found = st.perturb(value, X, BALL, by=st.PGD(4, 0.25, keep="best"))
    assert found.value is not None
    assert found.value.tolist() == pytest.approx([1.8] * 4)
    assert bool(found.flags.nonfinite.all())
    blind = st.perturb(value, X, st.Ball("linf", 0.001), by=st.PGD(2, keep="best")).value
    assert blind is not None
    assert bool(torch.isneginf(blind).all())


def test_a_place_without_examples_has_one_flag() -> None:
    w = {"a": torch.ones(2), "b": torch.ones(2)}
    found = st.perturb(st.scalar(lambda p: p["a"].sum()), w, st.Ball("l2", 0.1, per="tensor"))
    assert found.flags.vanishing.tolist() == [False]
    assert found.delta["b"].tolist() == [0, 0]
    assert found.calls == st.Calls(10, 10)
    with pytest.raises(st.GradientError):
        st.perturb(st.scalar(lambda p: 0 * p["a"].sum()), w, st.Ball("l2", 0.1, per="tensor"))
