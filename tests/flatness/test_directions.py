"""Directions of a landscape: how long they are, what they have in common, and where they lead."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable.core import PGD, Ball, Calls, InputError
from shaketable.flatness.directions import DIRECTIONS, Adversarial, Axes, Eigenvectors, Random, inner
from shaketable.flatness.hessian import loss_hessian
from shaketable.flatness.layers import layers_ball
from shaketable.flatness.loss_at import LossAt
from shaketable.flatness.points import attacked_points

Make = Callable[..., Any]
LINF = Ball("linf", 0.05, box=(0.0, 1.0))
FILTERS = Ball("l2", 0.3, per="filter", relative=True)
OPTIONS: dict[str, Any] = {"seed": 1, "within": LINF, "by": PGD(3), "batch_size": 16}


def data(n: int = 12) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(3)
    x = 0.1 + 0.8 * torch.rand(n, 1, 6, 6, generator=source, dtype=torch.float64)
    return x, torch.randint(0, 3, (n,), generator=source)


class Net(nn.Module):
    """Convolution, BatchNorm, ReLU, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.bn(self.conv(x))).flatten(1))


@pytest.mark.parametrize("kind", [Random, Adversarial])
@pytest.mark.parametrize("dims", [1, 2])
def test_every_layer_has_its_share_of_the_layers_norm(kind: Any, dims: int, fill: Make) -> None:
    model = fill(Net())
    axes = kind(scale=layers_ball(0.3))(model, *data(), dims=dims, **OPTIONS)
    assert len(axes.directions) == dims
    for direction in axes.directions:
        assert set(direction) == {"conv.weight", "conv.bias", "head.weight", "head.bias"}  # normalisation layers stay
        for name, d in direction.items():
            assert float(d.norm()) == pytest.approx(0.3 * float(axes.origin[name].norm()), rel=1e-9), name


@pytest.mark.parametrize("kind", [Random, Adversarial])
def test_every_filter_has_its_share_of_the_filters_norm(kind: Any, fill: Make) -> None:
    axes = kind(scale=FILTERS)(fill(Net()), *data(), **OPTIONS)
    for name in ("conv.weight", "head.weight"):
        d, w = axes.directions[0][name].flatten(1), axes.origin[name].flatten(1)
        assert d.norm(dim=1).tolist() == pytest.approx((0.3 * w.norm(dim=1)).tolist(), rel=1e-9)
    assert axes.directions[0]["conv.bias"].abs().tolist() == pytest.approx(
        (0.3 * axes.origin["conv.bias"].abs()).tolist()
    )


def test_by_layer_by_filter_and_as_a_whole_directions_are_equally_long(fill: Make) -> None:
    scales = (layers_ball(0.3), FILTERS, Ball("l2", 0.3, per="all", relative=True))
    made = [Random(scale=scale)(fill(Net()), *data(), **OPTIONS) for scale in scales]
    lengths = [math.sqrt(inner(axes.directions[0], axes.directions[0])) for axes in made]
    assert lengths == pytest.approx([0.3 * math.sqrt(inner(made[0].origin, made[0].origin))] * 3)


def test_the_defaults_are_the_papers_pictures(fill: Make) -> None:
    for name, share, lines, combine in (("random", 0.5, 10, "mean"), ("adversarial", 0.025, 10, "max")):
        kind = DIRECTIONS[name]()
        axes = kind(fill(Net()), *data(), **OPTIONS)
        assert (kind.lines, kind.combine) == (lines, combine)
        assert float(axes.directions[0]["head.weight"].norm() / axes.origin["head.weight"].norm()) == pytest.approx(
            share
        )


def test_random_directions_are_common_to_models_and_their_own_for_each_line_and_axis(fill: Make) -> None:
    one, two = fill(Net(), seed=0), fill(Net(), seed=5)
    a, b = (Random()(model, *data(), dims=2, line=3, **OPTIONS) for model in (one, two))
    for first, second in zip(a.directions, b.directions, strict=True):
        for name in first:
            cosine = (first[name] * second[name]).sum() / (first[name].norm() * second[name].norm())
            assert float(cosine) == pytest.approx(1, abs=1e-12)
    assert torch.equal(
        Random()(one, *data(), line=3, **OPTIONS).directions[0]["conv.weight"], a.directions[0]["conv.weight"]
    )
    drawn = [a.directions[0], a.directions[1], Random()(one, *data(), line=4, **OPTIONS).directions[0]]
    drawn.append(Random()(one, *data(), line=3, **OPTIONS | {"seed": 2}).directions[0])
    for i, first in enumerate(drawn):
        for second in drawn[:i]:
            assert abs(inner(first, second)) < 0.5 * math.sqrt(inner(first, first) * inner(second, second))
    assert a.calls == Calls()


