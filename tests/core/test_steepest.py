"""`Ball.steepest`: unit directions that no feasible direction beats on the linearised objective."""

import pytest
import torch
from torch import Tensor

from shaketable import core as st

NORMS, PERS = ("linf", "l2", "l1", "l0"), ("example", "element", "filter", "tensor", "all")
ORDER = {"linf": float("inf"), "l2": 2.0, "l1": 1.0, "l0": 0.0}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def groups(matrix: Tensor, per: str) -> Tensor:
    """The entries of a matrix that share a norm: (groups, entries)."""
    return {"element": matrix.reshape(-1, 1), "tensor": matrix.reshape(1, -1), "all": matrix.reshape(1, -1)}.get(
        per, matrix
    )


def unit(norm: str, count: int, shape: torch.Size, radius: int, seed: int) -> Tensor:
    """Random directions of unit size: (count, *shape), rows are groups."""
    raw = draw(seed, count, *shape)
    if norm == "linf":
        return raw.sign()
    if norm == "l0":
        order = raw.abs().argsort(-1, descending=True).argsort(-1)
        return torch.where(order < radius, raw.sign(), 0.0)
    return raw / torch.linalg.vector_norm(raw, ORDER[norm], -1, keepdim=True)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("per", PERS)
def test_steepest_has_unit_size_and_beats_random_directions(norm: str, per: str) -> None:
    gradient = draw(3, 4, 5)
    radius = 1 if norm == "l0" and per == "element" else 2
    ball, zero = st.Ball(norm, radius, per=per), torch.zeros(4, 5, dtype=torch.float64)
    found = ball.steepest(gradient, zero, zero)
    rows, slopes = groups(found, per), groups(gradient, per)
    expected = torch.full((len(rows),), float(radius) if norm == "l0" else 1.0, dtype=torch.float64)
    assert torch.allclose(torch.linalg.vector_norm(rows, ORDER[norm], 1), expected, rtol=1e-12)
    rivals = unit(norm, 500, slopes.shape, radius, 4)
    assert bool(((rows * slopes).sum(1) >= (rivals * slopes).sum(2).max(0).values - 1e-12).all())


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_is_zero_without_a_gradient_and_outside_the_mask(norm: str) -> None:
    mask = torch.tensor([1, 1, 0, 0])
    zero = torch.zeros(2, 4)
    ball = st.Ball(norm, 2, mask=mask).on(zero)
    found = ball.steepest(torch.tensor([[0.0, 0, 9, 9], [1, -2, 9, 9]]), zero, zero)
    assert found[0].tolist() == [0, 0, 0, 0]
    assert found[1, 2:].tolist() == [0, 0]
    assert float(found[1, 1]) < 0


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_l2_steepest_at_any_scale_of_float32(scale: float) -> None:
    gradient = torch.tensor([[3.0, 4.0]]) * scale
    found = st.Ball("l2", 1.0).steepest(gradient, torch.zeros(1, 2), torch.zeros(1, 2))
    assert torch.allclose(found, torch.tensor([[0.6, 0.8]]), rtol=1e-6)


@pytest.mark.parametrize(("norm", "radius", "expected"), [("l1", 1.0, [0, 0, -1, 0]), ("l0", 2, [0, 1, -1, 0])])
def test_steepest_passes_over_entries_that_the_box_holds(norm: str, radius: float, expected: list[float]) -> None:
    origin, delta = torch.tensor([[1.0, 0.5, 0.5, 0.2]]), torch.tensor([[0.0, 0, 0, -0.2]])
    gradient = torch.tensor([[9.0, 2, -3, -8]])
    found = st.Ball(norm, radius, box=(0, 1)).steepest(gradient, origin, delta)
    assert found.tolist() == [expected]


def test_l1_steepest_takes_the_first_of_equals() -> None:
    gradient = torch.tensor([[1.0, -2, 2, -2], [0, 0, 0, 0], [0, 0, -1, 1]])
    found = st.Ball("l1", 1.0).steepest(gradient, torch.zeros(3, 4), torch.zeros(3, 4))
    assert found.tolist() == [[0, -1, 0, 0], [0, 0, 0, 0], [0, 0, -1, 0]]
