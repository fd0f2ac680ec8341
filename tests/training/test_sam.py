"""SAM and ASAM: the exact v on nets of several kinds, what they are invariant to, and what they refuse."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from shaketable.core import PGD, Ball, GradientError, InputError, Perturbation, perturb, scalar, weights
from shaketable.core import at as function_of
from shaketable.models import ModelSpec, build
from shaketable.training import WeightPerturbation, asam, at, sam
from shaketable.training.adaptive import AdaptiveBall

Make = Callable[..., Any]
VALUES = [sam(0.3), sam(0.3, select="matrices"), asam(0.4), asam(0.4, biases=True), asam(0.4, 0.0, select="matrices")]
IDS = ["sam", "sam matrices", "asam", "asam biases", "asam eta=0 matrices"]


class Tied(nn.Module):
    """Two layers that share their weight, not their bias."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.head = nn.Linear(108, 8), nn.Linear(8, 4)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.down(x.flatten(1)).relu()).relu()).relu())


def weight_normed() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
    )


VIT = ModelSpec("vit", 4, 3, (6, 6), {"patch": 3, "dim": 8, "depth": 1, "heads": 2})
NETS = {"weight norm, batch norm": weight_normed, "tied": Tied, "vit": lambda: build(VIT, seed=0)}


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 with drawn parameters."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return model.train()


def images(n: int = 6) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(4)
    return torch.rand(n, 3, 6, 6, generator=source, dtype=torch.float64), torch.arange(n) % 4


def found_by(value: WeightPerturbation, model: nn.Module) -> Perturbation:
    """v of AT's loss, as the training step asks for it."""
    x, y = images()
    return perturb(at().weights(model, x, x, y), weights(model, value.select), value.within, by=value.by)


def loss_at(model: nn.Module, point: Any) -> float:
    x, y = images()
    with torch.no_grad():
        return float(F.cross_entropy(function_of(model, point)(x), y))


def by_hand(model: nn.Module, value: WeightPerturbation) -> dict[str, Tensor]:
    """rho T^2 g / ||T g||, with T of ones for SAM: over the parameters as one vector, from autograd alone."""
    x, y = images()
    model = copy.deepcopy(model)
    own = {name: p for name, p in model.named_parameters() if value.select == "all" or p.dim() > 1}
    if value.select == "matrices":
        own = {name: p for name, p in own.items() if "norm" not in name}
    slopes = torch.autograd.grad(F.cross_entropy(model(x), y), list(own.values()))
    g = torch.cat([s.flatten() for s in slopes])
    if isinstance(value.within, AdaptiveBall):
        eta, biases = value.within.eta, value.within.biases
        t = [p.detach().abs() + eta if biases or "bias" not in name else torch.ones_like(p) for name, p in own.items()]
        t = torch.cat([part.detach().flatten() for part in t])
    else:
        t = torch.ones_like(g)
    v = value.within.radius * t**2 * g / (t * g).norm()
    parts = v.split([p.numel() for p in own.values()])
    return {name: part.reshape(p.shape) for (name, p), part in zip(own.items(), parts, strict=True)}


@pytest.mark.parametrize("value", VALUES, ids=IDS)
@pytest.mark.parametrize("net", NETS)
def test_v_is_the_papers(net: str, value: WeightPerturbation) -> None:
    model = filled(NETS[net]())
    before = {name: t.clone() for name, t in model.state_dict().items()}
    found = found_by(value, model)
    expected = by_hand(model, value)
    assert list(found.delta) == list(expected)
    for name, v in expected.items():
        assert torch.allclose(found.delta[name], v, rtol=1e-8, atol=1e-13), name
    assert found.size.shape == (1,)
    assert float(found.size) == pytest.approx(value.within.radius, rel=1e-12)
    assert (found.calls.forward, found.calls.backward) == (1, 1)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_all_parameters_are_perturbed_by_default() -> None:
    for value in (sam(), asam()):
        model = filled(weight_normed())
        found = found_by(value, model).delta
        assert list(found) == [name for name, _ in model.named_parameters()]
        assert bool(found["1.weight"].any())  # BatchNorm's scale and shift, too
        assert bool(found["1.bias"].any())
    tied = filled(Tied())
    assert "second.weight" not in found_by(sam(), tied).delta


def test_sam_is_the_steepest_direction_of_its_size() -> None:
    """Small enough to be linear: no other direction of length rho raises the loss as much, nor does AWP's in its ball."""
    model, rho = filled(Tied()), 1e-5
    origin, base = weights(model, "all"), loss_at(filled(Tied()), {})
    rise = loss_at(model, found_by(sam(rho), model).point) - base
    source = torch.Generator().manual_seed(1)
    for _ in range(20):
        u = {name: torch.randn(t.shape, generator=source, dtype=torch.float64) for name, t in origin.items()}
        length = torch.cat([t.flatten() for t in u.values()]).norm()
        assert loss_at(model, {name: w + rho * u[name] / length for name, w in origin.items()}) - base < 0.7 * rise


