"""Worst-case flatness: a linear model in closed form, a hand-written joint ascent, batches, restarts, invariances."""

import copy
import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable.core import PGD, Ball, Calls, GradientError, InputError, generator
from shaketable.core.perturb import drawn_start
from shaketable.flatness.layers import layer_weights, layers_ball
from shaketable.flatness.worst import worst

Make = Callable[..., Any]
EPS = 0.05
LINF = Ball("linf", EPS, box=(0.0, 1.0))


def data(n: int = 5, shape: tuple[int, ...] = (6,), classes: int = 2, seed: int = 3) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    x = 0.2 + 0.6 * torch.rand(n, *shape, generator=source, dtype=torch.float64)  # the box does not bind
    return x, torch.arange(n) % classes


class Net(nn.Module):
    """Two convolutions with BatchNorm, and a linear layer; it counts the examples it is run on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        self.head = nn.Linear(12, 3)
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return self.head(F.relu(self.bn2(self.conv2(x))).flatten(1))


def linear_optimum(model: nn.Linear, x: Tensor, y: int, xi: float) -> float:
    """The highest loss over nu and delta for one image: nu opposes its margin, and delta is some corner of the cube.

    The margin (w_y - w_o) . (x + delta) + b_y - b_o falls by sqrt(2) ||nu|| ||x + delta|| at most, and is concave in delta.
    """
    w, b = model.weight.detach(), model.bias.detach()
    slope, bias = w[y] - w[1 - y], b[y] - b[1 - y]
    corners = EPS * torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6)), dtype=torch.float64)
    points = x + corners
    margins = points @ slope + bias - math.sqrt(2) * xi * (w.norm() * points.norm(dim=1) + b.norm())
    return float(F.softplus(-margins).max())


def linear_reference(model: nn.Linear, x: Tensor, y: Tensor) -> float:
    w, b = model.weight.detach(), model.bias.detach()
    slope = w[y] - w[1 - y]
    return float(F.softplus(EPS * slope.abs().sum(1) - (x * slope).sum(1) - b[y] + b[1 - y]).mean())


@pytest.mark.parametrize("xi", [0.3, 0.003, 0.0])
def test_a_linear_model_in_closed_form(xi: float, fill: Make) -> None:
    """Each image by itself, as a batch of one, so that its nu is known."""
    model = fill(nn.Linear(6, 2))
    x, y = data(3)
    found = worst(
        model, x, y, seed=0, xi=xi, within=LINF, by=PGD(15), step=1.0, restarts=2, reference_restarts=1, batch_size=1
    )
    base = linear_reference(model, x, y)
    best = [linear_optimum(model, x[i], int(y[i]), xi) for i in range(3)]
    assert found.reference == pytest.approx(base, abs=1e-9)
    assert found.value.value == pytest.approx(sum(best) / 3 - base, abs=1e-6)
    assert found.value.n == 3
    assert max(found.draws) <= found.value.value + 1e-12  # each batch keeps its own best restart


def test_one_nu_for_all_images_gives_no_more_than_one_for_each(fill: Make) -> None:
    model = fill(nn.Linear(6, 2))
    x, y = data()
    options: dict[str, Any] = {
        "seed": 0, "xi": 0.3, "within": LINF, "by": PGD(15), "restarts": 1, "reference_restarts": 1, "step": 1.0,
    }  # fmt: skip
    own = worst(model, x, y, batch_size=1, **options)
    one = worst(model, x, y, nu="all", batch_size=5, **options)
    assert 0.05 < one.value.value < own.value.value - 0.05
    parts = worst(model, x, y, nu="all", batch_size=2, **options)  # summed over batches: the same ascent
    assert parts.draws == pytest.approx(one.draws, abs=1e-9)
    assert torch.allclose(parts.per_image, one.per_image, atol=1e-9)
    assert max(one.draws) == pytest.approx(one.value.value, abs=1e-12)


def by_hand(
    model: nn.Module, x: Tensor, y: Tensor, xi: float, rate: float, steps: int, seed: int, *, attack: bool
) -> float:
    """The supplement's updates, section B: both gradients of the mean loss at the same point, then both projections."""
    source = generator(seed, "flatness worst", 0, 0)
    origin, ball = layer_weights(model), layers_ball(xi)
    nu: Any = ball.sample(origin, source, "ball")
    delta: Any = drawn_start("sample", x, LINF, source) if attack else torch.zeros_like(x)
    for k in range(steps + 1):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name in origin:
                moved.get_parameter(name).add_(nu[name])
        inputs = (x + delta).requires_grad_()
        loss = F.cross_entropy(moved(inputs), y)
        if k == steps:
            return loss.item()
        loss.backward()
        for name, w in origin.items():
            slope = moved.get_parameter(name).grad
            assert slope is not None
            v = nu[name] + rate * w.norm() * slope / slope.norm().clamp(min=1e-30)
            nu[name] = v * min(1.0, float(xi * w.norm() / v.norm()))
        if attack:
            assert inputs.grad is not None
            delta = (delta + 0.25 * EPS * inputs.grad.sign()).clamp(-EPS, EPS)
            delta = (x + delta).clamp(0, 1) - x
    raise AssertionError


