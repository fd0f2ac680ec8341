"""One step of AT, TRADES and AWP against an implementation written here from the papers, with nothing of the package."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable.core import PGD, Ball, InputError, generator
from shaketable.training import AT, AWP_BALL, TRADES, DivergenceError, WeightPerturbation, at, awp, trades, train_step

Make = Callable[..., Any]
DTYPES = {torch.float32: 1e-5, torch.float64: 1e-10}
RATE, MOMENTUM, DECAY = 0.05, 0.9, 5e-3
EPS, STEPS, STEP = 0.1, 4, 0.3


def attack_by_hand(
    model: nn.Module, kind: str, norm: str, x: Tensor, y: Tensor, source: torch.Generator, eps: float = EPS
) -> Tensor:
    """PGD as the papers' loops write it: Madry's on cross-entropy in train mode, TRADES' on the KL in eval mode."""
    model = copy.deepcopy(model).train(kind == "at")
    n, wide = len(x), [1] * (x.dim() - 1)
    if kind == "trades":
        delta = 1e-3 * torch.randn(x.shape, generator=source, dtype=x.dtype)
    elif norm == "linf":
        delta = eps * (2 * torch.rand(x.shape, generator=source, dtype=x.dtype) - 1)
    else:
        noise = torch.randn(n, x[0].numel(), generator=source, dtype=x.dtype)
        length = eps * torch.rand(n, 1, generator=source, dtype=x.dtype) ** (1 / x[0].numel())
        delta = (noise / noise.norm(dim=1, keepdim=True) * length).reshape(x.shape)
    delta = (x + delta).clamp(0, 1) - x
    clean = F.log_softmax(model(x), 1).detach()
    for _ in range(STEPS):
        adversarial = (x + delta).clamp(0, 1).requires_grad_()
        logits = model(adversarial)
        if kind == "at":
            loss = F.cross_entropy(logits, y)
        else:  # at .001 from x the gradient is a difference of nearly equal probabilities: in float32 a softmax that is
            # rounded otherwise flips signs, so the reference is kept as logarithms
            loss = F.kl_div(F.log_softmax(logits, 1), clean, reduction="sum", log_target=True)
        (gradient,) = torch.autograd.grad(loss, adversarial)
        if norm == "linf":
            delta = (delta + STEP * eps * gradient.sign()).clamp(-eps, eps)
        else:
            length = gradient.flatten(1).norm(dim=1).reshape(-1, *wide)
            delta = delta + STEP * eps * gradient / length
            delta = delta * (eps / delta.flatten(1).norm(dim=1).reshape(-1, *wide)).clamp(max=1)
        delta = (x + delta).clamp(0, 1) - x
    return (x + delta).clamp(0, 1)


