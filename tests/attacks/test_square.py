"""Square against known optima, its published schedule and its rules."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shaketable.attacks.square import SquareAttack, square
from shaketable.attacks.square_masses import window
from shaketable.attacks.square_moves import HALVED, share_of
from shaketable.core import Ball, InputError, generator, logit_margin

Make = Callable[..., Any]
EPS = {"linf": 0.015, "l2": 0.12, "l1": 1.0}


def _linear(n: int = 6) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor, Tensor]:
    """A linear model of (n, 1, 6, 6) images, the images, labels, and along which vector the margin rises."""
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 36, generator=source, dtype=torch.float64)
    x = 0.4 + 0.2 * torch.rand(n, 1, 6, 6, generator=source, dtype=torch.float64)
    y = torch.randint(2, (n,), generator=source)
    v = (weight[1] - weight[0]) * torch.where(y == 0, 1.0, -1.0)[:, None]
    return lambda z: z.flatten(1) @ weight.T, x, y, v.reshape(n, 1, 6, 6)


def test_finds_the_signs_of_a_linear_model() -> None:
    """The optimum is eps times the signs of v; images must not count as fooled, so that the search goes on."""
    model, x, y, v = _linear()
    found = SquareAttack(queries=700)(model, x, y, Ball("linf", 0.05, box=(0, 1)), generator=generator(0))
    rise = ((found.point - x) * v).flatten(1).sum(1)
    assert bool((rise >= 0.98 * 0.05 * v.abs().flatten(1).sum(1)).all())
    assert ((found.point - x).sign() == v.sign()).double().mean() > 0.95
    assert torch.allclose((found.point - x).abs(), torch.tensor(0.05).double(), atol=1e-6)
    assert (found.calls.forward, found.calls.backward) == (700 * 6, 0)


@pytest.mark.parametrize("norm", sorted(EPS))
def test_a_model_that_writes_into_its_images_changes_nothing(norm: Any) -> None:
    model, x, y, _ = _linear()

    def writing(z: Tensor) -> Tensor:
        logits = model(z)
        z.zero_()
        return logits

    ball = Ball(norm, EPS[norm], box=(0, 1))
    plain, found = (SquareAttack(queries=60)(m, x.clone(), y, ball, generator=generator(0)) for m in (model, writing))
    assert torch.equal(plain.point, found.point)


@pytest.mark.parametrize(("norm", "eps", "share"), [("l2", 0.5, 0.6), ("l1", 1.0, 0.4)])
def test_comes_near_the_optimum_of_a_linear_model(norm: Any, eps: float, share: float) -> None:
    """Windows have three pixels a side or more, so neither l2's direction nor l1's one pixel is reached; draws are far."""
    model, x, y, v = _linear()
    ball = Ball(norm, eps, box=(-9, 9))
    found = SquareAttack(queries=400)(model, x, y, ball, generator=generator(0))
    flat = v.flatten(1)
    best = eps * (flat.norm(dim=1) if norm == "l2" else flat.abs().amax(1))
    rise = ((found.point - x) * v).flatten(1).sum(1)
    assert bool((rise >= share * best).all())
    assert bool((rise <= best * (1 + 1e-9)).all())
    drawn = ((ball.on(x).sample(x, generator(1)) * v).flatten(1).sum(1)).abs()  # pyright: ignore
    assert bool((rise > 2 * drawn).all())


@pytest.mark.parametrize("norm", sorted(EPS))
def test_the_margin_only_rises(problem: Make, norm: Any) -> None:
    p, seen = problem(10), []

    def watched(z: Tensor) -> Tensor:
        logits = p.model(z).detach().double().round(decimals=6)  # no gradient anywhere
        seen.append(logit_margin(logits, p.y))
        return logits

    found = SquareAttack(queries=60)(watched, p.x, p.y, Ball(norm, 2 * EPS[norm], box=(0, 1)), generator=generator(0))
    assert found.value is not None
    assert torch.allclose(found.value.double(), torch.stack(seen).amax(0), atol=1e-5)
    assert torch.allclose(logit_margin(watched(found.point), p.y), found.value.double(), atol=1e-5)
    assert bool((found.value > seen[0]).float().mean() > 0.5)
    assert len(seen) == 61


@pytest.mark.parametrize("norm", sorted(EPS))
def test_dropping_fooled_images_changes_nothing(problem: Make, norm: Any) -> None:
    """Every image has its own draws, so those that are left see the same, whoever has gone."""
    p, run = problem(16, dtype=torch.float64), [0]

    def counted(z: Tensor) -> Tensor:
        run[0] += len(z)
        return p.model(z)

    ball = Ball(norm, EPS[norm], box=(0, 1))
    loud = SquareAttack(queries=40)(p.model, p.x, p.y, ball, generator=generator(2))
    quick = SquareAttack(queries=40).until_fooled()(counted, p.x, p.y, ball, generator=generator(2))
    fooled = p.model(loud.point).argmax(1) != p.y
    assert torch.equal(quick.flags.stopped, fooled)
    assert torch.equal(p.model(quick.point).argmax(1) != p.y, fooled)
    assert 0 < int(fooled.sum()) < 16
    assert torch.allclose(quick.point[~fooled], loud.point[~fooled], atol=1e-12)
    assert quick.calls.forward == run[0] < loud.calls.forward


@pytest.mark.parametrize("norm", sorted(EPS))
def test_a_mask_confines_the_perturbation(problem: Make, norm: Any) -> None:
    p = problem(8)
    mask = torch.zeros(12, 12)
    mask[3:8, 2:9] = 1
    mask[5, 5] = 0
    point = SquareAttack(queries=25)(
        p.model, p.x, p.y, Ball(norm, 20 * EPS[norm], box=(0, 1), mask=mask), generator=generator(0)
    ).point
    assert torch.equal(point[..., mask == 0], p.x[..., mask == 0])
    changed = (point != p.x)[..., mask == 1].float().mean()
    assert changed > 0.5 if norm != "l1" else changed > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("times", [1, 40])
@pytest.mark.parametrize("norm", sorted(EPS))
def test_low_precision_stays_in_the_ball_and_climbs(norm: Any, times: int, dtype: torch.dtype) -> None:
    """Points may leave the ball by the rounding of x + delta. Where that is far less than the ball, the rise is float64's."""
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 768, generator=source).to(dtype)
    x = torch.rand(8, 3, 16, 16, generator=source).to(dtype)
    y = torch.arange(8) % 3
    radius = times * EPS[norm] * torch.tensor([0.0, *[1.0] * 7])
    linear = lambda z: z.flatten(1).double() @ weight.double().T  # noqa: E731

    def run(images: Tensor) -> Any:
        ball = Ball(norm, radius, box=(0, 1))
        return SquareAttack(queries=60)(linear, images, y, ball, generator=generator(0))

    found, exact = run(x), run(x.double())
    assert found.point.dtype == found.delta.dtype == dtype
    assert bool(torch.isfinite(found.point).all())
    assert not bool(found.flags.nonfinite.any())
    assert float(found.point.min()) >= 0
    assert float(found.point.max()) <= 1
    order, entries = {"linf": (torch.inf, 1.0), "l2": (2.0, 768**0.5), "l1": (1.0, 768.0)}[norm]
    unit = torch.finfo(dtype).eps
    size = torch.linalg.vector_norm(found.delta.double().flatten(1), order, 1)
    assert bool((size <= radius * (1 + 2 * unit)).all())
    size = torch.linalg.vector_norm((found.point.double() - x.double()).flatten(1), order, 1)
    assert bool((size <= radius * (1 + 4 * unit) + entries * unit).all())
    assert torch.equal(found.point[0], x[0])
    if times > 1:
        before = logit_margin(linear(x), y)
        rise, wanted = (logit_margin(linear(f.point), y) - before for f in (found, exact))
        assert bool((rise[1:] > 0.8 * wanted[1:]).all())