@pytest.mark.parametrize("loss", ["robust", "clean"])
@pytest.mark.parametrize(("xi", "rate"), [(0.05, 0.02), (0.00075, 0.001)])
def test_a_hand_written_joint_ascent(loss: Any, xi: float, rate: float, fill: Make) -> None:
    model = fill(Net())
    x, y = data(8, (2, 6, 6), 3)
    found = worst(
        model, x, y, seed=4, xi=xi, loss=loss, within=LINF, by=PGD(6), step=rate / xi, restarts=1, reference_restarts=1
    )
    expected = by_hand(model, x, y, xi, rate, 6, 4, attack=loss == "robust")
    assert found.draws[0] + found.reference == pytest.approx(expected, abs=1e-10)
    assert found.value.value == pytest.approx(found.draws[0], abs=1e-12)
    assert found.facts["step"] == rate / xi


def test_the_defaults_are_the_papers(fill: Make) -> None:
    model = fill(nn.Linear(6, 2))
    x, y = data(2)
    known = inspect.signature(worst).parameters
    expected = {
        "restarts": 10,
        "reference_restarts": 10,
        "law": "ball",
        "nu": "batch",
        "batch_size": 128,
        "start": "sample",
    }
    assert {name: known[name].default for name in expected} == expected
    assert known["within"].default == Ball("linf", 8 / 255, box=(0.0, 1.0))
    assert known["by"].default == PGD(20, 0.007 / (8 / 255))
    clean = worst(model, x, y, seed=0, loss="clean", restarts=1)
    assert clean == worst(model, x, y, seed=0, loss="clean", restarts=1, xi=0.003, step=0.001 / 0.003)
    assert (clean.name, clean.calls.backward) == ("clean worst", 2 * 20)
    robust = worst(model, x, y, seed=0, by=PGD(2), restarts=1)
    assert robust == worst(model, x, y, seed=0, by=PGD(2), restarts=1, xi=0.00075, step=0.001 / 0.00075)
    assert (robust.name, robust.facts["xi"]) == ("robust worst", 0.00075)


def test_the_best_restart_of_each_batch_counts(fill: Make) -> None:
    model = fill(Net(), scale=1.0)
    x, y = data(7, (2, 6, 6), 3)
    options: dict[str, Any] = {"seed": 1, "xi": 0.2, "within": LINF, "by": PGD(2), "reference_restarts": 1}
    seen: list[tuple[int, int]] = []
    both = worst(model, x, y, restarts=3, batch_size=4, progress=lambda d, n: seen.append((d, n)), **options)
    assert seen == [(k, 6) for k in range(1, 7)]
    assert len({round(draw, 9) for draw in both.draws}) == 3
    assert both.value.value == pytest.approx(float(both.per_image.mean()), abs=1e-12)
    assert both.value.value >= max(both.draws)
    first = worst(model, x[:4], y[:4], restarts=3, batch_size=4, **options)  # its random starts come first
    assert torch.equal(both.per_image[:4], first.per_image)
    more = worst(model, x[:4], y[:4], restarts=5, batch_size=4, **options)
    assert more.draws[:3] == first.draws
    assert more.value.value >= first.value.value


