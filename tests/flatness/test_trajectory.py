"""Principal directions of checkpoints: paths that are known."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable.core import InputError
from shaketable.flatness.directions import inner
from shaketable.flatness.trajectory import trajectory

Make = Callable[..., Any]


class Net(nn.Module):
    """A layer with BatchNorm, and a tied one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.bn(self.a(x))))


def between(
    first: nn.Module, second: nn.Module, share: float, third: nn.Module | None = None, part: float = 0
) -> nn.Module:
    """first + share (second - first) + part (third - first), of weights and running statistics."""
    made = copy.deepcopy(first)
    states = [dict(m.state_dict()) for m in (first, second, third or first)]
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if tensor.is_floating_point():
                a, b, c = (s[name] for s in states)
                tensor.copy_(a + share * (b - a) + part * (c - a))
    return made


def distance(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return math.sqrt(sum(float(((p - q).detach() ** 2).sum()) for p, q in pairs))


def test_a_straight_path_is_recovered(fill: Make) -> None:
    one, two = fill(Net(), seed=0), fill(Net(), seed=1)
    shares = [0.0, 0.1, 0.5, 0.8, 1.0]
    found = trajectory([between(one, two, s) for s in shares], dims=1)
    whole = distance(one, two)
    assert found.explained == pytest.approx((1.0,))
    assert [c[0] for c in found.path] == pytest.approx([(1 - s) * whole for s in shares], abs=1e-9)
    assert found.off == pytest.approx([0.0] * 5, abs=1e-6)
    (direction,) = found.axes.directions
    for name, p in one.named_parameters():
        expected = (p - dict(two.named_parameters())[name]).detach() / whole
        assert torch.allclose(direction[name], expected, atol=1e-12)
    assert "b.weight" not in direction  # tied: once


def test_points_of_the_plane_are_the_checkpoints_with_their_running_statistics(fill: Make) -> None:
    nets = [fill(Net(), seed=k) for k in range(3)]
    steps = [(0.0, 0.0), (0.4, 0.3), (0.2, 0.9), (1.0, 0.5)]
    models = [between(nets[0], nets[1], s, nets[2], t) for s, t in steps]
    found = trajectory(models)
    assert sum(found.explained) == pytest.approx(1)
    assert found.explained[0] > found.explained[1] > 0
    assert found.path[-1] == pytest.approx((0.0, 0.0), abs=1e-12)
    assert abs(inner(*({n: d[n] for n, _ in nets[0].named_parameters()} for d in found.axes.directions))) < 1e-12
    for model, place in zip(models, found.path, strict=True):
        there, state = found.axes.at(place), model.state_dict()
        assert {"bn.running_mean", "bn.running_var"} < set(there)
        assert all(torch.allclose(tensor, state[name], atol=1e-9) for name, tensor in there.items())


def test_running_statistics_stay_within_what_they_were(fill: Make) -> None:
    models = [between(fill(Net(), seed=0), fill(Net(), seed=1), s) for s in (0.0, 0.5, 1.0)]
    found = trajectory(models, dims=1)
    for far in (-50.0, 50.0):
        there = found.axes.at((far,))
        low, high = (torch.minimum, torch.maximum)
        ends = [m.get_buffer("bn.running_var") for m in models]
        assert bool((there["bn.running_var"] >= low(ends[0], ends[-1]) - 1e-12).all())
        assert bool((there["bn.running_var"] <= high(ends[0], ends[-1]) + 1e-12).all())
    assert float(found.axes.at((50.0,))["a.weight"].abs().max()) > 10


def test_what_the_plane_leaves_out_is_said(fill: Make) -> None:
    source = torch.Generator().manual_seed(0)
    one, two = fill(Net(), seed=0), fill(Net(), seed=1)
    models = [between(one, two, s) for s in (0.0, 0.3, 0.7, 1.0)]
    with torch.no_grad():
        for model in models:
            for p in model.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=source, dtype=torch.float64))
    found = trajectory(models, dims=1)
    assert 0.8 < found.explained[0] < 1
    assert found.off[-1] == 0
    assert all(0 < off < 0.6 for off in found.off[:-1])
    rows = torch.stack([torch.cat([p.detach().reshape(-1) for p in m.parameters()]) for m in models])
    singular = torch.linalg.svdvals(rows - rows.mean(0)) ** 2
    assert found.explained[0] == pytest.approx(float(singular[0] / singular.sum()))


def test_the_spans_hold_the_path_with_a_margin(fill: Make) -> None:
    models = [
        between(fill(Net(), seed=0), fill(Net(), seed=1), s, fill(Net(), seed=2), 0.02 * s * s) for s in (0, 0.4, 1)
    ]
    found = trajectory(models)
    for (low, high), column in zip(found.spans(), zip(*found.path, strict=True), strict=True):
        assert low < min(column) <= max(column) < high
    (a, b), (c, d) = found.spans()
    assert d - c > 0.09 * (b - a)


def test_bad_input(fill: Make) -> None:
    one, two = fill(Net(), seed=0), fill(Net(), seed=1)
    with pytest.raises(InputError, match="dims < number of checkpoints"):
        trajectory([one], dims=1)
    with pytest.raises(InputError, match="that span 2 directions"):
        trajectory([between(one, two, s) for s in (0.0, 0.5, 1.0)], dims=2)
    with pytest.raises(InputError, match="that span 1 directions"):
        trajectory([one, copy.deepcopy(one)], dims=1)
    with pytest.raises(InputError, match="one architecture"):
        trajectory([fill(nn.Linear(4, 4)), one], dims=1)
    with torch.no_grad():
        two.a.bias[0] = math.nan
    with pytest.raises(InputError, match="finite weights"):
        trajectory([one, two], dims=1)
