"""APGD against known optima, published checkpoints, and the algorithm written down step by step."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from shaketable.attacks.apgd import APGDAttack, apgd
from shaketable.attacks.targets import likeliest, targeted_difference_of_logits_ratio
from shaketable.core import Ball, GradientError, InputError, ce, cross_entropy, generator, margin, perturb, scalar
from shaketable.core.apgd import APGD, checkpoints
from shaketable.core.apgd_l1 import project_l1_box

Make = Callable[..., Any]
BALL = Ball("linf", 0.015, box=(0, 1))
EPS = {"linf": 0.1, "l2": 1.0, "l1": 3.0}


def _linear(n: int = 8, d: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of two classes, inputs in [0, 1], labels, and along which vector each margin rises."""
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(2, d, generator=source, dtype=torch.float64)
    x = torch.rand(n, d, generator=source, dtype=torch.float64)
    y = torch.randint(2, (n,), generator=source)
    return weight, x, y, (weight[1] - weight[0]) * torch.where(y == 0, 1.0, -1.0)[:, None]


def _most(norm: str, eps: Any, v: Tensor, room: Tensor) -> Tensor:
    """The largest v.delta for |delta|_norm <= eps where each |delta_i| is at most its room."""
    if norm == "linf":
        return (v.abs() * room.clamp(max=eps)).sum(1)
    if norm == "l1":  # the largest entries first, each to its bound, until eps is spent
        order = v.abs().argsort(1, descending=True)
        room, v = room.gather(1, order), v.abs().gather(1, order)
        return (v * torch.minimum(room, (eps - room.cumsum(1) + room).clamp(min=0))).sum(1)
    low, high = torch.zeros(len(v), 1).double(), torch.full((len(v), 1), 1e9).double()
    for _ in range(120):  # min(t |v|, room) of length eps
        t = (low + high) / 2
        short = torch.minimum(t * v.abs(), room).norm(dim=1, keepdim=True) < eps
        low, high = torch.where(short, t, low), torch.where(short, high, t)
    return (v.abs() * torch.minimum(low * v.abs(), room)).sum(1)


@pytest.mark.parametrize(("norm", "boxed", "share"), [
    ("linf", False, 1 - 1e-9), ("l2", False, 1 - 1e-9), ("l1", False, 1 - 1e-9),
    ("linf", True, 1 - 1e-9), ("l2", True, 0.96), ("l1", True, 0.96),
])  # fmt: skip
def test_reaches_the_optimum_of_a_linear_model(norm: Any, boxed: bool, share: float) -> None:
    """In a box the l2 projection is not the Euclidean one, and the l1 steps are sparse: hence 96 % there."""
    weight, x, y, v = _linear()
    box = (0, 1) if boxed else None
    found = apgd(lambda z: z @ weight.T, x, y, eps=EPS[norm], norm=norm, loss="margin", box=box)
    room = torch.where(v > 0, 1 - x, x) if boxed else torch.full_like(x, 9.0)
    reached = ((found.point - x) * v).sum(1) / _most(norm, EPS[norm], v, room)
    assert bool((reached >= share).all())
    assert bool((reached <= 1 + 1e-9).all())
    assert (found.calls.forward, found.calls.backward) == (8 * 101, 8 * 100)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_example_has_its_own_radius_and_region(norm: Any) -> None:
    weight, x, y, v = _linear()
    eps = EPS[norm] * torch.linspace(0, 1, 8, dtype=torch.float64)
    mask = torch.rand(8, 40, generator=torch.Generator().manual_seed(3)) < 0.5
    found = apgd(
        lambda z: z @ weight.T, x, y, eps=eps, norm=norm, loss="margin", box=None, mask=mask, steps=60, restarts=2
    )
    reached = ((found.point - x) * v).sum(1)
    best = _most(norm, eps[:, None], v, torch.where(mask, 9.0, 0.0).double())
    assert torch.equal(found.point[~mask], x[~mask])
    assert torch.allclose(reached, best, rtol=1e-3, atol=1e-12)
    assert bool((reached <= best * (1 + 1e-9)).all())


