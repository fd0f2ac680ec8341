"""PGD and FGSM against hand-written loops and known optima."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable.attacks import FGSMAttack, PGDAttack, fgsm, pgd
from shaketable.core import Ball, GradientError, InputError, generator

Make = Callable[..., Any]
BALL = Ball("linf", 0.015, box=(0, 1))


def by_hand(model: Any, x: Tensor, y: Tensor, eps: float, steps: int, step: float, delta: Tensor) -> Tensor:
    """Madry's loop as one writes it down."""
    for _ in range(steps):
        point = (x + delta).clamp(0, 1).requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)[0]
        delta = (delta + step * eps * gradient.sign()).clamp(-eps, eps)
        delta = (x + delta).clamp(0, 1) - x
    return (x + delta).clamp(0, 1)


@pytest.mark.parametrize("start", ["zero", "sample"])
def test_equals_a_hand_written_loop_bit_for_bit(problem: Make, start: Any) -> None:
    p = problem()
    delta = torch.zeros_like(p.x) if start == "zero" else BALL.on(p.x).sample(p.x, generator(3))
    found = PGDAttack(steps=7, step=0.3, start=start)(p.model, p.x, p.y, BALL, generator=generator(3))
    assert torch.equal(found.point, by_hand(p.model, p.x, p.y, 0.015, 7, 0.3, delta))
    assert (found.calls.forward, found.calls.backward) == (7 * 40, 7 * 40)


def test_fgsm_is_one_full_step(problem: Make) -> None:
    p = problem()
    point = p.x.clone().requires_grad_()
    gradient = torch.autograd.grad(F.cross_entropy(p.model(point), p.y, reduction="sum"), point)[0]
    expected = (p.x + 0.015 * gradient.sign()).clamp(0, 1)
    assert torch.allclose(fgsm(p.model, p.x, p.y, eps=0.015).point, expected, rtol=0, atol=1e-7)
    assert fgsm(p.model, p.x, p.y, eps=0.015).calls.forward == 40


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1.0), ("l2", 2.0)])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_reaches_the_optimum_of_a_linear_model(norm: Any, dual: float, loss: Any) -> None:
    """The margin of a linear model rises by eps times the dual norm of the weights' difference."""
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 20, generator=source, dtype=torch.float64)
    x, y = torch.randn(30, 20, generator=source, dtype=torch.float64), torch.randint(2, (30,), generator=source)
    found = pgd(lambda z: z @ weight.T, x, y, eps=0.4, norm=norm, loss=loss, steps=60, box=None, seed=1)
    sign = torch.where(y == 0, 1.0, -1.0)
    rise = ((found.point - x) @ (weight[1] - weight[0])) * sign
    assert torch.allclose(rise, 0.4 * torch.linalg.vector_norm(weight[1] - weight[0], dual).expand(30), rtol=1e-6)


def test_one_line_forms_are_the_attacks(problem: Make) -> None:
    p = problem()
    attack = PGDAttack("margin", steps=4, step=0.5, restarts=2, momentum=0.5, keep="best")
    long = attack(p.model, p.x, p.y, Ball("l2", 0.5, box=(0, 1)), generator=generator(5, "pgd"))
    short = pgd(
        p.model, p.x, p.y, eps=0.5, norm="l2", loss="margin", steps=4, step=0.5, restarts=2, momentum=0.5,
        keep="best", seed=5,
    )  # fmt: skip
    assert torch.equal(long.point, short.point)
    other = pgd(p.model, p.x, p.y, eps=0.5, norm="l2", seed=6).point
    assert not torch.equal(other, pgd(p.model, p.x, p.y, eps=0.5, norm="l2", seed=7).point)


@pytest.mark.parametrize("name", ["ce", "margin", "dlr"])
def test_a_function_serves_as_loss(problem: Make, name: Any) -> None:
    from shaketable import core

    p = problem()
    functions = {"ce": core.cross_entropy, "margin": core.logit_margin, "dlr": core.difference_of_logits_ratio}
    named = pgd(p.model, p.x, p.y, eps=0.015, loss=name, steps=5)
    given = pgd(p.model, p.x, p.y, eps=0.015, loss=functions[name], steps=5)
    assert torch.equal(named.point, given.point)


def test_every_loss_raises_the_margin(problem: Make) -> None:
    from shaketable.core import logit_margin

    p = problem()
    before = logit_margin(p.model(p.x), p.y).detach()
    for loss in ("ce", "margin", "dlr"):
        after = logit_margin(p.model(pgd(p.model, p.x, p.y, eps=0.015, loss=loss).point), p.y).detach()
        assert (after > before).float().mean() > 0.9, loss


def test_targeted_reaches_the_target(problem: Make) -> None:
    p = problem()
    target = (p.model(p.x).argmax(1) + 1) % 4
    before = F.cross_entropy(p.model(p.x), target)
    found = pgd(p.model, p.x, target, eps=0.3, steps=40, targeted=True)
    assert F.cross_entropy(p.model(found.point), target) < 0.5 * before
    assert (p.model(found.point).argmax(1) == target).float().mean() > 0.5


