"""MART against the paper's formula, written here example by example in float64."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shaketable.core import Ball, Gaussian, InputError, generator, perturb
from shaketable.training.mart import MART, mart

Make = Callable[..., Any]


def by_hand(clean: Tensor, attacked: Tensor, y: list[int], beta: float) -> Tensor:
    """mean of -log p_y(x') - log(1 - max_{k != y} p_k(x')) + beta KL(p(x) || p(x')) (1 - p_y(x)), from probabilities."""
    total = clean.new_zeros(())
    for z, z_attacked, label in zip(clean, attacked, y, strict=True):
        p = z.exp() / z.exp().sum()
        q = z_attacked.exp() / z_attacked.exp().sum()
        rival = max(q[k] for k in range(len(q)) if k != label)
        kl = sum(p[k] * (p[k].log() - q[k].log()) for k in range(len(p)))
        total = total - q[label].log() - (1 - rival).log() + beta * kl * (1 - p[label])
    return total / len(y)


def fixed(clean: Tensor, attacked: Tensor) -> Callable[[Tensor], Tensor]:
    """A model that answers 0 with `clean` and 1 with `attacked`."""
    return lambda x: attacked if bool(x) else clean


CLEAN, ATTACKED = torch.tensor(0.0), torch.tensor(1.0)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("beta", [0.0, 5.0, 6.0])
def test_value_and_gradient_are_the_papers(beta: float, norm: str, network: Make, batch: Make) -> None:
    model = network(norm, dtype=torch.float64)
    x, y = batch(8, dtype=torch.float64)
    adversarial = (x + 0.1 * torch.randn(x.shape, generator=generator(3), dtype=x.dtype)).clamp(0, 1)
    hand = copy.deepcopy(model)
    value = MART(beta).outer(model, x, adversarial, y)
    expected = by_hand(hand(x), hand(adversarial), y.tolist(), beta)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    slopes = torch.autograd.grad(value, list(model.parameters()))
    for slope, wanted in zip(slopes, torch.autograd.grad(expected, list(hand.parameters())), strict=True):
        torch.testing.assert_close(slope, wanted, rtol=1e-9, atol=1e-12)


def test_the_weight_of_the_divergence_is_differentiated() -> None:
    """The gradient by the clean logits alone: with 1 - p_y(x) held fixed it would be another."""
    source = generator(0)
    clean = torch.randn(5, 3, generator=source, dtype=torch.float64, requires_grad=True)
    attacked = torch.randn(5, 3, generator=source, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 1, 0])
    (slope,) = torch.autograd.grad(MART().outer(fixed(clean, attacked), CLEAN, ATTACKED, y), clean)
    kl = F.kl_div(attacked.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True).sum(1)
    weight = 1 - clean.softmax(1)[torch.arange(5), y]
    (whole,) = torch.autograd.grad(5.0 * (kl * weight).mean(), clean, retain_graph=True)
    (held,) = torch.autograd.grad(5.0 * (kl * weight.detach()).mean(), clean)
    torch.testing.assert_close(slope, whole, rtol=1e-10, atol=1e-14)
    assert float((whole - held).abs().max()) > 1e-3


def test_the_offset_is_the_authors() -> None:
    """Their code: log(1.0001 - q + 1e-12) for the margin, log(q + 1e-12) and 1.0000001 - p_y in the last term."""
    source = generator(1)
    clean, attacked = (2 * torch.randn(20, 5, generator=source, dtype=torch.float64) for _ in range(2))
    y = torch.randint(0, 5, (20,), generator=source)
    q, p, rows = attacked.softmax(1), clean.softmax(1), torch.arange(20)
    order = q.argsort(1)
    rival = torch.where(order[:, -1] == y, order[:, -2], order[:, -1])
    kl = (p * (p.log() - (q + 1e-12).log())).sum(1)
    margin = -(1.0001 - q[rows, rival] + 1e-12).log()
    theirs = (-q[rows, y].log() + margin + 6.0 * kl * (1.0000001 - p[rows, y])).mean()
    ours = MART(6.0, offset=1e-4).outer(fixed(clean, attacked), CLEAN, ATTACKED, y)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
    assert float(MART(6.0).outer(fixed(clean, attacked), CLEAN, ATTACKED, y)) != pytest.approx(float(theirs), rel=1e-5)


def test_confident_mistakes_keep_value_and_gradient() -> None:
    """At p_0 = e^-200, of which float32 knows nothing, both terms are 200, and both go on rising with the wrong logit."""
    attacked = torch.tensor([[0.0, 200.0, -50.0]], requires_grad=True)
    y = torch.tensor([0])
    same = fixed(attacked.detach(), attacked)
    value = MART().outer(same, CLEAN, ATTACKED, y)
    assert float(value.detach()) == pytest.approx(400.0)
    (slope,) = torch.autograd.grad(value, attacked)
    torch.testing.assert_close(slope, torch.tensor([[-2.0, 2.0, 0.0]]))
    capped = MART(offset=1e-4).outer(same, CLEAN, ATTACKED, y)
    assert float(capped.detach()) == pytest.approx(200.0 + 9.2103, rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(capped, attacked)[0], torch.tensor([[-1.0, 1.0, 0.0]]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-300, 300, width=32), min_size=12, max_size=12), st.sampled_from([0.0, 1e-4]))
