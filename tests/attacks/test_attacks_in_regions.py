"""Whatever an attack does, it stays where it may: in a drawn region of each image, in balls of drawn radii, in the box."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shaketable.attacks import ATTACKS, APGDAttack, AutoAttack, FABAttack, PGDAttack, RegionalAttack, SquareAttack
from shaketable.attacks.twin import quick_twin
from shaketable.core import Ball, generator

Make = Callable[..., Any]
SHORT: dict[str, Any] = {
    "apgd": APGDAttack(steps=4),
    "autoattack": AutoAttack(
        (APGDAttack(steps=2), FABAttack(targeted=True, steps=2, targets=2), SquareAttack(queries=8))
    ),
    "fab": FABAttack(steps=3),
    "pgd": PGDAttack(steps=4, restarts=2),
    "regional": RegionalAttack(steps=6, step=0.1),
    "square": SquareAttack(queries=30),
}
RADII = {"linf": 0.2, "l2": 1.5, "l1": 8.0, "l0": 12.0}


def _masks(draw: torch.Generator, n: int) -> Tensor:
    """Pixels at random, or a rectangle, or nothing, or everything."""
    share = torch.rand(n, 1, 1, 1, generator=draw).mul(1.4).sub(0.2)
    pixels = torch.rand(n, 1, 12, 12, generator=draw) < share
    ends = torch.randint(0, 13, (n, 4, 1, 1, 1), generator=draw)
    lines, columns = torch.arange(12)[None, :, None], torch.arange(12)[None, None]
    top, bottom, left, right = ends.unbind(1)
    rectangle = (lines >= top) & (lines < bottom) & (columns >= left) & (columns < right)
    return torch.where(torch.rand(n, 1, 1, 1, generator=draw) < 0.5, pixels, rectangle)


def _stays(problem: Make, name: str, norm: Any, seed: int, n: int) -> None:
    attack = SHORT[name] if name in SHORT else ATTACKS[name]()
    p, draw = problem(n), generator(seed, name, norm)
    x = (torch.rand(p.x.shape, generator=draw) * 1.5 - 0.25).clamp(0, 1)  # many at the box's ends
    mask, radius = _masks(draw, n), RADII[norm] * torch.rand(n, generator=draw)
    radius = radius.round() if norm == "l0" else radius
    ball, run = Ball(norm, radius, box=(0, 1), mask=mask), attack if seed % 2 else attack.until_fooled()
    with torch.no_grad():
        y = p.model(x).argmax(1)
    point = run(quick_twin(p.model) if seed % 3 else p.model, x, y, ball, generator=generator(seed)).point
    assert torch.equal(point[~mask], x[~mask])
    assert float(point.min()) >= 0
    assert float(point.max()) <= 1
    assert not torch.equal(point, x)
    size: Any = Ball(norm, 1.0).size(point.double() - x.double(), x.double())
    rounding = {"linf": 1e-7, "l2": 1e-6, "l1": 1e-5, "l0": 0.0}[norm]  # of x + delta, in float32
    assert bool((size <= radius.double() * (1 + 1e-6) + rounding).all())


def _suited(name: str) -> list[str]:
    return sorted(set(RADII) & set(getattr(SHORT.get(name) or ATTACKS[name](), "norms", RADII)))


PAIRS = [(name, norm) for name in sorted(ATTACKS) for norm in _suited(name)]


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_nothing_outside_changes_and_all_is_in_ball_and_box(problem: Make, name: str, norm: str) -> None:
    for seed in range(2):
        _stays(problem, name, norm, seed, 30)


@pytest.mark.full
@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_nothing_outside_changes_in_1e5_drawn_cases(problem: Make, name: str, norm: str) -> None:
    """3500 images for each pair of an attack and a norm, each image with a region and a radius of its own."""
    for seed in range(2, 9):
        _stays(problem, name, norm, seed, 500)


def test_they_are_enough_cases() -> None:
    assert 7 * 500 * len(PAIRS) >= 10**5