def test_checkpoints_are_the_published_ones() -> None:
    assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)
    assert checkpoints(1000) == (220, 410, 570, 700, 800, 870, 930, 990)
    assert checkpoints(50) == (11, 21, 29, 35, 40, 44, 47, 50)  # ceil(p_j 50)


def _written_down(model: Any, x: Tensor, y: Tensor, delta: Tensor, eps: float, steps: int) -> tuple[Tensor, Tensor]:
    """Algorithm 1 for one image in an linf ball and [0, 1], as the paper has it."""

    def value(point: Tensor) -> tuple[float, Tensor]:
        point = point.detach().requires_grad_()
        loss = cross_entropy(model(point[None]), y[None])[0]
        return float(loss.detach()), torch.autograd.grad(loss, point)[0]

    def inside(point: Tensor) -> Tensor:
        return (x + (point - x).clamp(-eps, eps)).clamp(0, 1)

    marks, eta = [0, *checkpoints(steps)], 2 * eps
    points, values = [x + delta], [value(x + delta)[0]]
    etas, tops = {0: eta}, {0: values[0]}
    top, top_point = values[0], points[0]
    for k in range(steps):
        now = points[-1]
        z = inside(now + eta * value(now)[1].sign())
        new = z if k == 0 else inside(now + 0.75 * (z - now) + 0.25 * (now - points[-2]))
        points.append(new)
        values.append(value(new)[0])
        if values[-1] > top:
            top, top_point = values[-1], new
        if k + 1 in marks[1:]:
            j = marks.index(k + 1)
            begin, etas[j], tops[j] = marks[j - 1], eta, top
            rises = sum(values[i + 1] > values[i] for i in range(begin, k + 1))
            stuck = j > 1 and etas[j - 1] == etas[j] and tops[j - 1] == tops[j]
            if rises < 0.75 * (k + 1 - begin) or stuck:
                eta, points[-1], values[-1] = eta / 2, top_point, top
    return torch.tensor(top), top_point


def test_is_the_published_algorithm(problem: Make) -> None:
    p = problem(6, dtype=torch.float64)
    found = perturb(ce(p.model, p.y), p.x, BALL, by=APGD(30), start="sample", generator=generator(5))
    begun = BALL.on(p.x).sample(p.x, generator(5))
    assert isinstance(begun, Tensor)
    for i in range(6):
        top, point = _written_down(p.model, p.x[i], p.y[i], begun[i], 0.015, 30)
        assert found.value is not None
        assert torch.allclose(found.value[i], top.double(), rtol=1e-6)
        assert torch.allclose(found.point[i], point, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_best_value_rises_with_the_steps_that_are_taken(problem: Make, norm: Any) -> None:
    p, seen = problem(10), []

    def watched(z: Tensor) -> Tensor:
        seen.append(cross_entropy(p.model(z), p.y).detach())
        return p.model(z)

    ball = Ball(norm, {"linf": 0.03, "l2": 0.3}[norm], box=(0, 1))
    found = perturb(ce(watched, p.y), p.x, ball, by=APGD(25), start="sample", generator=generator(0))
    assert found.value is not None
    assert torch.equal(found.value, torch.stack(seen).amax(0))
    assert torch.equal(cross_entropy(p.model(found.point), p.y), found.value)
    assert len(seen) == 26


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.015), ("l2", 0.12), ("l1", 1.0)])
@pytest.mark.parametrize("loss", ["ce", "dlr-targeted"])
def test_dropping_fooled_examples_changes_no_verdict(problem: Make, norm: Any, eps: float, loss: Any) -> None:
    p = problem(20, dtype=torch.float64)
    attack = APGDAttack(loss, steps=12, targets=2)
    objective, ball = ce(p.model, p.y), Ball(norm, eps, box=(0, 1))
    stopped = attack.until_fooled()(p.model, p.x, p.y, ball, generator=generator(1))
    fooled = stopped.flags.stopped
    assert torch.equal(fooled, p.model(stopped.point).argmax(1) != p.y)
    assert 0 < int(fooled.sum()) < 20
    if loss == "ce":
        ever: list[Tensor] = []

        def watched(z: Tensor) -> Tensor:
            logits = p.model(z)
            size = ball.size(z.detach() - p.x, p.x)
            ever.append((logits.argmax(1) != p.y) & (size <= eps * (1 + 1e-9)))  # pyright: ignore
            return logits

        perturb(replace(objective, model=watched), p.x, ball, by=APGD(12), start="sample", generator=generator(1))
        assert torch.equal(fooled, torch.stack(ever).any(0))
    else:
        loud = attack(p.model, p.x, p.y, ball, generator=generator(1))
        assert bool((fooled | (p.model(loud.point).argmax(1) == p.y)).all())
        assert (loud.calls.forward, loud.calls.backward) == (20 + 2 * 20 * 13, 2 * 20 * 12)
        assert stopped.calls.forward < 0.9 * loud.calls.forward


