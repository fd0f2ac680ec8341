"""RST against TRADES' formula summed over labelled and pseudo-labelled images, written here in float64."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shaketable.core import Gaussian, InputError, generator
from shaketable.training.rst import RST, rst
from shaketable.training.trades import TRADES

Make = Callable[..., Any]


def example(clean: Tensor, attacked: Tensor, label: int, beta: float) -> Tensor:
    """-log p_y(x) + beta sum_k p_k(x) log(p_k(x) / p_k(x')) of one example."""
    p, q = clean.exp() / clean.exp().sum(), attacked.exp() / attacked.exp().sum()
    return -p[label].log() + beta * (p * (p / q).log()).sum()


def test_labelled_and_pseudo_labelled_images_weigh_the_same(network: Make, batch: Make) -> None:
    model = network("none", dtype=torch.float64)
    (x, y), (extra, pseudo) = batch(4, dtype=torch.float64), batch(4, seed=1, dtype=torch.float64)
    both, labels = torch.cat([x, extra]), torch.cat([y, pseudo])
    adversarial = (both + 0.1 * torch.randn(both.shape, generator=generator(0), dtype=both.dtype)).clamp(0, 1)
    hand = copy.deepcopy(model)
    clean, attacked = hand(both), hand(adversarial)
    losses = [example(c, a, k, 6.0) for c, a, k in zip(clean, attacked, labels.tolist(), strict=True)]
    expected = (torch.stack(losses[:4]).sum() + 1.0 * torch.stack(losses[4:]).sum()) / 8
    value = RST().outer(model, both, adversarial, labels)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    w = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    slopes = torch.autograd.grad(RST().weights(model, both, adversarial, labels)(w).sum(), list(w.values()))
    for slope, wanted in zip(slopes, torch.autograd.grad(expected, list(hand.parameters())), strict=True):
        torch.testing.assert_close(slope, wanted, rtol=1e-9, atol=1e-12)


def test_the_attack_raises_the_divergence_and_needs_no_label(network: Make, batch: Make) -> None:
    model = network("batch", dtype=torch.float64).eval()
    x, y = batch(5, dtype=torch.float64)
    point, rows = (x + 0.05).clamp(0, 1), torch.tensor([3, 0])
    values = RST().inner(model, x, y)(point[rows], rows)
    for value, r in zip(values, rows.tolist(), strict=True):
        p, q = model(x[[r]])[0].detach().softmax(0), model(point[[r]])[0].detach().softmax(0)
        assert float(value.detach()) == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-9)
    assert torch.equal(values, RST().inner(model, x, (y + 1) % 4)(point[rows], rows))


def test_asks_for_unlabelled_images_and_attacks_as_trades() -> None:
    loss = rst(beta=3.0)
    assert loss == RST(3.0)
    assert loss.needs_unlabelled
    assert (RST().beta, RST().start, RST().attack_mode) == (6.0, Gaussian(1e-3), "eval")
    assert not getattr(TRADES(), "needs_unlabelled", False)


@pytest.mark.parametrize("beta", [-1.0, float("nan")])
def test_bad_input(beta: float) -> None:
    with pytest.raises(InputError) as caught:
        rst(beta)
    assert caught.value.argument == "beta"