def test_until_fooled_stops_at_the_first_point_that_fools(problem: Make) -> None:
    p = problem()
    right = p.model(p.x).argmax(1) == p.y
    x, y = p.x[right], p.y[right]
    full = PGDAttack(steps=10, start="zero")
    assert not full.stop
    assert full.until_fooled() == PGDAttack(steps=10, start="zero", stop=True)
    found = full.until_fooled()(p.model, x, y, BALL, generator=generator(0))
    shortest = [by_hand(p.model, x, y, 0.015, k, 0.25, torch.zeros_like(x)) for k in range(11)]
    fooled = torch.stack([p.model(point).argmax(1) != y for point in shortest])
    assert torch.equal(found.flags.stopped, fooled.any(0))
    first = fooled.float().argmax(0)
    expected = torch.stack(
        [shortest[int(k) if bool(f) else 10][i] for i, (k, f) in enumerate(zip(first, fooled.any(0), strict=True))]
    )
    assert torch.allclose(found.point, expected, rtol=0, atol=1e-6)
    spent = torch.where(fooled.any(0), first + 1, torch.tensor(11))
    assert found.calls.forward == int(spent.sum())


def test_restarts_find_no_less_and_run_survivors_alone(problem: Make) -> None:
    p = problem()
    one = PGDAttack(steps=3, stop=True)(p.model, p.x, p.y, BALL, generator=generator(0))
    five = PGDAttack(steps=3, restarts=5, stop=True)(p.model, p.x, p.y, BALL, generator=generator(0))
    assert bool((five.flags.stopped >= one.flags.stopped).all())
    survivors = int((~one.flags.stopped).sum())
    assert survivors
    assert five.calls.forward <= one.calls.forward + 4 * 4 * survivors
    loud = PGDAttack(steps=3, restarts=5, keep="best")(p.model, p.x, p.y, BALL, generator=generator(0))
    assert loud.value is not None
    quiet = PGDAttack(steps=3, keep="best")(p.model, p.x, p.y, BALL, generator=generator(0))
    assert bool((loud.value >= quiet.value).all())


def test_a_mask_confines_the_perturbation(problem: Make) -> None:
    p = problem()
    mask = torch.zeros(12, 12)
    mask[3:7, 3:7] = 1
    point = pgd(p.model, p.x, p.y, eps=0.2, mask=mask).point
    assert torch.equal(point[..., mask == 0], p.x[..., mask == 0])
    assert not torch.equal(point, p.x)


def _collapsed(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y)


@pytest.mark.parametrize(
    ("change", "argument", "error"),
    [
        ({"loss": "hinge"}, "loss", InputError),
        ({"loss": _collapsed}, "loss", InputError),
        ({"start": "middle"}, "start", InputError),
        ({"steps": -1}, "steps", InputError),
        ({"restarts": 0}, "restarts", InputError),
        ({"keep": "first"}, "keep", InputError),
        ({"norm": "l3"}, "norm", InputError),
        ({"eps": -0.1}, "radius", InputError),
        ({"y": torch.full((40,), 4)}, "y", InputError),
        ({"y": torch.full((40,), -1)}, "y", InputError),
        ({"y": torch.zeros(39, dtype=torch.long)}, "y", InputError),
        ({"y": torch.zeros(40)}, "y", InputError),
        ({"x": torch.full((40, 1, 12, 12), 200.0)}, "origin", InputError),
        ({"x": torch.full((40, 1, 12, 12), float("nan"))}, "origin", InputError),
        ({"x": torch.zeros(40, 1, 12, 12, dtype=torch.uint8)}, "origin", InputError),
        ({"model": lambda z: z.detach().flatten(1)[:, :4]}, "objective", GradientError),
        ({"model": lambda z: torch.round(z).flatten(1)[:, :4]}, "objective", GradientError),
        ({"model": lambda z: (z.flatten(1), None)}, "model", InputError),
    ],
)
def test_mistakes_are_named(problem: Make, change: dict[str, Any], argument: str, error: type) -> None:
    p = problem()
    given = {"model": p.model, "x": p.x, "y": p.y, "eps": 0.015} | change
    with pytest.raises(error) as caught:
        pgd(given.pop("model"), given.pop("x"), given.pop("y"), **given)
    assert caught.value.argument == argument
    assert caught.value.remedy


def test_train_mode_models_are_left_alone(problem: Make) -> None:
    p = problem()
    p.model.train()
    before = {name: tensor.clone() for name, tensor in p.model.state_dict().items()}
    FGSMAttack()(p.model, p.x, p.y, BALL, generator=generator(0))
    assert all(torch.equal(before[name], tensor) for name, tensor in p.model.state_dict().items())
    assert p.model.training
    assert isinstance(p.model, nn.Module)
