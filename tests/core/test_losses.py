"""Per-example losses against plain formulas, and the objectives made of them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shaketable import core as st

Make = Callable[..., Any]
LOGITS = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
Y = torch.tensor([0, 1, 2, 3, 4, 0, 1])


def rows() -> list[tuple[list[float], int]]:
    return list(zip(LOGITS.tolist(), Y.tolist(), strict=True))


def test_cross_entropy() -> None:
    expected = [math.log(sum(math.exp(v) for v in row)) - row[y] for row, y in rows()]
    assert st.cross_entropy(LOGITS, Y).tolist() == pytest.approx(expected, rel=1e-12)


def test_logit_margin() -> None:
    expected = [max(v for k, v in enumerate(row) if k != y) - row[y] for row, y in rows()]
    found = st.logit_margin(LOGITS, Y)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(found > 0, LOGITS.argmax(1) != Y)


def test_difference_of_logits_ratio() -> None:
    expected = []
    for row, y in rows():
        first, _, third = sorted(row, reverse=True)[:3]
        expected.append((max(v for k, v in enumerate(row) if k != y) - row[y]) / (first - third))
    found = st.difference_of_logits_ratio(LOGITS, Y)
    assert found.tolist() == pytest.approx(expected, rel=1e-10)
    again = st.difference_of_logits_ratio(100 * LOGITS + 7, Y)
    assert torch.allclose(again, found, rtol=1e-9)


def test_divergence() -> None:
    other = LOGITS.flip(0) * 0.5
    found = st.divergence(LOGITS, other)
    expected = F.kl_div(LOGITS.log_softmax(1), other.softmax(1), reduction="none").sum(1)
    assert torch.allclose(found, expected, rtol=1e-10)
    assert bool((found > 0).all())
    assert torch.equal(st.divergence(LOGITS, LOGITS), torch.zeros(7, dtype=torch.float64))


def identity(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("make", "loss"), [(st.ce, st.cross_entropy), (st.margin, st.logit_margin), (st.dlr, st.difference_of_logits_ratio)]
)
def test_objectives_index_their_labels_and_turn_for_targets(make: Any, loss: Any) -> None:
    some = torch.tensor([4, 0, 2])
    assert torch.equal(make(identity, Y)(LOGITS, None), loss(LOGITS, Y))
    assert torch.equal(make(identity, Y)(LOGITS[some], some), loss(LOGITS[some], Y[some]))
    assert torch.equal(make(identity, Y, targeted=True)(LOGITS, None), -loss(LOGITS, Y))
    for targeted in (False, True):
        value, done = make(identity, Y, targeted=targeted, stop=True).judge(LOGITS[some], some)
        assert torch.equal(value, (-1 if targeted else 1) * loss(LOGITS[some], Y[some]))
        assert torch.equal(done, (LOGITS[some].argmax(1) == Y[some]) == targeted)
    assert make(identity, Y).judge(LOGITS)[1] is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_every_integer_type(dtype: torch.dtype) -> None:
    assert torch.equal(st.ce(identity, Y.to(dtype))(LOGITS), st.cross_entropy(LOGITS, Y))


def test_the_values_are_those_of_each_example_alone() -> None:
    """So that the gradient of their sum is each example's own, and dropping some changes nothing for the others."""
    for make in (st.ce, st.margin, st.dlr):
        point = LOGITS.clone().requires_grad_()
        (whole,) = torch.autograd.grad(make(identity, Y)(point).sum(), point)
        for row in range(7):
            part = LOGITS[row : row + 1].clone().requires_grad_()
            (own,) = torch.autograd.grad(make(identity, Y[row : row + 1])(part).sum(), part)
            assert torch.allclose(own[0], whole[row], rtol=1e-12)


def test_kl_has_no_slope_where_it_begins_and_asks_for_noise(network: Make, images: Make) -> None:
    model, x = network(), images()
    loss = st.kl(model, x)
    assert loss.start == st.Gaussian(1e-3)
    assert float(loss(x).detach().abs().max()) <= 1e-6
    point = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(point).sum(), point)
    assert float(slope.abs().max()) < 1e-5
    found = st.perturb(loss, x, st.Ball("linf", 0.05, box=(0, 1)), generator=st.generator(0))
    expected = F.kl_div(model(found.point).log_softmax(1), model(x).softmax(1), reduction="none").sum(1)
    assert torch.allclose(loss(found.point).detach(), expected.detach(), atol=1e-6)
    assert bool((expected > 1e-3).all())


def test_kl_of_another_batch_is_an_error(network: Make, images: Make) -> None:
    with pytest.raises(st.InputError, match="x: expected one for each of the 4"):
        st.kl(network(), images())(images(4))


def test_scalar() -> None:
    assert st.scalar(lambda w: w.sum())(torch.ones(3)).shape == (1,)
    assert st.scalar(lambda w: w.sum().reshape(1, 1))(torch.ones(3)).tolist() == [3]
    with pytest.raises(st.InputError, match="function: expected one number"):
        st.scalar(lambda w: w)(torch.ones(3))
