"""Saved images: the 256 levels, rounding that stays in ball and box, files that read back, success after saving."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor

from shaketable.attacks import PGDAttack, evaluate
from shaketable.attacks.eight_bit import EightBit, encoded, on_levels, rounded, saved, surviving
from shaketable.core import Ball, InputError, generator

Make = Callable[..., Any]
RADII = {"linf": 8.3 / 255, "l2": 0.11, "l1": 0.9, "l0": 5.0}


def images(n: int, shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images as a file holds them, with both ends of the box among their values."""
    levels = torch.randint(0, 256, (n, *shape), generator=generator(seed))
    levels[levels > 250], levels[levels < 5] = 255, 0
    return levels.to(dtype) / 255


def require_saved_inside(point: Tensor, origin: Tensor, ball: Ball) -> None:
    """Exactly on the levels, and in box, mask and (in whole levels, float64) ball."""
    assert torch.equal(rounded(point), point)
    assert float(point.min()) >= 0
    assert float(point.max()) <= 1
    levels = torch.round(point.double() * 255) - torch.round(origin.double() * 255)
    assert torch.equal(point != origin, levels != 0)
    size = Ball(ball.norm, 1.0 if ball.norm != "l0" else 1).size(levels / 255, levels)
    assert isinstance(size, Tensor)
    assert bool((size <= torch.as_tensor(ball.radius).double() * (1 + 2e-6)).all())
    if ball.mask is not None:
        assert isinstance(ball.mask, Tensor)
        outside = ~ball.mask.expand_as(point)
        assert torch.equal(point[outside], origin[outside])


def _rounding_holds(draws: int, norm: Any, radius: float, seed: int, dtype: torch.dtype) -> None:
    origin = images(draws, (1, 3, 4), seed, dtype)
    mask = torch.rand(1, 1, 3, 4, generator=generator(seed, "mask")) < 0.7
    radius = float(round(40 * radius)) if norm == "l0" else radius
    ball = Ball(norm, radius, box=(0, 1), mask=mask)
    point = origin + ball.on(origin).sample(origin, generator(seed, "sample")).to(dtype)  # pyright: ignore
    point = ball.clip(point)
    assert isinstance(point, Tensor)
    found = on_levels(point, origin, ball)
    require_saved_inside(found, origin, ball)
    if norm == "linf":
        assert float((found - point).abs().max()) < 1 / 255 + 1e-6  # never farther than the next level
    assert torch.equal(on_levels(found, origin, ball), found)


@settings(max_examples=40, deadline=None)
@given(
    norm=some.sampled_from(["linf", "l2", "l1", "l0"]),
    radius=some.floats(0.0, 0.3) | some.integers(0, 60).map(lambda k: k / 255),
    seed=some.integers(0, 2**31),
    dtype=some.sampled_from([torch.float32, torch.float64]),
)
def test_rounding_stays_in_ball_box_and_levels(norm: Any, radius: float, seed: int, dtype: torch.dtype) -> None:
    _rounding_holds(10, norm, radius, seed, dtype)


@pytest.mark.full
@pytest.mark.parametrize("norm", sorted(RADII))
def test_rounding_stays_in_ball_box_and_levels_in_1e5_draws(norm: Any) -> None:
    for seed in range(100):
        _rounding_holds(1000, norm, 0.003 * seed, seed, torch.float32)


@pytest.mark.parametrize("norm", sorted(RADII))
def test_every_iterate_is_an_image_that_can_be_saved(problem: Make, norm: Any) -> None:
    """Rounding within the loop: each point at which the model is asked lies on the levels, inside the ball."""
    p = problem()
    x, seen = rounded(p.x), []
    ball = Ball(norm, RADII[norm], box=(0, 1), mask=torch.arange(12) < 9)

    def model(z: Tensor) -> Tensor:
        seen.append(z.detach().clone())
        return p.model(z)

    found = PGDAttack(steps=4, step=0.5)(model, x, p.y, EightBit(ball), generator=generator(0))  # pyright: ignore
    assert len(seen) == 4
    for point in (*seen, found.point):
        require_saved_inside(point, x, ball.on(x))
    assert not torch.equal(found.point, x)
    assert torch.equal(saved(found.point), found.point)


