"""Rotation prediction beside a robust loss, against formulas written here with NumPy's rotations in float64."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from shaketable.core import PGD, Ball, InputError, ModelError, at, generator, perturb, weights
from shaketable.training.at import AT
from shaketable.training.friendly import Friendly
from shaketable.training.rotation import Rotation, WithRotationHead, rotation
from shaketable.training.trades import TRADES

Make = Callable[..., Any]
D = torch.float64


def turned(x: Tensor, first: int = 0) -> Tensor:
    """Image i rotated by (first + i) mod 4 quarter turns, from row to column axis."""
    return torch.from_numpy(np.stack([np.rot90(a, (first + i) % 4, axes=(1, 2)) for i, a in enumerate(x.numpy())]))


def features(model: Any, x: Tensor) -> Tensor:
    """What enters the last layer of one of the conftest's networks."""
    return model[:-1](x)


def head_by_hand(wrapped: Any, x: Tensor) -> Tensor:
    return features(wrapped.plain, x) @ wrapped.head.weight.T + wrapped.head.bias


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Normalised(nn.Module):
    """A model behind a normalisation layer, in a module of its own, with a layer besides that is not on the way out."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.aside = model, nn.Linear(3, 4).to(dtype)
        self.mean = torch.tensor([0.4, 0.5, 0.6], dtype=dtype).reshape(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model((x - self.mean) / 0.25)
        self.aside(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_logits_are_the_models_and_rotation_logits_the_heads(norm: str, mode: str, network: Make, batch: Make) -> None:
    model, (x, _) = network(norm, dtype=D).train(mode == "train"), batch(6, dtype=D)
    alone = copy.deepcopy(model)
    wrapped = Rotation().prepare(model, x[:2], seed=3)
    assert wrapped.plain is model
    assert wrapped.training == wrapped.head.training == (mode == "train")
    hand = copy.deepcopy(wrapped)
    assert torch.equal(wrapped(x), alone(x))
    hand(x)
    assert torch.equal(wrapped(x, True), head_by_hand(hand, x))
    for name, buffer in wrapped.named_buffers():  # in train mode both passes are recorded
        assert torch.equal(buffer, dict(hand.named_buffers())[name])
    assert hooks(wrapped) == 0
    own = dict(wrapped.named_parameters())
    slopes = torch.autograd.grad(wrapped(x, True).sum(), [own["head.weight"], own["plain.0.weight"]])
    assert all(float(g.abs().max()) > 0 for g in slopes)


def test_behind_a_normalisation_layer_the_right_layer_is_found(network: Make, batch: Make) -> None:
    (x, _), inner = batch(4, dtype=D), network("batch", dtype=D)
    model = Normalised(inner, D)
    wrapped = Rotation().prepare(model, x, seed=0).eval()
    expected = inner[:-1]((x - model.mean) / 0.25) @ wrapped.head.weight.T + wrapped.head.bias
    torch.testing.assert_close(wrapped(x, True), expected, rtol=1e-12, atol=1e-12)


class Twice(nn.Module):
    """A model whose last layer is called twice; the second call is the output."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.last(x.mean((2, 3)))
        return self.last(x.amax((2, 3)))


def test_of_a_layer_that_is_called_twice_the_call_that_gives_the_output_counts(batch: Make) -> None:
    x, _ = batch(4)
    wrapped = Rotation().prepare(Twice(), x, seed=0)
    assert torch.equal(wrapped(x, True), wrapped.head(x.amax((2, 3))))