def test_every_image_has_its_own_radius() -> None:
    model, x, y, v = _linear()
    eps = torch.linspace(0, 0.05, 6, dtype=torch.float64)
    found = SquareAttack(queries=300)(model, x, y, Ball("linf", eps, box=(0, 1)), generator=generator(0))
    rise = ((found.point - x) * v).flatten(1).sum(1)
    assert torch.allclose(rise, eps * v.abs().flatten(1).sum(1), rtol=0.06)


def test_the_schedule_is_the_published_one() -> None:
    assert HALVED == (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
    at = {0: 1, 10: 1, 11: 2, 51: 4, 201: 8, 501: 16, 1001: 32, 2001: 64, 4001: 128, 6001: 256, 8001: 512}
    for query, part in at.items():
        assert share_of(query, 10000, 0.8, rescale=True) == 0.8 / part
        assert share_of(query, 5000, 0.8, rescale=False) == 0.8 / part
    assert share_of(4001, 5000, 0.8, rescale=True) == 0.8 / 512
    assert share_of(4001, 5000, 0.8, rescale=False) == 0.8 / 128


def test_a_window_is_two_pyramids() -> None:
    shape = window(6, 5, 2)
    assert torch.equal(shape[:3].sign(), torch.ones(3, 5))
    assert torch.equal(shape[3:].sign(), -torch.ones(3, 5))
    assert shape[1, 2] == shape.max() == pytest.approx(1 + 1 / 4 + 1 / 9)
    assert shape[0, 2] == shape[1, 1] == pytest.approx(1 / 4 + 1 / 9)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"queries": 0}, "queries"),
        ({"p_init": 0.0}, "p_init"),
        ({"norm": "l0", "eps": 3}, "within"),
        ({"x": torch.rand(40, 144)}, "x"),
        ({"y": torch.zeros(40)}, "y"),
        ({"x": torch.full((40, 1, 12, 12), float("nan"))}, "origin"),
    ],
)
def test_mistakes_are_named(problem: Make, change: dict[str, Any], argument: str) -> None:
    p = problem()
    given = {"model": p.model, "x": p.x, "y": p.y, "eps": 0.1, "queries": 2} | change
    with pytest.raises(InputError) as caught:
        square(given.pop("model"), given.pop("x"), given.pop("y"), **given)
    assert caught.value.argument == argument