def rescaled(factors: Tensor, bias: bool = False) -> tuple[nn.Module, nn.Module]:
    """Two nets of the same function: the second's hidden units are scaled, and the next layer takes it back."""
    one = filled(nn.Sequential(nn.Flatten(), nn.Linear(108, 5, bias=bias), nn.ReLU(), nn.Linear(5, 4, bias=False)), 2)
    two = copy.deepcopy(one)
    with torch.no_grad():
        two[1].weight.mul_(factors[:, None])  # pyright: ignore
        if bias:
            two[1].bias.mul_(factors)  # pyright: ignore
        two[3].weight.div_(factors)  # pyright: ignore
    return one, two


def gap(value: WeightPerturbation, models: tuple[nn.Module, nn.Module]) -> float:
    """How far the perturbed losses of two nets of the same function are apart."""
    one, two = (loss_at(model, found_by(value, model).point) for model in models)
    assert abs(loss_at(models[0], {}) - loss_at(models[1], {})) <= 1e-10
    return abs(one - two)


@given(st.lists(st.floats(0.05, 20.0), min_size=5, max_size=5), st.sampled_from([1, 3]))
@settings(max_examples=25, deadline=None)
def test_asam_does_not_see_a_rescaling_that_leaves_the_net(factors: list[float], steps: int) -> None:
    scale = torch.tensor(factors, dtype=torch.float64)
    models = rescaled(scale)
    assert gap(asam(0.5, 0.0, steps=steps), models) <= 1e-9
    one, two = (found_by(asam(0.5, 0.0), model).delta for model in models)
    assert torch.allclose(two["1.weight"], one["1.weight"] * scale[:, None], rtol=1e-7, atol=1e-14)
    assert torch.allclose(two["3.weight"], one["3.weight"] / scale, rtol=1e-7, atol=1e-14)


def test_what_breaks_the_invariance() -> None:
    """SAM, an eta above 0, and biases whose T is 1; with biases scaled it holds again."""
    scale = torch.full((5,), 8.0, dtype=torch.float64)
    assert gap(sam(0.5), rescaled(scale)) > 1e-3
    assert gap(asam(0.5, 0.2), rescaled(scale)) > 1e-5
    assert gap(asam(0.5, 0.0), rescaled(scale, bias=True)) > 1e-5
    assert gap(asam(0.5, 0.0, biases=True), rescaled(scale, bias=True)) <= 1e-9


@pytest.mark.parametrize("make", [sam, asam])
def test_more_steps_stay_in_the_ball_and_climb_higher(make: Any) -> None:
    model = filled(Tied())
    losses = {}
    for steps in (1, 8):
        found = found_by(make(2.0, steps=steps), model)
        assert float(found.size) <= 2.0 * (1 + 1e-12)
        losses[steps] = loss_at(model, found.point)
    assert losses[8] > losses[1]


@pytest.mark.parametrize("make", [sam, asam])
def test_parameters_without_gradient_stay_and_none_at_all_is_an_error(make: Any) -> None:
    model = filled(Tied())
    x, y = images()
    value, origin = make(), weights(model, "all")
    found = perturb(scalar(lambda w: F.cross_entropy(x.flatten(1) @ w["down.weight"].T, y)), origin, value.within)
    assert [name for name, v in found.delta.items() if bool(v.any())] == ["down.weight"]
    with pytest.raises(GradientError):
        perturb(scalar(lambda w: 0 * w["down.weight"].sum()), origin, value.within, by=value.by)


def test_asam_leaves_zeros_alone_only_without_eta() -> None:
    model = filled(Tied())
    with torch.no_grad():
        model.get_parameter("head.weight").zero_()
        model.get_parameter("head.weight")[0, 0] = 1.0
    assert int((found_by(asam(0.5, 0.0), model).delta["head.weight"] != 0).sum()) <= 1
    assert int((found_by(asam(0.5, 0.01), model).delta["head.weight"] != 0).sum()) > 1


def test_the_short_forms() -> None:
    assert sam() == WeightPerturbation(Ball("l2", 0.05, per="all"), select="all")
    assert asam() == WeightPerturbation(AdaptiveBall(0.5, 0.01, False), select="all")
    for make in (sam, asam):
        value = make(0.2, warmup=3, every=2, steps=4, select="matrices", sync="local")
        assert value.within.radius == 0.2
        assert value.by == PGD(4, 0.25)
        assert (value.warmup, value.every, value.select, value.sync) == (3, 2, "matrices", "local")
        assert (value.direction, value.shared) == ("gradient", False)
        assert make(shared=True).shared is True
    assert asam(1, 0, biases=True).within == AdaptiveBall(1, 0, True)


@pytest.mark.parametrize("make", [sam, asam])
@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ({"rho": -0.05}, "rho"),
        ({"rho": float("nan")}, "rho"),
        ({"rho": float("inf")}, "rho"),
        ({"rho": "0.05"}, "rho"),
        ({"rho": None}, "rho"),
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"warmup": -1}, "warmup, every"),
        ({"every": 0}, "warmup, every"),
        ({"every": 1.5}, "warmup, every"),
        ({"select": "biases"}, "select"),
        ({"sync": "m"}, "sync"),
        ({"shared": "no"}, "shared"),
        ({"shared": True, "steps": 2}, "steps"),
    ],
)
def test_bad_values(make: Any, given: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        make(**given)
    assert caught.value.argument == argument
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("given", "argument"), [({"eta": -1}, "eta"), ({"eta": float("nan")}, "eta"), ({"biases": 1}, "biases")]
)
def test_bad_values_of_asam(given: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        asam(**given)
    assert caught.value.argument == argument
