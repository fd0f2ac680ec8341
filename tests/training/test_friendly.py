"""The friendly attack against algorithm 1 of Zhang et al. 2020, written here example by example in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable.core import PGD, Ball, InputError, ce, generator, kl, margin, perturb, scalar
from shaketable.training.friendly import Friendly, stopping

Make = Callable[..., Any]
EPS, STEPS, STEP = {"linf": 0.25, "l2": 0.75}, 6, 0.2
BOX = (0.0, 1.0)
LINF = Ball("linf", EPS["linf"], box=BOX)


@dataclass
class Walk:
    """Where one example ended, and how often it was looked at with a gradient."""

    point: Tensor
    looks: int
    finished: bool


def by_hand(model: nn.Module, kind: str, norm: str, x: Tensor, label: int, delta: Tensor, tau: int) -> Walk:
    """PGD-K-tau of one example: K steps; misclassified with tau = 0 ends it, misclassified before takes one off tau."""
    eps, clean = EPS[norm], model(x[None])[0].log_softmax(0).detach()
    wanted = label if kind == "ce" else int(clean.argmax())
    point = (x + delta).clamp(*BOX)
    for k in range(STEPS):
        here = point.clone().requires_grad_()
        logits = model(here[None])
        wrong = int(logits[0].argmax()) != wanted
        if wrong and tau == 0:
            return Walk(point, k + 1, True)
        if wrong:
            tau -= 1
        if kind == "ce":
            loss = F.cross_entropy(logits, torch.tensor([label]))
        else:
            loss = F.kl_div(logits.log_softmax(1), clean[None], reduction="sum", log_target=True)
        (slope,) = torch.autograd.grad(loss, here)
        delta = point - x
        if norm == "linf":
            delta = (delta + STEP * eps * slope.sign()).clamp(-eps, eps)
        else:
            delta = delta + STEP * eps * slope / slope.norm()
            delta = delta * min(1.0, eps / float(delta.norm()))
        point = (x + delta).clamp(*BOX)
    return Walk(point, STEPS, False)


def start_of(x: Tensor, norm: str) -> Tensor:
    """A feasible start of about half the radius."""
    noise = torch.rand(x.shape, generator=generator(9), dtype=x.dtype) - 0.5
    delta = EPS[norm] * (noise if norm == "linf" else 0.5 * noise / noise.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1))
    return (x + delta).clamp(*BOX) - x


@pytest.mark.parametrize("tau", [0, 1, 3, 50])
@pytest.mark.parametrize("kind", ["ce", "kl"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_equals_the_algorithm_written_by_hand(norm: Any, kind: str, tau: int, network: Make, batch: Make) -> None:
    model = network("batch", seed=2, dtype=torch.float64).eval()
    x, y = batch(24, dtype=torch.float64)
    y = torch.where(torch.arange(24) < 14, model(x).argmax(1), y)
    delta = start_of(x, norm)
    objective = ce(model, y) if kind == "ce" else kl(model, x)
    within, by = Ball(norm, EPS[norm], box=BOX), Friendly(STEPS, STEP, tau)
    found = perturb(objective, x, within, by=by, start=delta)
    walks = [by_hand(model, kind, norm, a, int(k), d, tau) for a, k, d in zip(x, y, delta, strict=True)]
    looks = [walk.looks for walk in walks]
    for i, walk in enumerate(walks):
        torch.testing.assert_close(found.point[i], walk.point, rtol=0, atol=1e-10)
    assert found.calls.backward == sum(looks)
    assert found.calls.forward == sum(looks) + sum(not walk.finished for walk in walks)
    if tau < STEPS:  # the case holds examples that end early, later, and not at all
        assert len(set(looks)) > 2
        assert {walk.finished for walk in walks} == {True, False}
    else:
        assert set(looks) == {STEPS}


@pytest.mark.parametrize("kind", ["ce", "kl"])
def test_a_large_tau_is_pgd_bit_for_bit(kind: str, network: Make, batch: Make) -> None:
    model = network("batch", seed=2).eval()
    x, y = batch(10)
    objective = ce(model, y) if kind == "ce" else kl(model, x)
    given: dict[str, Any] = {"start": start_of(x, "linf")}
    friendly = perturb(objective, x, LINF, by=Friendly(STEPS, STEP, STEPS), **given)
    plain = perturb(objective, x, LINF, by=PGD(STEPS, STEP), **given)
    assert torch.equal(friendly.delta, plain.delta)
    assert not torch.equal(friendly.delta, perturb(objective, x, LINF, by=Friendly(STEPS, STEP, 0), **given).delta)


@pytest.mark.parametrize("make", [ce, margin])
def test_tau_zero_is_pgd_that_stops_at_the_first_misclassified_point(make: Any, network: Make, batch: Make) -> None:
    model = network("none").eval()
    x, y = batch(10)
    start = start_of(x, "linf")
    friendly = perturb(make(model, y), x, LINF, by=Friendly(STEPS, STEP), start=start)
    plain = perturb(make(model, y, stop=True), x, LINF, by=PGD(STEPS, STEP), start=start)
    assert torch.equal(friendly.delta, plain.delta)
    assert friendly.calls == plain.calls
    assert torch.equal(friendly.flags.stopped, plain.flags.stopped)
    wrong = model((x + start).clamp(*BOX)).argmax(1) != y
    assert bool(wrong.any())
    assert torch.equal(friendly.delta[wrong], start[wrong])


def test_a_clean_mistake_is_no_mistake_to_the_divergence(network: Make, batch: Make) -> None:
    """For TRADES an example is misclassified where it leaves the clean prediction, right or wrong."""
    model = network("none").eval()
    x, _ = batch(10)
    clean = model(x).argmax(1)
    found = perturb(kl(model, x), x, LINF, by=Friendly(1, STEP), generator=generator(0))
    assert not bool(found.flags.stopped[model(found.point).argmax(1) == clean].any())
    assert float(found.delta.abs().flatten(1).amax(1).min()) > 2e-2  # none stood still at its start
    values, moved = stopping(kl(model, x)).judge(x.flip(0), torch.arange(10).flip(0))
    assert not bool(moved.any())
    torch.testing.assert_close(values.detach(), torch.zeros(10))


def test_any_start_and_each_run_counts_anew(network: Make, batch: Make) -> None:
    model = network("none").eval()
    x, y = batch(8)
    by = Friendly(STEPS, STEP, 2)
    runs = [perturb(ce(model, y), x, LINF, by=by, start="sample", generator=generator(4)) for _ in range(2)]
    assert torch.equal(runs[0].delta, runs[1].delta)
    assert runs[0].calls == runs[1].calls


class Judging:
    """An objective of a user's own that stops, far from any class."""

    stops = True

    def __call__(self, point: Tensor, rows: Tensor | None = None) -> Tensor:
        return point.flatten(1).sum(1)

    def judge(self, point: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        value = self(point, rows)
        return value, value.detach() > 2.5


def test_an_objective_with_a_judge_of_its_own() -> None:
    x = torch.zeros(3, 4)
    x[1], x[2] = 0.5, 0.7
    found = perturb(Judging(), x, Ball("linf", 0.2), by=Friendly(4, 0.25, tau=1))
    ends = torch.tensor([0.2, 0.2, 0.05])  # never above 2.5; 2.6 after three steps, and one more; at once, and one more
    torch.testing.assert_close(found.delta[:, 0], ends)


class Silent:
    """An objective that cannot say what is misclassified."""

    def __call__(self, point: Tensor, rows: Tensor | None = None) -> Tensor:
        return point.flatten(1).sum(1)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Friendly(tau=-1), "tau"),
        (lambda: Friendly(tau=1.5), "tau"),  # pyright: ignore[reportArgumentType]
        (lambda: Friendly(steps=-1), "steps"),
        (lambda: Friendly(step=float("inf")), "step"),
        (lambda: perturb(Silent(), torch.rand(2, 3), Ball("linf", 0.1), by=Friendly()), "objective"),
        (lambda: perturb(scalar(torch.sum), torch.rand(2, 3), Ball("linf", 0.1), by=Friendly()), "objective"),
        (lambda: perturb(Judging(), torch.rand(2, 3), Ball("l2", 0.1, per="all"), by=Friendly()), "within"),
    ],
)
def test_bad_input(make: Callable[[], Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.argument == argument