def test_with_other_weights_and_without_a_trace(network: Make, batch: Make) -> None:
    model, (x, _) = network("batch", dtype=D), batch(6, dtype=D)
    wrapped = Rotation().prepare(model, x, seed=0)
    w = {name: 1.3 * t for name, t in weights(wrapped, "all").items()}
    assert {"head.weight", "head.bias", "plain.0.weight"} <= set(w)
    hand = copy.deepcopy(wrapped)
    hand.load_state_dict({**hand.state_dict(), **w})
    expected = head_by_hand(hand, x)
    before = copy.deepcopy(wrapped.state_dict())
    torch.testing.assert_close(at(wrapped, w)(x, True), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(at(wrapped)(x, True), head_by_hand(copy.deepcopy(wrapped), x), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(t, before[name]) for name, t in wrapped.state_dict().items())
    buffers = {name: b.clone() for name, b in wrapped.named_buffers()}
    torch.testing.assert_close(functional_call(wrapped, {**buffers, **w}, (x, True)), expected, rtol=1e-12, atol=1e-12)
    assert hooks(wrapped) == 0
    with pytest.raises(RuntimeError):
        wrapped(torch.rand(2, 5, 6, 6, dtype=D), True)
    assert hooks(wrapped) == 0


def test_the_head_is_drawn_from_the_seed_alone_and_the_model_is_untouched(network: Make, batch: Make) -> None:
    model, (x, _) = network("batch", dropout=0.5), batch(4)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    heads: list[Any] = [WithRotationHead(model, x, seed).head for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.training
    assert hooks(model) == 0
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert torch.equal(heads[0].bias, heads[1].bias)
    assert not torch.equal(heads[0].weight, heads[2].weight)
    assert heads[0].weight.shape == (4, 16)
    assert 0.15 < float(heads[0].weight.detach().abs().max()) <= 0.25  # uniform within 1 / sqrt(16)
    assert abs(float(heads[0].weight.detach().std()) - 0.25 / 3**0.5) < 0.03
    assert all(p.requires_grad for p in heads[0].parameters())


def loss_by_hand(wrapped: Any, x: Tensor, y: Tensor, weight: float) -> Tensor:
    """mean -log p_y(x) + weight mean -log q_r(rot_r(x)), r the place modulo 4; the class first, as in training."""
    p = features(wrapped.plain, x) @ wrapped.plain[-1].weight.T + wrapped.plain[-1].bias
    q = head_by_hand(wrapped, turned(x))
    rows = range(len(x))
    classes = torch.stack([p[i].exp().sum().log() - p[i, y[i]] for i in rows])
    turns = torch.stack([q[i].exp().sum().log() - q[i, i % 4] for i in rows])
    return (classes.sum() + weight * turns.sum()) / len(x)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("weight", [0.0, 0.5, 4.0])
def test_value_and_gradient_of_the_loss(weight: float, norm: str, network: Make, batch: Make) -> None:
    x, y = batch(7, dtype=D)
    wrapped = Rotation(weight).prepare(network(norm, dtype=D), x, seed=5)
    hand = copy.deepcopy(wrapped)
    value = Rotation(weight).outer(wrapped, torch.zeros_like(x), x, y)
    expected = loss_by_hand(hand, x, y, weight)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    slopes = torch.autograd.grad(value, list(wrapped.parameters()))
    for slope, wanted in zip(slopes, torch.autograd.grad(expected, list(hand.parameters())), strict=True):
        torch.testing.assert_close(slope, wanted, rtol=1e-9, atol=1e-12)
    w = {name: p.detach().clone().requires_grad_() for name, p in wrapped.named_parameters()}
    again = Rotation(weight).weights(wrapped, x, x, y)(w)
    for slope, wanted in zip(torch.autograd.grad(again.sum(), list(w.values())), slopes, strict=True):
        torch.testing.assert_close(slope, wanted, rtol=1e-9, atol=1e-12)


def test_the_attack_raises_both_tasks_for_each_example_by_its_row(network: Make, batch: Make) -> None:
    x, y = batch(7, dtype=D)
    wrapped = Rotation(2.0).prepare(network("batch", dtype=D), x, seed=5).eval()
    objective = Rotation(2.0).inner(wrapped, x, y)
    values = objective(x, None)
    for i in range(7):
        logits, turns = wrapped(x[[i]]).detach(), head_by_hand(wrapped, turned(x[[i]], first=i)).detach()
        expected = -logits.log_softmax(1)[0, y[i]] - 2.0 * turns.log_softmax(1)[0, i % 4]
        assert float(values[i].detach()) == pytest.approx(float(expected), rel=1e-10)
    rows = torch.tensor([6, 1, 2])
    torch.testing.assert_close(objective(x[rows], rows), values[rows])


def test_an_attack_is_the_one_written_by_hand(network: Make, batch: Make) -> None:
    x, y = batch(6, dtype=D)
    loss = Rotation(3.0)
    wrapped = loss.prepare(network("batch", dtype=D), x, seed=5)
    hand = copy.deepcopy(wrapped)
    assert (loss.start, loss.attack_mode) == ("sample", "train")
    found = perturb(
        loss.inner(wrapped, x, y), x, Ball("linf", 0.1, box=(0, 1)), by=PGD(3, 0.4), start=loss.start, generator=generator(2)
    )  # fmt: skip
    delta = 0.1 * (2 * torch.rand(x.shape, generator=generator(2), dtype=D) - 1)
    delta = (x + delta).clamp(0, 1) - x
    for _ in range(3):
        point = (x + delta).clamp(0, 1).requires_grad_()
        rotated = torch.stack([torch.rot90(a, i % 4, (1, 2)) for i, a in enumerate(point)])
        logits, turns = hand.plain(point), head_by_hand(hand, rotated)
        value = F.cross_entropy(logits, y, reduction="sum")
        value = value + 3.0 * F.cross_entropy(turns, torch.arange(6) % 4, reduction="sum")
        (slope,) = torch.autograd.grad(value, point)
        delta = (x + (delta + 0.04 * slope.sign()).clamp(-0.1, 0.1)).clamp(0, 1) - x
    torch.testing.assert_close(found.delta, delta, rtol=0, atol=1e-12)
    fresh = Rotation().prepare(network("batch", dtype=D), x, seed=5).state_dict()
    assert all(torch.equal(t, fresh[name]) for name, t in wrapped.state_dict().items())


def test_another_robust_loss_beside_it(network: Make, batch: Make) -> None:
    x, y = batch(6, dtype=D)
    adversarial = (x + 0.1).clamp(0, 1)
    loss = rotation(weight=0.7, base="trades")
    assert loss == Rotation(0.7, TRADES())
    assert (loss.start, loss.attack_mode) == (TRADES().start, "eval")
    assert rotation() == Rotation(0.5, AT())
    wrapped: Any = loss.prepare(network("none", dtype=D), x, seed=1)
    p, q = wrapped.plain(x).softmax(1), wrapped.plain(adversarial).softmax(1)
    turns = head_by_hand(wrapped, turned(adversarial)).log_softmax(1)
    rows = range(6)
    trades = [-p[i, y[i]].log() + 6.0 * (p[i] * (p[i] / q[i]).log()).sum() for i in rows]
    expected = (torch.stack(trades).sum() - 0.7 * torch.stack([turns[i, i % 4] for i in rows]).sum()) / 6
    value = loss.outer(wrapped, x, adversarial, y)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    objective = loss.inner(wrapped, x, y)
    assert objective.start == TRADES().start  # pyright: ignore[reportAttributeAccessIssue]
    kl = (p * (p / q).log()).sum(1) - 0.7 * torch.stack([turns[i, i % 4] for i in rows])
    torch.testing.assert_close(objective(adversarial, None), kl, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("base", ["at", "trades"])
def test_the_friendly_attack_stops_by_the_class(base: Any, network: Make, batch: Make) -> None:
    x, y = batch(12, dtype=D)
    loss = rotation(weight=1.0, base=base)
    wrapped = loss.prepare(network("none", dtype=D), x, seed=1).eval()
    wanted = y if base == "at" else wrapped(x).argmax(1)
    objective, within = loss.inner(wrapped, x, y), Ball("linf", 0.3, box=(0, 1))
    given: dict[str, Any] = {"start": loss.start, "generator": generator(0)}
    found = perturb(objective, x, within, by=Friendly(8, 0.2), **given)
    assert torch.equal(found.flags.stopped, wrapped(found.point).argmax(1) != wanted)
    assert 0 < int(found.flags.stopped.sum()) < 12
    given["generator"] = generator(0)
    late = perturb(objective, x, within, by=Friendly(8, 0.2, tau=8), **given)
    given["generator"] = generator(0)
    plain = perturb(objective, x, within, by=PGD(8, 0.2), **given)
    assert torch.equal(late.delta, plain.delta)
    torch.testing.assert_close(late.value, objective(late.point, None).detach())


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own doings
def test_compiled_it_is_the_same(network: Make, batch: Make) -> None:
    model, (x, _) = network("batch").eval(), batch(4)
    wrapped = Rotation().prepare(model, x, seed=0)
    compiled: Any = torch.compile(wrapped, backend="eager")
    try:
        torch.testing.assert_close(compiled(x, True), wrapped(x, True))
        torch.testing.assert_close(compiled(x), wrapped(x))
        torch.testing.assert_close(at(compiled)(x, True), wrapped(x, True))
        torch.testing.assert_close(Rotation().outer(compiled, x, x, torch.zeros(4).long()),
                                   Rotation().outer(wrapped, x, x, torch.zeros(4).long()))  # fmt: skip
    finally:
        torch.compiler.reset()


def square(n: int = 2) -> Tensor:
    return torch.rand(n, 3, 6, 6, generator=generator(0))


def flat(*after: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 4), *after)


@pytest.mark.parametrize(
    ("make", "argument", "error"),
    [
        (lambda: Rotation(weight=-1.0), "weight", InputError),
        (lambda: Rotation(weight=float("nan")), "weight", InputError),
        (lambda: rotation(base="rst"), "base", InputError),  # pyright: ignore[reportArgumentType]
        (lambda: Rotation().prepare(flat(), square()[:, :, 1:], 0), "x", InputError),
        (lambda: Rotation().prepare(flat(), square().flatten(1), 0), "x", InputError),
        (lambda: Rotation().prepare(flat(), square(0), 0), "x", InputError),
        (lambda: Rotation().prepare(flat(nn.Softmax(1)), square(), 0), "model", ModelError),
        (lambda: Rotation().prepare(flat(nn.ReLU(inplace=True)), square(), 0), "model", ModelError),
        (lambda: Rotation().prepare(nn.Sequential(nn.Conv2d(3, 4, 6), nn.Flatten()), square(), 0), "model", ModelError),
        (lambda: Rotation().outer(flat(), square(), square(), torch.tensor([0, 1])), "model", InputError),
        (lambda: Rotation().inner(flat(), square(), torch.tensor([0, 1])), "model", InputError),
    ],
)
def test_bad_input(make: Callable[[], Any], argument: str, error: type[ValueError]) -> None:
    with pytest.raises(error) as caught:
        make()
    assert caught.value.argument == argument  # pyright: ignore[reportAttributeAccessIssue]
