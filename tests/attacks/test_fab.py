"""FAB against the known minimum norms of linear models, and what it promises as an attack within a ball."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from shaketable.attacks import evaluate
from shaketable.attacks.fab import FABAttack, fab
from shaketable.core import Ball, GradientError, InputError, generator

Make = Callable[..., Any]
DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}
norms = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
ways = pytest.mark.parametrize("targeted", [False, True])


def linear(classes: int = 4) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor, Tensor]:
    """A linear model in float64, images in the middle of the box, the model's labels, and its weights."""
    source = torch.Generator().manual_seed(0)
    weight = 0.3 * torch.randn(classes, 20, generator=source, dtype=torch.float64)
    x = 0.3 + 0.4 * torch.rand(25, 20, generator=source, dtype=torch.float64)
    return lambda z: z @ weight.T, x, (x @ weight.T).argmax(1), weight


@norms
@ways
def test_reaches_the_minimum_norm_of_a_linear_model(norm: Any, targeted: bool) -> None:
    """|logit difference| over the dual norm of the weights' difference, for the nearest class."""
    model, x, y, weight = linear()
    logits = model(x)
    gap = logits.gather(1, y[:, None]) - logits
    slopes = torch.linalg.vector_norm(weight[None] - weight[y][:, None], DUAL[norm], 2)
    nearest = (gap / slopes).scatter(1, y[:, None], torch.inf).amin(1)
    found = fab(model, x, y, norm=norm, targeted=targeted, steps=10, box=None)
    assert bool(found.found.all())
    assert torch.allclose(found.norms, nearest, rtol=1e-6, atol=0)
    assert bool((model(found.points).argmax(1) != y).all())


@norms
def test_reaches_the_minimum_norm_within_a_box(norm: Any) -> None:
    """Two classes and images near the box's walls: the shortest shift is that of a linear program (l2: of a bisection)."""
    _, x, _, weight = linear()
    x = x.where(x < 0.5, 1.0).where(x > 0.4, 0.0)
    model = lambda z: z @ (4 * weight[:2]).T  # noqa: E731
    y = model(x).argmax(1)
    found = fab(model, x, y, norm=norm, steps=30)
    assert found.points.min() >= 0
    assert found.points.max() <= 1
    w = 4 * (weight[1] - weight[0])
    for i in range(8):
        best = _shortest_l2(w, x[i]) if norm == "l2" else _by_linear_program(norm, w.numpy(), x[i].numpy())
        assert float(found.norms[i]) >= best * (1 - 1e-9)
        assert float(found.norms[i]) == pytest.approx(best, rel=1e-3 if norm == "l1" else 1e-6)


def _by_linear_program(norm: str, w: np.ndarray, x: np.ndarray) -> float:
    """The norm of the shortest shift t of x in the box onto the plane of normal w through 0."""
    m, eye = len(w), np.eye(len(w))
    if norm == "l1":  # t = p - q
        bounds = [*((0, 1 - v) for v in x), *((0, v) for v in x)]
        return linprog(np.ones(2 * m), A_eq=np.concatenate([w, -w])[None], b_eq=[-x @ w], bounds=bounds).fun
    above = np.block([[eye, -np.ones((m, 1))], [-eye, -np.ones((m, 1))]])  # t, and a level above all |t|
    bounds = [*((-v, 1 - v) for v in x), (0, None)]
    plane = np.append(w, 0.0)[None]
    return linprog(np.eye(m + 1)[m], A_ub=above, b_ub=np.zeros(2 * m), A_eq=plane, b_eq=[-x @ w], bounds=bounds).fun


def _shortest_l2(w: Tensor, x: Tensor) -> float:
    """The length of clip(-price w) that meets the plane, by bisection of the price."""
    low, high, gap = -1e3, 1e3, float(x @ w)
    for _ in range(200):
        price = (low + high) / 2
        t = torch.minimum(torch.maximum(-price * w, -x), 1 - x)
        low, high = (price, high) if gap + float(w @ t) > 0 else (low, price)
    return float(torch.minimum(torch.maximum(-low * w, -x), 1 - x).norm())


@ways
def test_passes_are_counted(problem: Make, targeted: bool) -> None:
    p = problem(12)
    seen: list[int] = []

    def model(z: Tensor) -> Tensor:
        seen.append(len(z))
        return p.model(z)

    right = int((p.model(p.x).argmax(1) == p.y).sum())
    found = fab(model, p.x, p.y, norm="l2", steps=4, targeted=targeted, search=0)
    runs, backward = (3, 1) if targeted else (1, 3)
    assert found.calls.forward == sum(seen) == 12 + right * runs * 4 * 2
    assert found.calls.backward == right * runs * 4 * backward


@norms
@ways
def test_points_lie_in_the_ball_or_are_the_images(problem: Make, norm: Any, targeted: bool) -> None:
    p = problem()
    radius = {"linf": 0.02, "l2": 0.15, "l1": 1.0}[norm]
    minimal = fab(p.model, p.x, p.y, norm=norm, targeted=targeted, steps=8)
    found = FABAttack(targeted, steps=8)(p.model, p.x, p.y, Ball(norm, radius, box=(0, 1)), generator=generator(0))
    near = minimal.norms <= radius
    assert torch.equal(found.flags.stopped, near)
    assert 0 < int(near.sum()) < len(near)
    assert torch.equal(found.point[near], minimal.points[near])
    assert torch.equal(found.point[~near], p.x[~near])
    assert bool((p.model(found.point).argmax(1) != p.y)[near].all())
    assert int(minimal.robust(radius).hits) == int((~near).sum())