def test_passes_are_counted_to_the_last(problem: Make) -> None:
    p, run = problem(20), [0]

    def counted(z: Tensor) -> Tensor:
        run[0] += len(z)
        return p.model(z)

    found = APGDAttack("dlr-targeted", steps=8, restarts=2, stop=True)(counted, p.x, p.y, BALL, generator=generator(0))
    assert found.calls.forward == run[0]
    left = int((~found.flags.stopped).sum())
    assert 20 + left * 3 * 2 * 9 <= run[0] < 20 + 20 * 3 * 2 * 9  # three other classes, two restarts, nine looks


def test_restarts_find_no_less(problem: Make) -> None:
    p = problem(20)
    one, five = (apgd(p.model, p.x, p.y, eps=0.03, steps=5, restarts=r) for r in (1, 5))
    assert one.value is not None
    assert five.value is not None
    assert bool((five.value >= one.value).all())


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 2.0), ("l1", 5.0)])
def test_a_mask_confines_the_perturbation(problem: Make, norm: Any, eps: float) -> None:
    p = problem()
    mask = torch.zeros(12, 12)
    mask[3:7, 3:7] = 1
    point = apgd(p.model, p.x, p.y, eps=eps, norm=norm, mask=mask, steps=8).point
    assert torch.equal(point[..., mask == 0], p.x[..., mask == 0])
    assert not torch.equal(point, p.x)


def test_weights_are_a_place_as_well() -> None:
    """w.g is highest in a ball per tensor at its radius times the gradient, normalised."""
    source = torch.Generator().manual_seed(1)
    w = {name: torch.randn(3, 4, generator=source, dtype=torch.float64) for name in ("a", "b")}
    g = {name: torch.randn(3, 4, generator=source, dtype=torch.float64) for name in ("a", "b")}
    rises = scalar(lambda v: sum(((v[name] * g[name]).sum() for name in g), torch.tensor(0.0)))
    found = perturb(rises, w, Ball("l2", 0.5, per="tensor", relative=True), by=APGD(20))
    for name in g:
        best = 0.5 * w[name].norm() * g[name] / g[name].norm()
        assert torch.allclose(found.delta[name], best, atol=1e-6)
    assert (found.calls.forward, found.calls.backward) == (21, 20)


def test_the_projection_onto_ball_and_box_is_the_nearest_point() -> None:
    source = torch.Generator().manual_seed(2)
    delta = torch.randn(50, 30, generator=source, dtype=torch.float64)
    low, high = -torch.rand(50, 30, generator=source).double(), torch.rand(50, 30, generator=source).double()
    high[:, :5] = 0
    radius = torch.linspace(0, 12, 50, dtype=torch.float64)[:, None]
    near = project_l1_box(delta, low, high, radius)
    size = near.abs().sum(1, keepdim=True)
    assert bool((size <= radius + 1e-10).all())
    assert bool(((near >= low) & (near <= high)).all())
    assert torch.allclose(project_l1_box(near, low, high, radius), near, atol=1e-10)
    t, step = torch.zeros(50, 1).double(), 4.0  # bisection of what is taken off
    for _ in range(60):
        t, step = (
            torch.where(_cut(delta, low, high, t + step).abs().sum(1, keepdim=True) > radius, t + step, t),
            step / 2,
        )
    full = (_cut(delta, low, high, 0 * t).abs().sum(1, keepdim=True) > radius) & (radius > 0)
    assert torch.allclose(torch.where(full, _cut(delta, low, high, t), near), near, atol=1e-9)
    assert bool(torch.isclose(size, radius)[full].all())
    for _ in range(200):
        other = torch.rand(50, 30, generator=source).double() * (high - low) + low
        other = other * (radius / other.abs().sum(1, keepdim=True)).clamp(max=1)
        assert bool(((other - delta).norm(dim=1) >= (near - delta).norm(dim=1) - 1e-9).all())


