"""The shifts onto a hyperplane within bounds: feasible, and as short as SciPy finds them."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize_scalar
from torch import Tensor

from shaketable.attacks.hyperplane import SHIFTS

norms = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
ORDER = {"linf": math.inf, "l2": 2.0, "l1": 1.0}


def _shift(norm: str, w: Tensor, offset: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return SHIFTS[norm](w, offset, low, high)


def _shortest(norm: str, w: np.ndarray, offset: float, low: np.ndarray, high: np.ndarray) -> float:
    """The length of the shortest shift: by linear programs, for l2 by the maximum of its one-dimensional dual."""
    m = len(w)
    if norm == "l2":

        def negated_dual(price: float) -> float:  # min over t in the box of |t|^2 / 2 + price (w t + offset)
            t = np.clip(-price * w, low, high)
            return -float(t @ t / 2 + price * (w @ t + offset))

        span = 1e3 * (1 + abs(offset))
        best = minimize_scalar(negated_dual, bounds=(-span, span), method="bounded", options={"xatol": 1e-13})
        return math.sqrt(max(0.0, -2 * best.fun))
    if norm == "l1":  # t = p - q
        cost, equal = np.ones(2 * m), np.concatenate([w, -w])[None]
        bounds = [(0, h) for h in high] + [(0, -lo) for lo in low]
        return linprog(cost, A_eq=equal, b_eq=[-offset], bounds=bounds).fun
    cost, equal = np.eye(m + 1)[m], np.append(w, 0.0)[None]  # t, and a level above all |t|
    above = np.block([[np.eye(m), -np.ones((m, 1))], [-np.eye(m), -np.ones((m, 1))]])
    bounds = [*zip(low, high, strict=True), (0, None)]
    return linprog(cost, A_ub=above, b_ub=np.zeros(2 * m), A_eq=equal, b_eq=[-offset], bounds=bounds).fun


numbers = st.integers(-8, 8).map(lambda k: k / 4)  # ties, zeros and exact sums
rooms = st.integers(0, 4).map(lambda k: k / 4)
problems = st.integers(1, 6).flatmap(
    lambda m: st.tuples(*[st.lists(kind, min_size=m, max_size=m) for kind in (numbers, rooms, rooms)], numbers)
)


@norms
@given(problem=problems)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_feasible_and_shortest(norm: str, problem: Any) -> None:
    w, low, high = (np.asarray(part, dtype=float) for part in problem[:3])
    low, offset = -low, float(problem[3])
    bounds = torch.from_numpy(low)[None], torch.from_numpy(high)[None]
    t = _shift(norm, torch.from_numpy(w)[None], torch.tensor([offset]).double(), *bounds)[0].numpy()
    assert (t >= low).all()
    assert (t <= high).all()
    assert (t[w == 0] == 0).all()
    span = np.where(w > 0, low, high) @ w, np.where(w > 0, high, low) @ w
    left = offset + w @ t
    if span[0] <= -offset <= span[1]:
        assert abs(left) <= 1e-12
        assert np.linalg.norm(t, ORDER[norm]) == pytest.approx(_shortest(norm, w, offset, low, high), abs=1e-6)
    else:  # out of reach: the nearest corner
        assert abs(left) == pytest.approx(min(abs(offset + span[0]), abs(offset + span[1])), abs=1e-12)


@norms
def test_large_problems_lie_on_the_plane_and_satisfy_the_optimality_conditions(norm: str) -> None:
    source = torch.Generator().manual_seed(1)
    w = torch.randn(8, 500, generator=source, dtype=torch.float64)
    low, high = (torch.rand(2, 8, 500, generator=source, dtype=torch.float64) for _ in range(2))
    offset = 60 * torch.randn(2, 8, generator=source, dtype=torch.float64)
    t = _shift(norm, w, offset, -low, high)
    assert t.shape == (2, 8, 500)
    assert (offset + (w * t).sum(-1)).abs().max() < 1e-11
    room = torch.where(t > 0, high, low)
    free = (t.abs() < room) & (t != 0)
    assert bool((t * w * offset[..., None] <= 0).all())
    for i in range(2):
        for j in range(8):
            inner, outer = t[i, j][free[i, j]].abs(), t[i, j].abs()
            steep = w[j].abs()
            if norm == "linf":  # those with room left share the level, which nobody exceeds
                assert inner.max() - inner.min() < 1e-12
                assert outer.max() <= inner.max() + 1e-12
            elif norm == "l2":  # those with room left move in proportion to their slope
                rate = inner / steep[free[i, j]]
                assert rate.max() - rate.min() < 1e-12
            else:  # one entry at most is left with part of its room; those that move are steeper than those that do not
                assert len(inner) <= 1
                assert steep[outer > 0].min() >= steep[outer == 0].max() - 1e-12


@norms
def test_without_bounds_it_is_the_offset_over_the_dual_norm(norm: str) -> None:
    source = torch.Generator().manual_seed(2)
    w, offset = torch.randn(30, 40, generator=source), torch.randn(30, generator=source)
    w[:, 7] = 0.0
    w[3], offset[4] = 0.0, 0.0
    wide = torch.full_like(w, torch.inf)
    t = _shift(norm, w, offset, -wide, wide)
    assert bool(torch.isfinite(t[torch.arange(30) != 3]).all())
    assert not t[3].any()
    assert not t[4].any()
    assert not t[:, 7].any()
    dual = {"linf": 1.0, "l2": 2.0, "l1": math.inf}[norm]
    rest = torch.arange(30) != 3
    expected = offset.abs() / torch.linalg.vector_norm(w, dual, 1)
    assert torch.allclose(torch.linalg.vector_norm(t, ORDER[norm], 1)[rest], expected[rest], rtol=1e-5)


@norms
def test_slopes_whose_squares_underflow_are_no_zeros(norm: str) -> None:
    w = 1e-30 * torch.tensor([[1.0, -2.0, 3.0]])
    t = _shift(norm, w, torch.tensor([1e-30]), -torch.ones(1, 3), torch.ones(1, 3))
    assert float((w.double() * t.double()).sum()) == pytest.approx(-1e-30, rel=1e-5)