def loss_by_hand(model: nn.Module, kind: str, x: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
    if kind == "at":
        return F.cross_entropy(model(adversarial), y)
    clean, other = model(x), model(adversarial)
    divergence = F.kl_div(F.log_softmax(other, 1), F.softmax(clean, 1), reduction="batchmean")
    return F.cross_entropy(clean, y) + 6.0 * divergence


def shake_by_hand(
    model: nn.Module, kind: str, x: Tensor, adversarial: Tensor, y: Tensor, gamma: float, rounds: int = 1
) -> dict[str, Tensor]:
    """v_l = gamma ||w_l|| g_l / ||g_l||; with more rounds v_l <- Proj(v_l + gamma / rounds ||w_l|| g_l / ||g_l||)."""
    origin = {name: p.detach().clone() for name, p in model.named_parameters() if p.dim() > 1}
    v = {name: torch.zeros_like(w) for name, w in origin.items()}
    for _ in range(rounds):
        shaken = copy.deepcopy(model)
        shaken.zero_grad()
        own = dict(shaken.named_parameters())
        with torch.no_grad():
            for name, part in v.items():
                own[name].add_(part)
        loss_by_hand(shaken, kind, x, adversarial, y).backward()
        for name, w in origin.items():
            g = own[name].grad
            if g is None or float(g.norm()) == 0:
                continue
            moved = v[name] + gamma / rounds * w.norm() * g / g.norm()
            limit = gamma * w.norm()
            v[name] = moved * min(1.0, float(limit / moved.norm())) if float(limit) else torch.zeros_like(w)
    return v


class ByHand:
    """A training step on a model of its own: PGD, then v, then SGD with momentum and weight decay at w + v, then - v."""

    def __init__(self, model: nn.Module, kind: str, norm: str = "linf", gamma: float = 0.0, rounds: int = 1) -> None:
        self.model: Any = copy.deepcopy(model)
        self.kind, self.norm = kind, norm
        self.gamma, self.rounds = gamma, rounds
        self.velocity = {name: torch.zeros_like(p) for name, p in self.model.named_parameters()}

    def go_on_from(self, model: nn.Module, optimiser: torch.optim.SGD) -> None:
        """Take over another training's weights, statistics and momentum."""
        self.model = copy.deepcopy(model)
        for name, p in model.named_parameters():
            memory = optimiser.state.get(p, {}).get("momentum_buffer")
            self.velocity[name] = torch.zeros_like(p) if memory is None else memory.clone()

    def step(self, x: Tensor, y: Tensor, source: torch.Generator) -> float:
        adversarial = attack_by_hand(self.model, self.kind, self.norm, x, y, source)
        v: dict[str, Tensor] = {}
        if self.gamma:
            v = shake_by_hand(self.model, self.kind, x, adversarial, y, self.gamma, self.rounds)
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, part in v.items():
                own[name].add_(part)
        self.model.zero_grad()
        loss = loss_by_hand(self.model, self.kind, x, adversarial, y)
        loss.backward()
        with torch.no_grad():
            for name, p in own.items():
                if p.grad is not None:
                    self.velocity[name] = MOMENTUM * self.velocity[name] + p.grad + DECAY * p
                    p.sub_(RATE * self.velocity[name])
                if name in v:
                    p.sub_(v[name])
        return float(loss.detach())


class Watching(torch.optim.SGD):
    """SGD that keeps the weights that it was asked to step from, w + v."""

    seen: dict[int, Tensor]

    def step(self, closure: Any = None) -> Any:
        self.seen = {id(p): p.detach().clone() for group in self.param_groups for p in group["params"]}
        return super().step(closure)


def sgd(model: nn.Module, kind: type[torch.optim.SGD] = torch.optim.SGD, **options: Any) -> Any:
    given: dict[str, Any] = {"lr": RATE, "momentum": MOMENTUM, "weight_decay": DECAY} | options
    return kind(model.parameters(), **given)


def take(model: nn.Module, optimiser: Any, loss: Any, x: Tensor, y: Tensor, weights: Any, **options: Any) -> Any:
    given = {"within": Ball("linf", EPS, box=(0.0, 1.0)), "by": PGD(STEPS, STEP), "generator": generator(3)} | options
    return train_step(model, optimiser, loss, x, y, weights=weights, **given)


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def apart(a: Tensor, b: Tensor) -> float:
    """How far a is from b, relative to b."""
    return float((a - b).double().norm() / b.double().norm().clamp(min=1e-30))


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize(
    ("kind", "gamma", "rounds", "ball"),
    [
        ("at", 0.0, 1, "linf"),
        ("at", 0.01, 1, "linf"),
        ("at", 0.01, 1, "l2"),
        ("at", 0.02, 3, "linf"),
        ("trades", 0.0, 1, "linf"),
        ("trades", 0.005, 1, "linf"),
    ],
)
def test_steps_equal_those_written_by_hand(
    kind: str, gamma: float, rounds: int, ball: Any, norm: str, dtype: torch.dtype, network: Make, batch: Make
) -> None:
    model, tolerance = network(norm, dtype=dtype), DTYPES[dtype]
    hand, optimiser = ByHand(model, kind, ball, gamma, rounds), sgd(model)
    loss = at() if kind == "at" else trades(6.0)
    within = Ball(ball, EPS, box=(0.0, 1.0))
    weights = awp(gamma, steps=rounds) if gamma else None
    for k in range(4):
        x, y = batch(6, seed=k, dtype=dtype)
        before = bits(model)
        if dtype is torch.float32:  # step by step: a difference of one rounding may turn a sign of the next attack
            hand.go_on_from(model, optimiser)
        done = take(model, optimiser, loss, x, y, weights, within=within, generator=generator(5, k))
        before_hand = bits(hand.model)
        value = hand.step(x, y, generator(5, k))
        assert done.loss == pytest.approx(value, rel=tolerance)
        after, after_hand = bits(model), bits(hand.model)
        for name, w in after_hand.items():
            if not w.is_floating_point():
                assert torch.equal(after[name], w), name
                continue
            assert apart(after[name], w) <= tolerance, name
            if dtype is torch.float64:  # the step itself, which is a hundredth of the weight
                assert apart(after[name] - before[name], w - before_hand[name]) <= tolerance, name
    if norm == "batch":  # the training pass alone moves the statistics, and TRADES has two
        assert int(model[1].num_batches_tracked) == 4 * (1 if kind == "at" else 2)


def test_by_hand_is_the_step_without_awp_if_gamma_is_zero(network: Make, batch: Make) -> None:
    """The comparison above can fail: it tells gamma .01 from 0 and from .0101, and AT from TRADES."""
    x, y = batch(dtype=torch.float64)
    ends = {}
    for key, kind, gamma in (("0", "at", 0.0), ("1", "at", 0.01), ("2", "at", 0.0101), ("3", "trades", 0.01)):
        hand = ByHand(network("batch", dtype=torch.float64), kind, gamma=gamma)
        hand.step(x, y, generator(5))
        ends[key] = hand.model[0].weight.detach()
    others = [apart(ends["1"], ends[key]) for key in "023"]
    assert min(others) > 1e-7


@pytest.mark.parametrize("kind", ["at", "trades"])
def test_v_has_the_papers_size_and_leaves_biases_and_batchnorm_alone(kind: str, network: Make, batch: Make) -> None:
    model = network("batch", dtype=torch.float64)
    before, optimiser = bits(model), sgd(model, Watching)
    x, y = batch(dtype=torch.float64)
    take(model, optimiser, at() if kind == "at" else trades(), x, y, awp(0.01))
    for name, p in model.named_parameters():
        v = optimiser.seen[id(p)] - before[name]
        if p.dim() > 1:
            assert float(v.norm() / before[name].norm()) == pytest.approx(0.01, rel=1e-9)
        else:
            assert torch.equal(optimiser.seen[id(p)], before[name])


def test_steps_of_awp_stay_in_the_ball_and_climb_higher_than_one(network: Make, batch: Make) -> None:
    x, y = batch(dtype=torch.float64)
    losses = {}
    for steps in (1, 7):
        model = network("group", dtype=torch.float64)
        before, optimiser = bits(model), sgd(model, Watching)
        losses[steps] = take(model, optimiser, at(), x, y, awp(0.3, steps=steps)).loss
        for name, p in model.named_parameters():
            if p.dim() > 1:
                assert float((optimiser.seen[id(p)] - before[name]).norm() / before[name].norm()) <= 0.3 * (1 + 1e-12)
    assert losses[7] > losses[1]


class DoesNothing(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        return None


class Fails(Watching):
    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        raise OSError("the optimiser broke")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gamma", [0.01, 3.0])
def test_weights_that_are_not_stepped_come_back_to_the_bit(
    gamma: float, dtype: torch.dtype, network: Make, batch: Make
) -> None:
    model = network("none", dtype=dtype)
    with torch.no_grad():
        model[0].weight[0, 0] = -0.0  # a zero has a sign, too
    before = bits(model)
    x, y = batch(dtype=dtype)
    for k in range(8):
        take(model, sgd(model, DoesNothing), at(), x, y, awp(gamma), generator=generator(k))
        take(model, sgd(model, lr=0.0), at(), x, y, awp(gamma), generator=generator(k))
    for name, w in bits(model).items():
        assert torch.equal(w.view(torch.uint8), before[name].view(torch.uint8)), name


def test_an_optimiser_that_raises_leaves_no_perturbation(network: Make, batch: Make) -> None:
    model = network("none", dtype=torch.float64)
    stepped = copy.deepcopy(model)
    x, y = batch(dtype=torch.float64)
    take(stepped, sgd(stepped), at(), x, y, awp())
    optimiser = sgd(model, Fails)
    with pytest.raises(OSError, match="the optimiser broke"):
        take(model, optimiser, at(), x, y, awp())
    for name, p in model.named_parameters():  # it stepped before it raised: the step is kept, v is off
        assert torch.equal(p, dict(stepped.named_parameters())[name])
        assert p.dim() == 1 or not torch.equal(optimiser.seen[id(p)], p)


@dataclass(frozen=True)
class Broken(AT):
    """AT whose training pass fails, after the inputs and the weights were perturbed."""

    how: str = "raise"

    def outer(self, model: Any, x: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
        value = super().outer(model, x, adversarial, y)
        if not isinstance(model, nn.Module):
            return value  # the weight perturbation's
        if self.how == "raise":
            raise RuntimeError("the loss broke")
        if self.how == "gradient":  # finite, with a slope of 0 / 0
            return value + sum(p.sub(p.detach()).square().sum().sqrt() for p in model.parameters())
        return value * math.nan if self.how == "nan" else value + math.inf


@pytest.mark.parametrize("weights", [None, awp()], ids=["plain", "awp"])
@pytest.mark.parametrize(
    ("how", "error"),
    [("raise", RuntimeError), ("nan", DivergenceError), ("inf", DivergenceError), ("gradient", DivergenceError)],
)
def test_a_failing_pass_leaves_the_weights_and_the_momentum(
    how: str, error: Any, weights: Any, network: Make, batch: Make
) -> None:
    model = network("none")
    x, y = batch()
    optimiser = sgd(model)
    take(model, optimiser, at(), x, y, weights)
    before, memory = bits(model), copy.deepcopy(optimiser.state_dict())
    with pytest.raises(error) as caught:
        take(model, optimiser, Broken(how=how), x, y, weights)
    assert same(bits(model), before)
    for key, state in optimiser.state_dict()["state"].items():
        assert torch.equal(state["momentum_buffer"], memory["state"][key]["momentum_buffer"])
    if error is DivergenceError:
        assert caught.value.remedy.startswith("Lower the learning rate")
        assert caught.value.argument == ("gradient" if how == "gradient" else "loss")
    take(model, optimiser, at(), x, y, weights)  # and training goes on


@pytest.mark.parametrize("loss", [at(), trades()], ids=["at", "trades"])
@pytest.mark.parametrize("weights", [None, awp()], ids=["plain", "awp"])
def test_weights_that_are_not_finite_are_a_divergence(loss: Any, weights: Any, network: Make, batch: Make) -> None:
    model = network("batch")
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)
    x, y = batch()
    with pytest.raises(DivergenceError, match="loss: expected a finite number, found nan"):
        take(model, sgd(model), loss, x, y, weights)


def test_images_that_are_not_finite_are_named(network: Make, batch: Make) -> None:
    x, y = batch()
    x[2] = torch.nan
    with pytest.raises(InputError, match="origin: expected finite values"):
        take(network(), sgd(network()), at(), x, y, None)


class Odd(nn.Module):
    """A matrix of norm 0, one that nothing depends on, and one whose gradient is exactly 0."""

    def __init__(self) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(5, 12, generator=source, dtype=torch.float64))
        self.zero = nn.Parameter(torch.zeros(5, 5, dtype=torch.float64))
        self.unused = nn.Parameter(torch.randn(3, 3, generator=source, dtype=torch.float64))
        self.flat = nn.Parameter(torch.randn(5, 5, generator=source, dtype=torch.float64))
        self.last = nn.Parameter(torch.randn(4, 5, generator=source, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(x.flatten(1) @ self.first.T)
        return (hidden + hidden @ self.zero.T + 0 * (hidden @ self.flat.T)) @ self.last.T


def test_tensors_without_norm_or_gradient_are_left_alone() -> None:
    model = Odd()
    before, optimiser = bits(model), sgd(model, Watching, weight_decay=0.0)
    x = torch.rand(7, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(7) % 4
    hand = ByHand(model, "at", gamma=0.05)
    done = take(model, optimiser, at(), x, y, awp(0.05), generator=generator(2))
    assert not done.silent
    for name in ("zero", "unused", "flat"):
        assert torch.equal(optimiser.seen[id(getattr(model, name))], before[name]), name
    for name in ("first", "last"):
        v = optimiser.seen[id(getattr(model, name))] - before[name]
        assert float(v.norm() / before[name].norm()) == pytest.approx(0.05, rel=1e-9)
    assert torch.equal(model.unused, before["unused"])
    assert torch.equal(model.flat, before["flat"])
    assert not torch.equal(model.zero, before["zero"])  # no v, but the optimiser's own step
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert hand.step(x, y, generator(2)) == pytest.approx(done.loss, rel=1e-10)


class Tied(nn.Module):
    """One matrix in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        source = torch.Generator().manual_seed(0)
        for layer in (self.a, self.b, self.head):
            for parameter in layer.parameters():
                parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=source))
        self.b.weight = self.a.weight
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x.flatten(1))))))


def test_a_tied_matrix_is_perturbed_once_by_the_sum_of_its_gradients() -> None:
    model = Tied()
    before, optimiser = bits(model), sgd(model, Watching)
    hand = ByHand(model, "at", gamma=0.05)
    x = torch.rand(7, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(7) % 4
    for k in range(3):
        done = take(model, optimiser, at(), x, y, awp(0.05), generator=generator(k))
        assert hand.step(x, y, generator(k)) == pytest.approx(done.loss, rel=1e-10)
        if k == 0:
            v = optimiser.seen[id(model.a.weight)] - before["a.weight"]
            assert float(v.norm() / before["a.weight"].norm()) == pytest.approx(0.05, rel=1e-9)
    assert model.b.weight is model.a.weight
    assert apart(model.a.weight.detach(), hand.model.a.weight.detach()) <= 1e-10


def test_one_ball_over_all_weights_is_sam(network: Make, batch: Make) -> None:
    """Foret et al. 2021 on the clean loss: e = rho g / ||g|| over all parameters, the optimiser with the gradient at w + e."""
    rho = 0.07
    model = network("group", dtype=torch.float64)
    own = copy.deepcopy(model)
    velocity = {name: torch.zeros_like(p) for name, p in own.named_parameters()}
    optimiser = sgd(model, weight_decay=0.0)
    sam = WeightPerturbation(Ball("l2", rho, per="all"), select="all")
    for k in range(3):
        x, y = batch(seed=k, dtype=torch.float64)
        take(model, optimiser, AT(start="zero"), x, y, sam, within=Ball("linf", 0.0, box=(0.0, 1.0)))
        names, parameters = zip(*own.named_parameters(), strict=True)
        first = torch.autograd.grad(F.cross_entropy(own(x), y), parameters)
        length = torch.stack([g.square().sum() for g in first]).sum().sqrt()
        shaken = copy.deepcopy(own)
        with torch.no_grad():
            for p, g in zip(shaken.parameters(), first, strict=True):
                p.add_(rho * g / length)
        second = torch.autograd.grad(F.cross_entropy(shaken(x), y), list(shaken.parameters()))
        with torch.no_grad():
            for name, p, g in zip(names, parameters, second, strict=True):
                velocity[name] = MOMENTUM * velocity[name] + g
                p.sub_(RATE * velocity[name])
    for p, q in zip(model.parameters(), own.parameters(), strict=True):
        assert apart(p.detach(), q.detach()) <= 1e-10


def test_old_gradients_do_not_count_and_the_attack_leaves_none(network: Make, batch: Make) -> None:
    x, y = batch()
    ends = []
    for stale in (False, True):
        model = network("batch")
        if stale:
            for p in model.parameters():
                p.grad = torch.full_like(p, 1e6)
        take(model, sgd(model), at(), x, y, awp())
        ends.append(bits(model))
    assert same(*ends)
    model = network("batch")
    seen: list[bool] = []

    @dataclass(frozen=True)
    class Looking(AT):
        def outer(self, model: Any, x: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
            if isinstance(model, nn.Module):
                seen.append(all(p.grad is None for p in model.parameters()) and not adversarial.requires_grad)
            return super().outer(model, x, adversarial, y)

    take(model, sgd(model), Looking(), x, y, awp())
    assert seen == [True]
    assert x.grad is None
    assert not x.requires_grad


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_frozen_parts_and_modes_stay(mode: Any, network: Make, batch: Make) -> None:
    model = network("batch")
    model[1].eval()
    model[0].weight.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    frozen, statistics = model[0].weight.detach().clone(), model[1].running_mean.clone()
    x, y = batch()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], RATE)
    take(model, optimiser, AT(attack_mode=mode), x, y, awp())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(model[0].weight, frozen)
    assert not model[0].weight.requires_grad
    assert model[0].weight.grad is None
    assert torch.equal(model[1].running_mean, statistics)


def test_a_constant_model_is_said_to_be_silent_and_is_trained_all_the_same(network: Make, batch: Make) -> None:
    model = network("none")
    with torch.no_grad():
        model[-1].weight.zero_()
    x, y = batch()
    bias = model[-1].bias.detach().clone()
    done = take(model, sgd(model), at(), x, y, awp())
    assert done.silent
    assert math.isfinite(done.loss)
    assert not torch.equal(model[-1].bias, bias)


def test_passes_are_counted(network: Make, batch: Make) -> None:
    model, (x, y) = network("none"), batch(5)
    plain = take(model, sgd(model), at(), x, y, None)
    assert (plain.calls.forward, plain.calls.backward) == (5 * STEPS, 5 * STEPS)
    shaken = take(model, sgd(model), at(), x, y, awp(steps=2))
    assert (shaken.calls.forward, shaken.calls.backward) == (5 * (STEPS + 2), 5 * (STEPS + 2))


def test_the_defaults_are_the_papers() -> None:
    assert (AWP_BALL.norm, AWP_BALL.radius, AWP_BALL.per, AWP_BALL.relative) == ("l2", 0.01, "tensor", True)
    assert awp() == WeightPerturbation()
    assert awp(0.005).within == replace(AWP_BALL, radius=0.005)
    assert (TRADES().beta, TRADES().attack_mode, AT().attack_mode) == (6.0, "eval", "train")
    assert trades(3.0) == TRADES(3.0)
    with pytest.raises(InputError, match="beta: expected a number >= 0"):
        trades(-1.0)