def _cut(delta: Tensor, low: Tensor, high: Tensor, t: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(delta.sign() * (delta.abs() - t).clamp(min=0), low), high)


def test_the_targeted_ratio_is_the_published_one() -> None:
    logits, y, target = torch.tensor([[5.0, 3.0, 1.0, 0.0, -2.0]]), torch.tensor([0]), torch.tensor([2])
    assert targeted_difference_of_logits_ratio(logits, y, target).item() == pytest.approx(-(5 - 1) / (5 - 0.5))
    moved = targeted_difference_of_logits_ratio(3 * logits + 7, y, target)
    assert torch.allclose(moved, targeted_difference_of_logits_ratio(logits, y, target))
    assert likeliest(logits, torch.tensor([1]), 9).tolist() == [[0, 2, 3, 4]]


def test_targets_have_gradients_of_their_own() -> None:
    """The likeliest class has no gradient to follow, the next one has: the attack goes on and reaches it."""
    x = torch.full((3, 2), 0.5)

    def model(z: Tensor) -> Tensor:
        flat = torch.ones(len(z), 1)
        return torch.cat([0 * z[:, :1] + 3, 2.5 * flat, z[:, :1] * 4, flat, -flat], 1)

    y = torch.zeros(3, dtype=torch.long)
    found = apgd(model, x, y, eps=0.4, loss="dlr-targeted", steps=10)
    assert model(found.point).argmax(1).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("change", "argument", "error"),
    [
        ({"loss": "hinge"}, "loss", InputError),
        ({"steps": -1}, "steps", InputError),
        ({"restarts": 0}, "restarts", InputError),
        ({"targets": 0}, "targets", InputError),
        ({"norm": "l0"}, "within", InputError),
        ({"y": torch.zeros(40)}, "y", InputError),
        ({"y": torch.full((40,), 4), "loss": "ce-targeted"}, "y", InputError),
        ({"x": torch.full((40, 1, 12, 12), 200.0)}, "origin", InputError),
        ({"model": lambda z: z.flatten(1)[:, :3], "loss": "dlr-targeted"}, "loss", InputError),
        ({"model": lambda z: torch.round(z).flatten(1)[:, :4]}, "objective", GradientError),
        ({"model": lambda z: torch.round(z).flatten(1)[:, :4], "loss": "ce-targeted"}, "objective", GradientError),
    ],
)
def test_mistakes_are_named(problem: Make, change: dict[str, Any], argument: str, error: type) -> None:
    p = problem()
    given = {"model": p.model, "x": p.x, "y": p.y % 3, "eps": 1.0} | change
    with pytest.raises(error) as caught:
        apgd(given.pop("model"), given.pop("x"), given.pop("y"), **given)
    assert caught.value.argument == argument
    assert caught.value.remedy


def test_margin_is_raised_more_than_by_plain_steps(problem: Make) -> None:
    from shaketable.core import PGD

    p, ball = problem(30), Ball("linf", 0.05, box=(0, 1))
    ours, theirs = (
        perturb(margin(p.model, p.y), p.x, ball, by=by, start="sample", generator=generator(0)).value
        for by in (APGD(40), PGD(40, 0.25, keep="best"))
    )
    assert ours is not None
    assert theirs is not None
    assert ours.mean() > theirs.mean()
