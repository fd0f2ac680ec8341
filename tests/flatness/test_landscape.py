"""The adversarial loss around a model: known losses, and points that can be had by themselves."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable.core import PGD, Ball, Calls, InputError, generator
from shaketable.core.measure import measure
from shaketable.flatness.directions import Adversarial, Axes, Eigenvectors, Random
from shaketable.flatness.landscape import combined, grid, landscape, landscape_point
from shaketable.flatness.layers import layers_ball

Make = Callable[..., Any]
EPS = 0.05
LINF = Ball("linf", EPS, box=(0.0, 1.0))
OPTIONS: dict[str, Any] = {"seed": 1, "within": LINF, "by": PGD(2, 0.5), "batch_size": 8}


def data(n: int = 12, shape: tuple[int, ...] = (10,), classes: int = 2, seed: int = 3) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    x = 0.2 + 0.6 * torch.rand(n, *shape, generator=source, dtype=torch.float64)  # the box does not bind
    return x, torch.randint(0, classes, (n,), generator=source)


class Net(nn.Module):
    """Convolution, BatchNorm, ReLU, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.bn(self.conv(x))).flatten(1))


def linear_losses(w: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[float, float]:
    """Of a linear model of two classes, robust and clean: mean softplus(-(margin - eps ||w_y - w_other||_1))."""
    slope = w["weight"][y] - w["weight"][1 - y]
    margin = (x * slope).sum(1) + w["bias"][y] - w["bias"][1 - y]
    return tuple(float(F.softplus(e * slope.abs().sum(1) - margin).mean()) for e in (EPS, 0.0))  # type: ignore[return-value]


@pytest.mark.parametrize(("dims", "points"), [(1, 5), (2, 3)])
def test_a_linear_model_in_closed_form_at_every_point(dims: int, points: int, fill: Make) -> None:
    model = fill(nn.Linear(10, 2))
    x, y = data()
    found = landscape(model, x, y, dims=dims, points=points, lines=2, **OPTIONS | {"by": PGD(4, 1.0), "batch_size": 12})
    assert found.grids == (grid(points),) * dims
    for line, row in enumerate(found.lines):
        axes = Random()(model, x, y, seed=1, dims=dims, line=line)
        for point, place in zip(row, itertools.product(*found.grids), strict=True):
            assert point.coordinates == place
            w = {
                n: t + sum(c * d[n] for c, d in zip(place, axes.directions, strict=True))
                for n, t in axes.origin.items()
            }
            assert (point.robust_loss, point.clean_loss) == pytest.approx(linear_losses(w, x, y), abs=1e-6)
    robust, clean = found.values("robust_loss"), found.values("clean_loss")
    assert all(r.value > c.value for r, c in zip(robust, clean, strict=True))
    assert len(robust) == points**dims
    assert robust[0].value == pytest.approx((found.lines[0][0].robust_loss + found.lines[1][0].robust_loss) / 2)


def test_along_an_eigenvector_the_loss_is_a_parabola_with_its_eigenvalue(fill: Make) -> None:
    """Of a smooth model's clean loss, by second differences of small steps."""
    model = fill(nn.Sequential(nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 2)))
    x, y = data()
    along = Eigenvectors(scale=Ball("l2", 1e-3, per="all", relative=True), points="clean", tolerance=1e-12)
    found = landscape(model, x, y, along=along, points=3, **OPTIONS | {"by": PGD(0)})
    left, middle, right = (point.clean_loss for point in found.lines[0])
    axes = along(model, x, y, seed=1)
    length = sum(float((d**2).sum()) for d in axes.directions[0].values())
    assert (left - 2 * middle + right) / length == pytest.approx(found.facts[0]["lambda_1"], rel=1e-3)


@pytest.mark.parametrize("kind", [Random(), Adversarial(), Eigenvectors()])
def test_at_the_origin_it_is_the_measured_loss(kind: Any, fill: Make) -> None:
    model = fill(Net())
    x, y = data(shape=(1, 6, 6), classes=3)
    found = landscape(model, x, y, along=kind, lines=1, points=3, **OPTIONS)
    base = measure(model, x, y, LINF, by=PGD(2, 0.5), generator=generator(1, "flatness starts", -1), batch_size=8)
    point = found.lines[0][1]
    assert point.coordinates == (0.0,)
    assert point.robust_loss == float(base.robust_loss.mean())
    assert point.clean_loss == float(base.loss.mean())
    assert (point.robust.hits, point.clean.hits) == (int(base.robust_correct.sum()), int(base.correct.sum()))
    assert point.calls == base.calls