@pytest.mark.parametrize("keep", ["last", "best"])
def test_passes_are_counted(keep: Any, fill: Make) -> None:
    model = fill(Net())
    x, y = data(21, (2, 6, 6), 3)
    found = worst(
        model, x, y, seed=1, within=LINF, by=PGD(2, keep=keep), restarts=2, reference_restarts=2, batch_size=11
    )
    more = 2 if keep == "best" else 0
    assert found.calls == Calls(21 * (2 * (2 + 1) + more + 2 * (2 + 1) + 2), 21 * (2 * 2 + 2 * 2))
    assert model.seen == found.calls.forward
    model.seen = 0
    clean = worst(model, x, y, seed=1, loss="clean", by=PGD(2, keep=keep), restarts=2, batch_size=11)
    assert clean.calls == Calls(21 * (2 * (2 + 1) + more + 1), 21 * 2 * 2)
    assert model.seen == clean.calls.forward
    assert clean.value.value > 0


def test_a_layer_of_norm_zero_does_not_move(fill: Make) -> None:
    model = fill(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)))
    with torch.no_grad():
        model[0].bias.zero_()
    x, y = data()
    found = worst(model, x, y, seed=0, within=LINF, by=PGD(3), restarts=2)
    assert all(map(math.isfinite, found.draws))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.zero_()
            layer.bias.zero_()
    for loss in ("robust", "clean"):
        still = worst(model, x, y, seed=0, loss=loss, within=LINF, by=PGD(3), restarts=2)
        assert still.draws == (0.0, 0.0)
        assert still.value.value == 0.0
        assert still.reference == pytest.approx(math.log(2))
        assert still.constant


class Twice(nn.Module):
    """One matrix, used twice: as two layers that share it, or as one layer that is called twice."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        if tied:
            self.b = nn.Linear(6, 6)
            self.b.weight, self.b.bias = self.a.weight, self.a.bias
        self.head, self.tied = nn.Linear(6, 2), tied

    def forward(self, x: Tensor) -> Tensor:
        again = self.b if self.tied else self.a
        return self.head(torch.tanh(again(torch.tanh(self.a(x)))))


def test_tied_weights_are_one_layer(fill: Make) -> None:
    x, y = data()
    options: dict[str, Any] = {"seed": 0, "xi": 0.1, "within": LINF, "by": PGD(3), "restarts": 2}
    one, two = (worst(fill(Twice(tied=tied)), x, y, **options) for tied in (True, False))
    assert one.draws == two.draws


def test_a_detached_output_is_an_error(fill: Make) -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).detach()

    x, y = data()
    for loss in ("robust", "clean"):
        with pytest.raises(GradientError, match="differentiated"):
            worst(fill(Detached()), x, y, seed=0, loss=loss, within=LINF, by=PGD(2), restarts=1)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"xi": -0.1}, "xi"),
        ({"xi": float("nan")}, "xi"),
        ({"step": -1.0}, "step"),
        ({"restarts": 0}, "restarts"),
        ({"reference_restarts": 0}, "restarts"),
        ({"by": PGD(2, restarts=3)}, "by"),
        ({"law": "cube"}, "law"),
        ({"start": "ones"}, "start"),
        ({"nu": "each"}, "nu"),
        ({"loss": "robst"}, "loss"),
        ({"batch_size": 0}, "batch_size"),
        ({"x": torch.zeros(0, 6).double(), "y": torch.zeros(0).long()}, "x, y"),
        ({"y": torch.zeros(3).long()}, "x, y"),
        ({"x": torch.full((5, 6), float("nan")).double()}, "origin"),
        ({"x": torch.full((5, 6), float("nan")).double(), "loss": "clean"}, "x"),
        ({"x": torch.full((5, 6), 7.0).double()}, "origin"),
    ],
)
def test_bad_input(change: dict[str, Any], argument: str, fill: Make) -> None:
    x, y = data()
    given = {"x": x, "y": y, "by": PGD(1), "within": LINF, "restarts": 1} | change
    with pytest.raises(InputError) as caught:
        worst(fill(nn.Linear(6, 2)), given.pop("x"), given.pop("y"), seed=0, **given)
    assert caught.value.argument == argument
    assert caught.value.remedy
