"""Labels: smoothing, noise, predictions for the attack, ignored mistakes; and robust losses on class probabilities."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shaketable.core import InputError, generator
from shaketable.training.at import AT
from shaketable.training.labels import Labels
from shaketable.training.mart import MART
from shaketable.training.rst import RST
from shaketable.training.trades import TRADES

Make = Callable[..., Any]


class Counting(nn.Module):
    """A model that counts the examples it is run on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.inner(x)


def test_the_defaults_leave_everything_as_it_is_at_no_cost(network: Make, batch: Make) -> None:
    model, (x, y) = Counting(network()), batch()
    adversarial, source, labels = x + 1, generator(0), Labels()
    state = source.get_state()
    assert labels.for_attack(model, x, y) is y
    assert labels.for_update(y, 4, source) is y
    assert labels.keep(model, x, y, adversarial) is adversarial
    assert model.seen == 0
    assert torch.equal(source.get_state(), state)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_attack_may_see_predictions(mode: str, network: Make, batch: Make) -> None:
    plain = network("batch", dropout=0.0).train(mode == "train")
    x, y = batch(8)
    expected = [int(z.argmax()) for z in copy.deepcopy(plain)(x)]  # as a batch: its statistics count in train mode
    assert expected != y.tolist()
    model, before = Counting(plain).train(mode == "train"), copy.deepcopy(plain.state_dict())
    seen = torch.get_rng_state()
    labels = Labels(attack="predicted").for_attack(model, x, y)
    assert labels.tolist() == expected
    assert labels.dtype == torch.int64
    assert not labels.requires_grad
    assert model.seen == 8
    assert all(torch.equal(t, before[name]) for name, t in plain.state_dict().items())
    assert torch.equal(torch.get_rng_state(), seen)


def test_dropout_does_not_move_the_global_random_state(network: Make, batch: Make) -> None:
    (x, y), model = batch(4), network(dropout=0.5)
    seen = torch.get_rng_state()
    Labels(attack="predicted").for_attack(model, x, y)
    Labels(ignore_incorrect=True).keep(model, x, y, x)
    assert torch.equal(torch.get_rng_state(), seen)


def test_misclassified_examples_are_not_attacked(network: Make, batch: Make) -> None:
    plain = network("batch").eval()
    x, y = batch(8)
    y = torch.where(torch.arange(8) < 3, plain(x).argmax(1), y)
    right = plain(x).argmax(1) == y
    assert 3 <= int(right.sum()) < 8
    adversarial, model = (x + 0.1).clamp(0, 1), Counting(plain).eval()
    kept = Labels(ignore_incorrect=True).keep(model, x, y, adversarial)
    for i in range(8):
        assert torch.equal(kept[i], adversarial[i] if right[i] else x[i])
    assert model.seen == 8


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=9), st.floats(0.01, 1.0), st.integers(7, 12))
def test_smoothing_is_one_minus_s_of_the_label_and_s_over_k_everywhere(y: list[int], s: float, classes: int) -> None:
    found = Labels(smoothing=s).for_update(torch.tensor(y, dtype=torch.int64), classes, generator(0))
    assert found.shape == (len(y), classes)
    assert found.dtype == torch.float32
    for row, label in zip(found.tolist(), y, strict=True):
        assert row == pytest.approx([(1 - s) * (k == label) + s / classes for k in range(classes)], abs=1e-6)
        assert sum(row) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("noise", [0.1, 0.4, 1.0])
def test_noise_draws_from_all_classes_the_own_one_included(noise: float) -> None:
    n, classes = 40000, 5
    y = torch.randint(0, classes, (n,), generator=generator(7))
    found = Labels(noise=noise).for_update(y, classes, generator(1))
    assert found.shape == y.shape
    assert found.dtype == y.dtype
    p = noise * (classes - 1) / classes
    assert abs(float((found != y).double().mean()) - p) < 4 * math.sqrt(p * (1 - p) / n)
    table = torch.bincount(y * classes + found, minlength=classes**2).reshape(classes, classes).double()
    others = table[~torch.eye(classes, dtype=torch.bool)]  # each other class as often, from whichever class
    expected = (torch.bincount(y, minlength=classes).double() * noise / classes).repeat_interleave(classes - 1)
    assert float(((others - expected) ** 2 / expected).sum()) < 45.3  # chi squared, 20 degrees, .999
    assert torch.equal(found, Labels(noise=noise).for_update(y, classes, generator(1)))
    assert not torch.equal(found, Labels(noise=noise).for_update(y, classes, generator(2)))


def test_noise_comes_before_smoothing_and_takes_as_many_numbers_however_few_it_hits() -> None:
    y = torch.arange(60) % 4
    noisy = Labels(noise=0.5).for_update(y, 4, generator(3))
    both = Labels(noise=0.5, smoothing=0.2).for_update(y, 4, generator(3))
    assert torch.equal(both, Labels(smoothing=0.2).for_update(noisy, 4, generator(0)))
    assert not torch.equal(noisy, y)
    few, many = generator(5), generator(5)
    Labels(noise=1e-6).for_update(y, 4, few)
    Labels(noise=1.0).for_update(y, 4, many)
    assert torch.equal(few.get_state(), many.get_state())


@pytest.mark.parametrize("loss", [AT(), TRADES(6.0), RST(6.0), MART(5.0)], ids=["at", "trades", "rst", "mart"])
def test_robust_losses_take_smoothed_labels(loss: Any, network: Make, batch: Make) -> None:
    """By soft labels only the cross-entropy changes, by s times (log p_y - mean_k log p_k), at x' or (TRADES, RST) at x."""
    model = network("none", dtype=torch.float64)
    x, y = batch(6, dtype=torch.float64)
    adversarial = (x + 0.1).clamp(0, 1)
    soft = Labels(smoothing=0.3).for_update(y, 4, generator(0))
    p = model(adversarial if isinstance(loss, AT | MART) else x).softmax(1)
    change = sum(0.3 * (p[i, y[i]].log() - p[i].log().mean()) for i in range(6)) / 6
    hard = loss.outer(model, x, adversarial, y)
    value = loss.outer(model, x, adversarial, soft)
    assert float(value.detach()) == pytest.approx(float((hard + change).detach()), abs=1e-6)
    assert all(bool(torch.isfinite(g).all()) for g in torch.autograd.grad(value, list(model.parameters())))


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Labels(smoothing=-0.1), "smoothing"),
        (lambda: Labels(smoothing=1.1), "smoothing"),
        (lambda: Labels(smoothing=float("nan")), "smoothing"),
        (lambda: Labels(noise=2.0), "noise"),
        (lambda: Labels(attack="guessed"), "attack"),  # pyright: ignore[reportArgumentType]
        (lambda: Labels(noise=0.5).for_update(torch.tensor([0, 4]), 4, generator(0)), "classes"),
        (lambda: Labels(smoothing=0.5).for_update(torch.tensor([-1, 2]), 4, generator(0)), "classes"),
    ],
)
def test_bad_input(make: Callable[[], Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.argument == argument
