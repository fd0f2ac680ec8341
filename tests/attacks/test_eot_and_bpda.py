"""Random models and models without gradients, made fit for gradient attacks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable.attacks import evaluate, pgd
from shaketable.attacks.bpda import bpda
from shaketable.attacks.eot import eot
from shaketable.core import Ball, GradientError, InputError

Make = Callable[..., Any]


class Noisy(nn.Module):
    """Logits with noise on the input, in eval mode too."""

    def __init__(self, model: nn.Module, deviation: float) -> None:
        super().__init__()
        self.model, self.deviation = model, deviation
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + self.deviation * torch.randn_like(x))


class Quadratic(nn.Module):
    """Two logits: sum((x + noise)^2) and 0; on average sum(x^2) + m deviation^2."""

    def forward(self, x: Tensor) -> Tensor:
        value = ((x + 0.5 * torch.randn_like(x)) ** 2).sum(1)
        return torch.stack([value, torch.zeros_like(value)], 1)


def test_the_gradient_is_near_that_of_the_mean() -> None:
    x = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(4, 10).requires_grad_()
    errors: dict[int, float] = {}
    with torch.random.fork_rng():
        for samples in (1, 400):
            torch.manual_seed(0)
            logits = eot(Quadratic().eval(), samples)(x)
            slope = torch.autograd.grad(logits[:, 0].sum(), x)[0]
            errors[samples] = float((slope - 2 * x).abs().mean().detach())
    assert errors[400] < 5 * 2 * 0.5 * 400**-0.5
    assert errors[400] < 0.15 * errors[1]


def test_probabilities_are_averaged_as_they_say(problem: Make) -> None:
    p = problem(6)
    noisy = Noisy(p.model, 0.3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [noisy(p.x) for _ in range(5)]
        torch.manual_seed(0)
        mean = eot(noisy, 5)(p.x)
        torch.manual_seed(0)
        votes = eot(noisy, 5, over="probabilities")(p.x)
    assert torch.allclose(mean, torch.stack(drawn).mean(0), atol=1e-5)
    assert torch.allclose(votes.exp(), torch.stack([z.softmax(1) for z in drawn]).mean(0), atol=1e-6)


def test_attacks_seed_it_and_find_more_through_it(problem: Make) -> None:
    p = problem(20)
    y, noisy = p.model(p.x).argmax(1), Noisy(p.model, 0.15)
    random = torch.get_rng_state()
    plain = pgd(noisy, p.x, y, eps=0.02, steps=7, seed=1).point
    averaged = pgd(eot(noisy, 10), p.x, y, eps=0.02, steps=7, seed=1).point
    assert torch.equal(averaged, pgd(eot(noisy, 10), p.x, y, eps=0.02, steps=7, seed=1).point)
    assert torch.equal(random, torch.get_rng_state())
    with torch.random.fork_rng():
        torch.manual_seed(5)
        losses = [
            torch.stack([F.cross_entropy(noisy(point), y, reduction="none") for _ in range(100)]).mean()
            for point in (plain, averaged)
        ]
    assert losses[1] > losses[0] + 0.02


def test_a_wrapped_model_is_in_its_model_s_mode(problem: Make) -> None:
    p = problem(8)
    assert not any(module.training for module in eot(p.model, 2).modules())
    assert not any(module.training for module in nn.Sequential(bpda(torch.round), p.model).eval().modules())
    assert eot(lambda z: z.flatten(1), 3)(p.x).shape == (8, 144)
    assert not evaluate(eot(p.model, 2), p.x, p.y, within=Ball("linf", 0.015, box=(0, 1)), seed=0).findings


def _coarse(z: Tensor) -> Tensor:
    return (z * 8).round() / 8


def test_pgd_breaks_a_quantised_input_through_it(problem: Make) -> None:
    p = problem()
    quantised = nn.Sequential(bpda(_coarse), p.model).eval()
    y = p.model(_coarse(p.x)).argmax(1)
    plain = lambda z: p.model(_coarse(z))  # noqa: E731
    assert torch.equal(quantised(p.x), plain(p.x))
    with pytest.raises(GradientError):
        pgd(plain, p.x, y, eps=0.1)
    point = pgd(quantised, p.x, y, eps=0.1).point
    assert (plain(point).argmax(1) != y).float().mean() > 0.6


def test_values_are_the_transform_s_and_gradients_the_substitute_s() -> None:
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(3, 4).requires_grad_()
    through = bpda(torch.sign, lambda z: torch.tanh(3 * z))
    value = through(x)
    assert torch.equal(value, x.sign())
    slope = torch.autograd.grad((value * torch.arange(4)).sum(), x)[0]
    expected = torch.autograd.grad((torch.tanh(3 * x) * torch.arange(4)).sum(), x)[0]
    assert torch.equal(slope, expected)
    assert torch.equal(torch.autograd.grad(bpda(torch.floor)(x).sum(), x)[0], torch.ones_like(x))
    pooled = bpda(lambda z: z[:, :2], lambda z: 2 * z[:, :2])
    assert torch.equal(torch.autograd.grad(pooled(x).sum(), x)[0][:, :3], x.new_tensor([[2.0, 2.0, 0.0]] * 3))
    with torch.no_grad():
        assert not through(x).requires_grad


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: eot(nn.Identity(), 0), "samples"),
        (lambda: eot(nn.Identity(), over="votes"), "over"),  # pyright: ignore
        (lambda: bpda(lambda z: z[:, :2])(torch.zeros(2, 3, requires_grad=True)), "transform"),
    ],
)
def test_mistakes_are_named(make: Callable[[], Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.argument == argument
