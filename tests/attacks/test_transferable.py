"""The transfer family against hand-written loops and formulas."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shaketable.attacks import evaluate
from shaketable.attacks.diversity import gaussian_kernel, resized, smoothed
from shaketable.attacks.ensemble import Ensemble, ensemble
from shaketable.attacks.transferable import TransferableAttack, di, mi, ni, ti
from shaketable.core import PGD, Ball, InputError, ce, generator, perturb

Make = Callable[..., Any]
BALL = Ball("linf", 0.015, box=(0, 1))
PRESETS = {"mi": mi, "ni": ni, "di": di, "ti": ti}
each = pytest.mark.parametrize("name", sorted(PRESETS))


def attacked(attack: Any, p: Any, ball: Ball = BALL, seed: int = 0) -> Any:
    return attack(p.model, p.x, p.y, ball, generator=generator(seed))


def test_mi_is_the_core_s_pgd_with_momentum(problem: Make) -> None:
    p = problem()
    expected = perturb(ce(p.model, p.y), p.x, BALL, by=PGD(10, 0.1, momentum=1.0))
    found = attacked(mi(), p)
    assert torch.equal(found.point, expected.point)
    assert (found.calls.forward, found.calls.backward) == (400, 400)


def test_ni_is_a_hand_written_loop(problem: Make) -> None:
    """Lin et al. 2020, algorithm 1, with the gradient divided by its mean absolute value."""
    p = problem(12, dtype=torch.float64)
    delta, g = torch.zeros_like(p.x), torch.zeros_like(p.x)
    for _ in range(6):
        ahead = (p.x + delta + 0.2 * 0.015 * 0.9 * g).requires_grad_()
        slope = torch.autograd.grad(F.cross_entropy(p.model(ahead), p.y, reduction="sum"), ahead)[0]
        g = 0.9 * g + slope / slope.abs().mean((1, 2, 3), True)
        delta = (p.x + (delta + 0.2 * 0.015 * g.sign()).clamp(-0.015, 0.015)).clamp(0, 1) - p.x
    found = attacked(ni(momentum=0.9, steps=6, step=0.2), p)
    assert torch.allclose(found.point, p.x + delta, rtol=0, atol=1e-12)
    assert not torch.equal(found.point, attacked(mi(momentum=0.9, steps=6, step=0.2), p).point)


def test_the_kernel_sums_to_one_and_is_a_direct_convolution() -> None:
    kernel = gaussian_kernel(5)
    assert kernel.sum() == pytest.approx(1, abs=1e-15)
    assert kernel[2, 2] / kernel[2, 4] == pytest.approx(torch.e**4.5, rel=1e-12)  # the edge is three deviations away
    assert torch.equal(kernel, kernel.T)
    assert torch.equal(gaussian_kernel(1), torch.ones(1, 1).double())
    g = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direct = torch.zeros_like(g)
    for i in range(6):
        for j in range(7):
            for a in range(max(0, i - 2), min(6, i + 3)):
                for b in range(max(0, j - 2), min(7, j + 3)):
                    direct[..., i, j] += kernel[a - i + 2, b - j + 2] * g[..., a, b]
    assert torch.allclose(smoothed(g, kernel), direct, rtol=0, atol=1e-13)


def test_ti_steps_along_the_smoothed_gradient(problem: Make) -> None:
    p = problem(12, dtype=torch.float64)
    point = p.x.clone().requires_grad_()
    slope = torch.autograd.grad(F.cross_entropy(p.model(point), p.y, reduction="sum"), point)[0]
    expected = (p.x + 0.015 * smoothed(slope, gaussian_kernel(5)).sign()).clamp(0, 1)
    assert torch.allclose(attacked(ti(smoothing=5, steps=1, step=1.0), p).point, expected, rtol=0, atol=1e-15)


def test_resizing_keeps_shape_and_range_and_happens_as_often_as_asked() -> None:
    x = 0.5 + 0.5 * torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert torch.equal(resized(x, 0.0, 0.5), x)
        seen = [resized(x, 0.5, 0.5) for _ in range(400)]
        assert all(z.shape == x.shape and z.min() >= 0 and z.max() <= 1 for z in seen)
        assert 160 < sum(torch.equal(z, x) for z in seen) < 240 + 400 * 0.5 / 11
        edges = {int((z.amax((0, 1, 3)) > 0).sum()) for z in seen}
        assert edges == set(range(10, 21))
        whole = resized(x, 1.0, 1.0)
        assert torch.allclose(whole, x, atol=1e-6)


def test_diversity_one_size_smaller_is_what_the_model_saw(problem: Make) -> None:
    p = problem(6, dtype=torch.float64)
    seen: list[Tensor] = []

    def model(z: Tensor) -> Tensor:
        seen.append(z.detach())
        return p.model(z)

    di(diversity=1.0, shrink=0.5, steps=8)(model, p.x, p.y, BALL, generator=generator(0))
    covered = {int((z[0, 0] != 0).any(1).sum()) for z in seen}
    assert len(seen) == 8
    assert len(covered) > 2
    assert covered <= set(range(6, 13))


@each
@pytest.mark.parametrize("stop", [False, True])
def test_nothing_outside_a_region_changes_and_seeds_reproduce(problem: Make, name: str, stop: bool) -> None:
    p = problem()
    mask = torch.zeros(12, 12)
    mask[2:9, 3:9] = 1
    attack, random = PRESETS[name](steps=4, step=0.3, stop=stop), torch.get_rng_state()
    for norm, radius in (("linf", 0.1), ("l2", 0.5)):
        ball = Ball(norm, radius, box=(0, 1), mask=mask)  # pyright: ignore
        point = attacked(attack, p, ball).point
        assert torch.equal(point[..., mask == 0], p.x[..., mask == 0])
        assert not torch.equal(point, p.x)
        assert torch.equal(point, attacked(attack, p, ball).point)
    assert torch.equal(random, torch.get_rng_state())
    if name == "di":
        assert not torch.equal(attacked(attack, p).point, attacked(attack, p, seed=1).point)


@each
def test_verdicts_are_those_of_the_points(problem: Make, name: str) -> None:
    p = problem()
    attack = PRESETS[name](steps=4, step=0.5).until_fooled()
    found = attacked(attack, p)
    assert torch.equal(found.flags.stopped, p.model(found.point).argmax(1) != p.y)
    assert not evaluate(p.model, p.x, p.y, within=BALL, attack=attack, seed=0).findings


def test_all_at_once_and_targeted(problem: Make) -> None:
    p = problem()
    attack = TransferableAttack(nesterov=True, diversity=0.5, smoothing=3, targeted=True, steps=20)
    target = (p.model(p.x).argmax(1) + 1) % 4
    found = attack(p.model, p.x, target, Ball("linf", 0.1, box=(0, 1)), generator=generator(0))
    before, after = F.cross_entropy(p.model(p.x), target), F.cross_entropy(p.model(found.point), target)
    assert after < 0.7 * before


def test_each_fusion_is_its_formula(problem: Make) -> None:
    one, two = problem(seed=2), problem(seed=3)
    members, x, y = [one.model, two.model], one.x, one.y
    a, b = (model(x) for model in members)
    weights = [1.0, 3.0]
    assert torch.allclose(ensemble(members, weights)(x), 0.25 * a + 0.75 * b, atol=1e-5)
    assert torch.allclose(ensemble(members)(x), (a + b) / 2, atol=1e-5)
    mixed = ensemble(members, weights, "probabilities")(x)
    assert torch.allclose(mixed.exp(), 0.25 * a.softmax(1) + 0.75 * b.softmax(1), atol=1e-6)
    summed = ensemble(members, weights, "loss")
    assert torch.allclose(summed(x), 0.25 * a.log_softmax(1) + 0.75 * b.log_softmax(1), atol=1e-5)

    point = x.clone().requires_grad_()
    losses = [F.cross_entropy(model(point), y, reduction="sum") for model in members]
    slope = torch.autograd.grad(0.25 * losses[0] + 0.75 * losses[1], point)[0]
    expected = (x + 0.015 * slope.sign()).clamp(0, 1)
    found = mi(steps=1, step=1.0)(summed, x, y, BALL, generator=generator(0)).point
    assert ((found - expected).abs() > 1e-6).float().mean() < 1e-3  # but for signs that hang on rounding


def test_an_ensemble_is_a_model_and_fools_its_members(problem: Make) -> None:
    one, two = problem(seed=2), problem(seed=3)
    y = one.model(one.x).argmax(1)
    for fuse in ("logits", "probabilities", "loss"):
        models: Ensemble = ensemble([one.model, two.model, lambda z: one.model(z)], fuse=fuse)  # pyright: ignore
        assert not any(module.training for module in models.modules())
        found = mi(step=0.25).until_fooled()(models, one.x, y, Ball("linf", 0.1, box=(0, 1)), generator=generator(0))
        assert torch.equal(found.flags.stopped, models(found.point).argmax(1) != y)
        assert found.flags.stopped.float().mean() > 0.8


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: TransferableAttack(diversity=1.5), "diversity"),
        (lambda: TransferableAttack(shrink=0.0), "shrink"),
        (lambda: TransferableAttack(smoothing=4), "smoothing"),
        (lambda: TransferableAttack(smoothing=-1), "smoothing"),
        (lambda: TransferableAttack(steps=-1), "steps"),
        (lambda: TransferableAttack(momentum=-1), "momentum"),
        (lambda: ensemble([]), "models"),
        (lambda: ensemble([torch.sin], [1.0, 2.0]), "weights"),
        (lambda: ensemble([torch.sin], [-1.0]), "weights"),
        (lambda: ensemble([torch.sin], fuse="votes"), "fuse"),  # pyright: ignore
        (lambda: ensemble([lambda z: z, lambda z: z[:, :2]])(torch.zeros(2, 3)), "models"),
        (lambda: ti()(torch.sin, torch.zeros(2, 3), torch.zeros(2).long(), BALL, generator=generator(0)), "x"),
    ],
)
def test_mistakes_are_named(make: Callable[[], Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.argument == argument
    assert caught.value.remedy