def test_evaluations_take_it_as_a_ball(problem: Make) -> None:
    p = problem()
    x = rounded(p.x)
    inside = EightBit(Ball("linf", 8 / 255, box=(0, 1)))
    found = evaluate(p.model, x, p.y, within=inside, seed=0, points=True)  # pyright: ignore[reportArgumentType]
    assert not found.findings
    assert found.robust.hits < found.clean.hits
    assert found.points is not None
    assert torch.equal(saved(found.points), found.points)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_reads_back_bit_identical_and_jpeg_nearly(channels: int) -> None:
    smooth = torch.linspace(0, 1, 16)[:, None] * torch.linspace(0.5, 1, 24)
    x = smooth.expand(3, channels, 16, 24) * torch.linspace(0.5, 1, 3)[:, None, None, None]
    assert torch.equal(saved(x), rounded(x))
    every = torch.arange(256).reshape(1, 1, 16, 16).expand(1, channels, 16, 16).float() / 255
    assert torch.equal(saved(every), every)
    best, worst = saved(x, "jpeg", quality=95), saved(x, "jpeg", quality=10)
    assert 0 < float((best - x).abs().mean()) < float((worst - x).abs().mean())
    assert float((best - x).abs().max()) < 0.05
    assert [file[:4] for file in encoded(x)] == [b"\x89PNG"] * 3
    assert [file[:3] for file in encoded(x, "jpeg")] == [b"\xff\xd8\xff"] * 3
    assert saved(x[:0]).shape == (0, channels, 16, 24)


def test_what_survives_is_counted(problem: Make) -> None:
    """Perturbations under half a level are lost in saving; those of eight levels are not."""
    p = problem()
    x = rounded(p.x)
    right = p.model(x).argmax(1) == p.y
    faint = (x + 0.4 / 255 * torch.rand(x.shape, generator=generator(0))).clamp(0, 1)
    lost = surviving(p.model, x, p.y, faint)
    assert lost.rate("png").hits == 0
    strong = PGDAttack()(p.model, x, p.y, Ball("linf", 8 / 255, box=(0, 1)), generator=generator(0))
    kept = surviving(p.model, x, p.y, strong, quality=(90, 10))
    assert set(kept.after) == {"png", "jpeg 90", "jpeg 10"}
    for how, form, quality in (("png", "png", 95), ("jpeg 90", "jpeg", 90), ("jpeg 10", "jpeg", 10)):
        wrong = p.model(saved(strong.point, form, quality=quality)).argmax(1) != p.y  # pyright: ignore
        assert (kept.rate(how).hits, kept.rate(how).n) == (int((wrong & right).sum()), int(right.sum()))
        clean = p.model(saved(x, form, quality=quality)).argmax(1) != p.y  # pyright: ignore
        assert kept.rate(how, clean=True).hits == int((clean & right).sum())
    assert kept.rate("png").hits > 0.9 * kept.rate().hits > 10
    assert kept.rate("png", clean=True).hits == 0
    assert "jpeg 10" in str(kept)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda x: EightBit(Ball("linf", 0.1)), "ball"),
        (lambda x: on_levels(x, x, Ball("linf", 0.1, box=(0, 1))), "origin"),
        (lambda x: saved(x[:, :, 0]), "images"),
        (lambda x: saved(x.expand(2, 2, 4, 4)), "images"),
        (lambda x: saved(x, "gif"), "form"),
        (lambda x: saved(x, "jpeg", quality=100), "quality"),
        (lambda x: surviving(lambda z: z, x, torch.zeros(1), x), "perturbation"),
    ],
)
def test_mistakes_are_named(call: Callable[[Tensor], Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        call(torch.full((2, 1, 4, 4), 0.3337))
    assert caught.value.argument == argument