@pytest.mark.parametrize("kind", [Random(), Adversarial(), Eigenvectors()])
def test_a_point_by_itself_is_the_same_point(kind: Any, fill: Make) -> None:
    model = fill(Net())
    x, y = data(shape=(1, 6, 6), classes=3)
    seen: list[tuple[int, int]] = []
    found = landscape(
        model, x, y, along=kind, dims=2, points=3, **OPTIONS, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(k, 9) for k in range(1, 10)]
    axes = kind(model, x, y, dims=2, **OPTIONS)
    for k in (7, 0, 4):
        place = list(itertools.product(*found.grids))[k]
        assert landscape_point(model, x, y, axes=axes, coordinates=place, **OPTIONS) == found.lines[0][k]
    other = landscape_point(model, x, y, axes=axes, coordinates=(1.0, 1.0), **OPTIONS | {"seed": 2})
    assert other.robust_loss != found.lines[0][-1].robust_loss
    assert other.clean_loss == found.lines[0][-1].clean_loss


def test_every_point_is_attacked_anew(fill: Make) -> None:
    """Adversarial points kept from the origin would underestimate the loss elsewhere."""
    model = fill(Net())
    x, y = data(shape=(1, 6, 6), classes=3)
    from shaketable.core import at
    from shaketable.flatness.points import attacked_points

    kept = attacked_points(model, x, y, **OPTIONS).x
    axes = Random(scale=layers_ball(1.0))(model, x, y, **OPTIONS)
    point = landscape_point(model, x, y, axes=axes, coordinates=(1.0,), **OPTIONS)
    with torch.no_grad():
        stale = float(F.cross_entropy(at(model, axes.at((1.0,)))(kept), y))
    assert point.robust_loss > stale + 0.01


def test_three_axes_and_their_cost(fill: Make) -> None:
    model = fill(Net())
    x, y = data(shape=(1, 6, 6), classes=3)
    found = landscape(model, x, y, dims=3, points=3, **OPTIONS | {"by": PGD(1)})
    assert len(found.lines) == 1
    assert len(found.values("robust")) == 27
    assert found.lines[0][13].coordinates == (0.0, 0.0, 0.0)
    assert found.calls == Calls(27 * 12 * 3, 27 * 12)


@pytest.mark.parametrize("points", [2, 3, 5, 11, 51, 101])
def test_grids_are_symmetric_and_hold_zero_exactly(points: int) -> None:
    made = grid(points)
    assert made[0] == -1
    assert made[-1] == 1
    assert [-value for value in reversed(made)] == list(made)
    assert (0.0 in made) == (points % 2 == 1)
    assert len(set(made)) == points
    skew = grid(points, -0.3, 2.0)
    assert (skew[0], skew[-1]) == (-0.3, 2.0)
    assert list(skew) == sorted(skew)


def test_lines_are_combined_as_the_paper_does() -> None:
    assert combined([1.0, 2.0, 6.0], "mean", "robust_loss").value == 3
    assert combined([1.0, 2.0, 6.0], "max", "robust_loss").value == 6
    worst = combined([0.5, 0.2], "max", "robust")
    assert (worst.value, worst.low, worst.high, worst.n) == (0.2, -math.inf, math.inf, 2)
    assert math.isnan(combined([1.0, math.nan], "max", "clean_loss").value)


def test_a_network_that_overflows_leaves_a_hole_not_an_error(fill: Make) -> None:
    model = fill(Net()).float()
    x, y = data(shape=(1, 6, 6), classes=3)
    direction = {"conv.weight": torch.full_like(model.conv.weight.detach(), 1e30)}
    direction |= {"head.weight": torch.full_like(model.head.weight.detach(), 1e30)}
    origin = {name: dict(model.named_parameters())[name].detach() for name in direction}
    options = {"axes": Axes(origin, (direction,)), **OPTIONS}
    there = landscape_point(model, x.float(), y, coordinates=(1.0,), **options)
    assert not math.isfinite(there.robust_loss)
    assert math.isfinite(landscape_point(model, x.float(), y, coordinates=(0.0,), **options).robust_loss)


def test_nothing_is_changed(fill: Make) -> None:
    model = fill(Net())
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    landscape(model, *data(shape=(1, 6, 6), classes=3), along=Adversarial(), points=3, lines=2, **OPTIONS)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"dims": 4}, "dims, lines"), ({"dims": 0}, "dims, lines"), ({"lines": 0}, "dims, lines"),
        ({"points": 1}, "points"), ({"batch_size": 0}, "batch_size"),
    ],
)  # fmt: skip
def test_bad_input(change: dict[str, Any], argument: str, fill: Make) -> None:
    with pytest.raises(InputError) as caught:
        landscape(fill(nn.Linear(10, 2)), *data(), **OPTIONS | change)
    assert caught.value.argument == argument
    with pytest.raises(InputError, match="eval mode"):
        landscape(fill(nn.Linear(10, 2)).train(), *data(), **OPTIONS)
    with pytest.raises(InputError):
        grid(3, 1.0, 1.0)