def test_finite_and_never_below_cross_entropy(entries: list[float], offset: float) -> None:
    logits = torch.tensor(entries).reshape(4, 3)
    clean, attacked = logits[:2].requires_grad_(), logits[2:].clone().requires_grad_()
    y = torch.tensor([0, 2])
    value = MART(offset=offset).outer(fixed(clean, attacked), CLEAN, ATTACKED, y)
    slopes = torch.autograd.grad(value, [clean, attacked])
    assert torch.isfinite(value)
    assert all(bool(torch.isfinite(g).all()) for g in slopes)
    assert float(value.detach()) >= float(F.cross_entropy(attacked, y).detach()) * (1 - 1e-6) - 1.1e-4


def test_class_probabilities_expect_the_first_term_and_take_the_top_class_for_the_rest() -> None:
    source = generator(2)
    clean, attacked = (torch.randn(6, 4, generator=source, dtype=torch.float64) for _ in range(2))
    y = torch.randint(0, 4, (6,), generator=source)
    soft = 0.7 * F.one_hot(y, 4).double() + 0.3 / 4
    hard = by_hand(clean, attacked, y.tolist(), 5.0)
    q = attacked.softmax(1)
    first = sum(q[i, y[i]].log() - (soft[i] * q[i].log()).sum() for i in range(6)) / 6
    value = MART().outer(fixed(clean, attacked), CLEAN, ATTACKED, soft)
    assert float(value) == pytest.approx(float(hard + first), rel=1e-12)
    onehot = MART().outer(fixed(clean, attacked), CLEAN, ATTACKED, F.one_hot(y, 4).double())
    assert float(onehot) == pytest.approx(float(hard), rel=1e-12)


def test_the_attack_raises_cross_entropy_from_noise_in_eval_mode(network: Make, batch: Make) -> None:
    model = network("batch", dtype=torch.float64).eval()
    x, y = batch(6, dtype=torch.float64)
    loss = mart()
    assert (loss.beta, loss.offset, loss.start, loss.attack_mode) == (5.0, 0.0, Gaussian(1e-3), "eval")
    rows = torch.tensor([4, 1])
    values = loss.inner(model, x, y)(x[rows], rows)
    expected = [-float(model(x[[r]]).detach().softmax(1)[0, y[r]].log()) for r in rows.tolist()]
    torch.testing.assert_close(values.detach(), torch.tensor(expected, dtype=torch.float64))
    within = Ball("linf", 0.1, box=(0.0, 1.0))
    found = perturb(loss.inner(model, x, y), x, within, start=loss.start, generator=generator(0))
    with torch.no_grad():
        assert float(F.cross_entropy(model(found.point), y)) > float(F.cross_entropy(model(x), y))


def test_as_a_function_of_the_weights(network: Make, batch: Make) -> None:
    model = network("batch", dtype=torch.float64)
    x, y = batch(6, dtype=torch.float64)
    adversarial = (x + 0.05).clamp(0, 1)
    before = {name: b.clone() for name, b in model.named_buffers()}
    w = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    value = MART().weights(model, x, adversarial, y)(w)
    slopes = torch.autograd.grad(value.sum(), list(w.values()))
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    outer = MART().outer(model, x, adversarial, y)
    for slope, wanted in zip(slopes, torch.autograd.grad(outer, list(model.parameters())), strict=True):
        torch.testing.assert_close(slope, wanted)
    assert int(model[1].num_batches_tracked) == 2  # the training pass records the clean and the adversarial batch


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: MART(beta=-1.0), "beta"),
        (lambda: MART(beta=float("nan")), "beta"),
        (lambda: MART(beta=float("inf")), "beta"),
        (lambda: MART(offset=-1e-4), "offset"),
        (lambda: MART(offset=1.0), "offset"),
        (lambda: MART().outer(nn.Linear(2, 1), torch.rand(3, 2), torch.rand(3, 2), torch.zeros(3).long()), "model"),
        (lambda: MART().inner(nn.Linear(2, 3), torch.rand(3, 2), torch.rand(3, 3)), "y"),
    ],
)
def test_bad_input(make: Callable[[], Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.argument == argument