def test_until_fooled_gives_the_same_verdicts_for_less(problem: Make) -> None:
    p = problem()
    ball = Ball("linf", 0.02, box=(0, 1))
    for attack in (FABAttack(steps=8), FABAttack(True, steps=8)):
        whole = attack(p.model, p.x, p.y, ball, generator=generator(0))
        quick = attack.until_fooled()(p.model, p.x, p.y, ball, generator=generator(0))
        assert torch.equal(whole.flags.stopped, quick.flags.stopped)
        assert quick.calls.backward < 0.8 * whole.calls.backward
        assert bool((quick.size <= 0.02)[quick.flags.stopped].all())
        assert bool((p.model(quick.point).argmax(1) != p.y)[quick.flags.stopped].all())


def test_restarts_find_no_less_and_a_seed_is_a_result() -> None:
    """On a function with many bends, where the first boundary met is not always the nearest."""
    source = torch.Generator().manual_seed(3)
    inner, outer = 8 * torch.randn(6, 16, generator=source), torch.randn(16, 3, generator=source)
    model = lambda z: torch.tanh((z - 0.5) @ inner) @ outer  # noqa: E731
    x = torch.rand(30, 6, generator=source)
    y = model(x).argmax(1)
    one = fab(model, x, y, norm="l2", steps=5)
    three = fab(model, x, y, norm="l2", steps=5, restarts=3, seed=1)
    assert bool((three.norms <= one.norms).all())
    assert int((three.norms < 0.95 * one.norms).sum()) >= 3
    assert torch.equal(three.points, fab(model, x, y, norm="l2", steps=5, restarts=3, seed=1).points)
    assert not torch.equal(three.points, fab(model, x, y, norm="l2", steps=5, restarts=3, seed=2).points)


@norms
def test_pixels_outside_a_region_stay_bit_identical(problem: Make, norm: Any) -> None:
    p = problem()
    mask = torch.zeros(12, 12)
    mask[2:8, 3:9] = 1
    minimal = fab(p.model, p.x, p.y, norm=norm, steps=6, restarts=2, mask=mask)
    radius = float(minimal.norms[minimal.norms > 0].median())
    ball = Ball(norm, radius, box=(0, 1), mask=mask)
    inside = FABAttack(steps=6, restarts=2)(p.model, p.x, p.y, ball, generator=generator(0))
    for points in (minimal.points, inside.point):
        assert torch.equal(points[..., mask == 0], p.x[..., mask == 0])
        assert not torch.equal(points, p.x)


def test_radii_may_differ(problem: Make) -> None:
    p = problem(20)
    minimal = fab(p.model, p.x, p.y, norm="l2", steps=6)
    radii = minimal.norms * torch.where(torch.arange(20) % 2 == 0, 1.1, 0.9)
    ball = Ball("l2", radii, box=(0, 1))
    found = FABAttack(steps=6)(p.model, p.x, p.y, ball, generator=generator(0))
    wrong = minimal.norms == 0
    assert torch.equal(found.flags.stopped, (torch.arange(20) % 2 == 0) | wrong)


def test_evaluate_agrees_with_the_minimum_norms(problem: Make) -> None:
    p = problem()
    minimal = fab(p.model, p.x, p.y, steps=8)
    found = evaluate(p.model, p.x, p.y, within=Ball("linf", 0.02, box=(0, 1)), attack=FABAttack(steps=8), seed=0)
    assert found.robust.hits == minimal.robust(0.02).hits
    assert not found.findings


def test_a_model_without_gradients_is_refused(problem: Make) -> None:
    p = problem()
    for model in (lambda z: z.detach().flatten(1)[:, :4], lambda z: torch.round(z).flatten(1)[:, :4]):
        y = model(p.x).argmax(1)
        with pytest.raises(GradientError):
            fab(model, p.x, y, steps=2)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"norm": "l0"}, "norm"),
        ({"steps": 0}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"targets": 0}, "targets"),
        ({"search": -1}, "search"),
        ({"beta": 1.5}, "beta"),
        ({"eta": 0.5}, "eta"),
        ({"alpha_max": -0.1}, "alpha_max"),
        ({"reach": -1.0}, "radius"),
        ({"y": torch.full((40,), 4)}, "y"),
        ({"y": torch.full((40,), -1)}, "y"),
        ({"y": torch.zeros(39, dtype=torch.long)}, "y"),
        ({"x": torch.full((40, 1, 12, 12), 200.0)}, "origin"),
        ({"x": torch.full((40, 1, 12, 12), float("nan"))}, "x"),
        ({"model": lambda z: z}, "model"),
        ({"model": lambda z: z.flatten(1)[:, :1]}, "model"),
    ],
)
def test_mistakes_are_named(problem: Make, change: dict[str, Any], argument: str) -> None:
    p = problem()
    given = {"model": p.model, "x": p.x, "y": p.y} | change
    with pytest.raises(InputError) as caught:
        fab(given.pop("model"), given.pop("x"), given.pop("y"), **given)
    assert caught.value.argument == argument
    assert caught.value.remedy


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_it_found_fools_the_model_alone_and_in_double_precision(norm: Any) -> None:
    """Points are brought to the boundary, but not within the rounding that changes with the size of a batch."""
    for seed in range(4):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(80, 32), nn.ReLU(), nn.Linear(32, 5)).eval()
        x = torch.rand(16, 1, 8, 10)
        with torch.no_grad():
            y = model(x).argmax(1)
            found = fab(model, x, y, norm=norm, steps=20)
            alone = torch.cat([model(point[None]) for point in found.points]).argmax(1)
            double = model.double()(found.points.double()).argmax(1)
        assert bool(found.found.all())
        assert not bool((alone == y).any())
        assert not bool((double == y).any())