def test_an_adversarial_direction_hurts_more_than_random_ones_of_its_length(fill: Make) -> None:
    model = fill(Net())
    x, _ = data()
    with torch.no_grad():
        y = model(x).argmax(1)
    of = LossAt(model, x, y, within=LINF, by=PGD(5, 0.5))
    options = OPTIONS | {"by": PGD(8, 0.5)}

    def rise(axes: Axes) -> float:
        losses = [of(axes.at((t,)), torch.Generator().manual_seed(0)).robust_loss.mean() for t in (0.0, 1.0)]
        return float(losses[1] - losses[0])

    bad = [rise(Adversarial(scale=layers_ball(0.1))(model, x, y, line=k, **options)) for k in range(3)]
    drawn = [rise(Random(scale=layers_ball(0.1))(model, x, y, line=k, **options)) for k in range(5)]
    assert min(bad) > 2 * max(map(abs, drawn))
    assert len(set(bad)) == 3
    again = Adversarial(scale=layers_ball(0.1))(model, x, y, line=1, **options)
    assert rise(again) == bad[1]
    assert again.calls == Calls(12 * 8, 12 * 8)


def test_later_adversarial_axes_are_apart_from_the_first(fill: Make) -> None:
    model = fill(Net())
    x, y = data()
    axes = Adversarial()(model, x, y, dims=3, **OPTIONS)
    assert all(abs(axes.cosine(i, j)) < 1e-9 for i, j in ((0, 1), (0, 2), (1, 2)))
    single = Adversarial()(model, x, y, **OPTIONS)
    assert all(torch.equal(d, axes.directions[0][name]) for name, d in single.directions[0].items())


@pytest.mark.parametrize("points", ["adversarial", "clean"])
def test_eigenvectors_are_those_of_the_dense_matrix(points: Any, fill: Make) -> None:
    model = fill(Net())
    x, y = data()
    axes = Eigenvectors(points=points, tolerance=1e-12)(model, x, y, dims=2, **OPTIONS)
    place = attacked_points(model, x, y, **OPTIONS).x if points == "adversarial" else x
    hessian = loss_hessian(model, place, y)
    values, vectors = torch.linalg.eigh(hessian.products(torch.eye(hessian.size, dtype=torch.float64)))
    whole = math.sqrt(inner(axes.origin, axes.origin))
    for k, direction in enumerate(axes.directions):
        flat = torch.cat([d.reshape(-1) for d in direction.values()])
        assert float(flat.norm()) == pytest.approx(0.05 * whole)
        assert abs(float(flat @ vectors[:, -1 - k])) == pytest.approx(0.05 * whole, rel=1e-9)
        assert axes.facts[f"lambda_{k + 1}"] == pytest.approx(float(values[-1 - k]))
    assert abs(axes.cosine()) < 1e-9
    with pytest.raises(InputError, match="1 line"):
        Eigenvectors()(model, x, y, line=1, **OPTIONS)


@pytest.mark.parametrize("kind", [Random, Adversarial, Eigenvectors])
def test_a_layer_of_norm_zero_stays_and_nothing_is_changed(kind: Any, fill: Make) -> None:
    model = fill(Net())
    with torch.no_grad():
        model.conv.bias.zero_()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    axes = kind()(model, *data(), **OPTIONS)
    if "conv.bias" in axes.origin:
        assert not bool(axes.directions[0]["conv.bias"].any())
    assert all(bool(torch.isfinite(d).all()) for d in axes.directions[0].values())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_point_is_the_origin_and_its_steps() -> None:
    origin = {"w": torch.tensor([1.0, 2.0])}
    axes = Axes(origin, ({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([1.0, 1.0])}))
    assert axes.at((0.0, 0.0))["w"].tolist() == [1.0, 2.0]
    assert axes.at((2.0, -1.0))["w"].tolist() == [2.0, 1.0]
    assert axes.cosine() == pytest.approx(math.sqrt(0.5))
    limited = Axes(origin, axes.directions, {"w": (torch.tensor([0.0, 0.0]), torch.tensor([1.5, 9.0]))})
    assert limited.at((2.0, -1.0))["w"].tolist() == [1.5, 1.0]
    with pytest.raises(InputError, match="one for each axis"):
        axes.at((1.0,))
