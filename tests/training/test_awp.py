"""AWP as a value: when it is due, what it refuses, and the exact v that it makes on nets of every kind of layer."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from shaketable.core import PGD, Ball, GradientError, InputError, Joint, Perturbation, perturb, scalar, weights
from shaketable.core import at as function_of
from shaketable.models import ModelSpec, build
from shaketable.training import AWP_BALL, AWP_STEP, WEIGHTS, WeightPerturbation, at, awp, trades
from shaketable.training.adaptive import AdaptiveBall

Make = Callable[..., Any]
GAMMA = 0.03
NORMS = ("layer", "filter", "global", "element")


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 with drawn parameters, all of them away from 0."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.double().parameters():
            noise = torch.randn(parameter.shape, generator=source, dtype=torch.float64)
            parameter.copy_(0.3 * noise + 0.1 * noise.sign())
    return model.train()


class Tied(nn.Module):
    """Two layers with one weight, and a head whose weight is that of the first part transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(108, 8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.down(x.flatten(1)).relu()).relu()).relu())


class Attending(nn.Module):
    """Attention over patches, with the library's own module: in_proj_weight, in_proj_bias."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 3, stride=3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(tokens + self.attention(tokens, tokens, tokens)[0]).mean(1))


def conv(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))


def weight_normed() -> nn.Module:
    first, last = nn.Conv2d(3, 4, 3), nn.Linear(64, 4)
    return nn.Sequential(
        parametrizations.weight_norm(first), nn.ReLU(), nn.Flatten(), parametrizations.weight_norm(last)
    )


VIT = ModelSpec("vit", 4, 3, (6, 6), {"patch": 3, "dim": 8, "depth": 1, "heads": 2})
NETS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: conv(nn.BatchNorm2d(4)),
    "group norm, prelu": lambda: conv(nn.GroupNorm(2, 4), nn.PReLU(4)),
    "layer norm of images": lambda: conv(nn.LayerNorm([4, 4, 4]), nn.RMSNorm([4, 4])),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(3, 2, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)),
    "weight norm": weight_normed,
    "tied": Tied,
    "attention": Attending,
    "vit": lambda: build(VIT, seed=0),
}  # fmt: skip
MATRICES = {
    "batch norm": ["0.weight", "4.weight"],
    "group norm, prelu": ["0.weight", "5.weight"],
    "layer norm of images": ["0.weight", "5.weight"],
    "transposed": ["0.weight", "3.weight"],
    "weight norm": [f"{k}.parametrizations.weight.original{i}" for k in (0, 3) for i in (0, 1)],
    "tied": ["down.weight", "first.weight", "head.weight"],
    "attention": ["patches.weight", "attention.in_proj_weight", "attention.out_proj.weight", "head.weight"],
}


def images(n: int = 6) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(4)
    return torch.rand(n, 3, 6, 6, generator=source, dtype=torch.float64), torch.arange(n) % 4


def found_by(value: WeightPerturbation, model: nn.Module, loss: Any = at()) -> Perturbation:
    """v of a robust loss at given points, as the training step asks for it."""
    x, y = images()
    objective = loss.weights(model, x, (x + 0.05).clamp(0, 1), y)
    return perturb(objective, weights(model, value.select), value.within, by=value.by)


def slopes(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """The gradient of AT's loss, by autograd alone, on a copy."""
    x, y = images()
    model = copy.deepcopy(model)
    own = dict(model.named_parameters())
    found = torch.autograd.grad(F.cross_entropy(model((x + 0.05).clamp(0, 1)), y), [own[name] for name in names])
    return dict(zip(names, found, strict=True))


def unit(g: Tensor) -> Tensor:
    return g / g.norm() if float(g.norm()) else torch.zeros_like(g)


def by_hand(w: dict[str, Tensor], g: dict[str, Tensor], norm: str, gamma: float = GAMMA) -> dict[str, Tensor]:
    """The definition of each norm, written out."""
    if norm == "layer":
        return {k: gamma * w[k].norm() * unit(g[k]) for k in w}
    if norm == "filter":
        return {k: torch.stack([gamma * a.norm() * unit(b) for a, b in zip(w[k], g[k], strict=True)]) for k in w}
    if norm == "element":
        return {k: gamma * w[k].abs() * g[k].sign() for k in w}
    whole = [torch.cat([t[k].flatten() for k in w]).norm() for t in (w, g)]
    return {k: gamma * whole[0] * g[k] / whole[1] for k in w}


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-300))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("net", NETS)
def test_v_is_the_definition_on_every_kind_of_net(net: str, norm: Any) -> None:
    model = filled(NETS[net]())
    before = {name: t.clone() for name, t in model.state_dict().items()}
    origin = weights(model)
    found = found_by(awp(GAMMA, norm=norm), model)
    expected = by_hand(origin, slopes(model, list(origin)), norm)
    assert found.delta.keys() == expected.keys()
    for name, v in expected.items():
        assert apart(found.delta[name], v) <= 1e-10, name
    sizes = [found.size] if norm == "global" else found.size.values()
    for size in sizes:  # every group has the whole radius, unless it has no gradient
        assert bool(((size - GAMMA).abs() <= 1e-12).logical_or(size == 0).all())
    assert (found.calls.forward, found.calls.backward) == (1, 1)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("net", MATRICES)
def test_matrices_are_the_weights_of_layers(net: str) -> None:
    assert list(weights(NETS[net](), awp().select)) == MATRICES[net]


def test_matrices_of_a_vit_are_all_but_biases_and_layer_norms() -> None:
    model = NETS["vit"]()
    named = dict(model.named_parameters())
    expected = [name for name in named if not name.endswith("bias") and "norm" not in name]
    assert list(weights(model)) == expected
    some = {"token", "positions", "patches.weight", "blocks.0.attention.qkv.weight", "head.weight"}
    assert some <= {name.removeprefix("network.") for name in expected}


def test_a_tied_weight_moves_once_by_the_gradient_of_both_of_its_uses() -> None:
    model = filled(Tied())
    assert isinstance(model, Tied)
    x, y = images()
    w = model.first.weight.detach()
    one, two = w.clone().requires_grad_(), w.clone().requires_grad_()
    hidden = F.linear(model.down((x + 0.05).clamp(0, 1).flatten(1)).relu(), one, model.first.bias).relu()
    logits = model.head(F.linear(hidden, two, model.second.bias).relu())
    both = sum(torch.autograd.grad(F.cross_entropy(logits, y), (one, two)))
    found = found_by(awp(GAMMA), model)
    assert "second.weight" not in found.delta
    assert apart(found.delta["first.weight"], GAMMA * w.norm() * unit(both)) <= 1e-10  # pyright: ignore[reportArgumentType]


def test_of_weight_norm_lengths_and_directions_have_their_own_radius() -> None:
    model = filled(weight_normed())
    found = found_by(awp(GAMMA), model)
    for name, v in found.delta.items():
        w = model.get_parameter(name).detach()
        assert float(v.norm() / w.norm()) == pytest.approx(GAMMA, rel=1e-12)
        if name.endswith(
            "original1"
        ):  # the net does not depend on these lengths, so no filter's v lies along its filter
            assert float((v.flatten(1) * w.flatten(1)).sum(1).abs().max()) <= 1e-14
    directions = replace(awp(GAMMA), select=lambda name, _p: name.endswith("original1"))
    assert list(found_by(directions, model).delta) == [MATRICES["weight norm"][k] for k in (1, 3)]


@pytest.mark.parametrize("norm", NORMS)
def test_groups_of_zeros_stay_and_the_others_are_as_ever(norm: Any) -> None:
    model = filled(conv(nn.GroupNorm(2, 4)))
    with torch.no_grad():
        model[4].weight.zero_()  # pyright: ignore
        model[0].weight[1] = 0.0  # pyright: ignore
    origin = weights(model)
    g = slopes(model, list(origin))
    assert float(g["4.weight"].norm()) > 0  # it is its size that holds it
    found = found_by(awp(GAMMA, norm=norm), model).delta
    for name, v in by_hand(origin, g, norm).items():
        assert bool(torch.isfinite(found[name]).all())
        assert apart(found[name], v) <= 1e-10
    assert bool(found["4.weight"].any()) is (norm == "global")


@pytest.mark.parametrize("norm", NORMS)
def test_groups_without_gradient_stay(norm: Any) -> None:
    model = filled(conv())
    with torch.no_grad():
        model[0].bias[2] = -100.0  # pyright: ignore - a dead filter: its slice has no gradient
    unused = nn.Linear(3, 3).double()
    model.add_module("unused", nn.Sequential(unused))
    value = awp(GAMMA, norm=norm)
    origin = weights(model)
    x, y = images()
    objective = scalar(lambda w: F.cross_entropy(function_of(nn.Sequential(*list(model)[:4]), w)(x), y))
    w = {name: t for name, t in origin.items() if not name.startswith("unused")}
    found = perturb(objective, w, value.within, by=value.by).delta
    assert not bool(found["0.weight"][2].any())
    assert bool(found["0.weight"][0].any())
    straight = scalar(lambda w: F.cross_entropy(x.flatten(1)[:, :64] @ w["3.weight"].T, y))
    alone = perturb(straight, w, value.within, by=value.by).delta  # a whole tensor that the loss does not use
    assert not bool(alone["0.weight"].any())
    assert bool(alone["3.weight"].any())
    with pytest.raises(GradientError):  # nothing at all to follow is said, not passed over
        perturb(scalar(lambda w: (w["0.weight"] * 0).sum()), w, value.within, by=value.by)


@pytest.mark.parametrize("norm", NORMS)
def test_the_size_of_the_gradient_does_not_matter(norm: Any) -> None:
    """Also where its square is far below what float32 holds; a proxy optimiser's difference would be lost there."""
    model = filled(conv(nn.BatchNorm2d(4))).float()
    x, y = (t.float() if t.is_floating_point() else t for t in images())
    value = awp(GAMMA, norm=norm)

    def v(factor: float) -> dict[str, Tensor]:
        loss = scalar(lambda w: factor * F.cross_entropy(function_of(model, w)(x), y))
        return perturb(loss, weights(model), value.within, by=value.by).delta

    plain, small = v(1.0), v(2.0**-90)
    for name, found in small.items():
        assert apart(found, plain[name]) <= 1e-5, name


def rescaled(layer: Tensor) -> tuple[nn.Module, nn.Module]:
    """Two nets of the same function: the hidden units of the second are scaled, and the next layer takes it back."""
    one = filled(nn.Sequential(nn.Flatten(), nn.Linear(108, 5, bias=False), nn.ReLU(), nn.Linear(5, 4, bias=False)))
    two = copy.deepcopy(one)
    with torch.no_grad():
        two[1].weight.mul_(layer[:, None])  # pyright: ignore
        two[3].weight.div_(layer)  # pyright: ignore
    return one, two


@pytest.mark.parametrize(
    ("norm", "layers", "units"),
    [("layer", True, False), ("filter", True, False), ("element", True, True), ("global", False, False)],
)
def test_which_norms_do_not_see_a_rescaling_that_leaves_the_net(norm: Any, layers: bool, units: bool) -> None:
    x, y = images()
    uneven = torch.tensor([0.2, 3.0, 1.0, 7.0, 0.6], dtype=torch.float64)
    for factors, invariant in ((torch.full((5,), 8.0, dtype=torch.float64), layers), (uneven, units)):
        losses = []
        for model in rescaled(factors):
            found = found_by(awp(0.2, norm=norm), model)
            with torch.no_grad():
                losses.append(float(F.cross_entropy(function_of(model, found.point)(x), y)))
        assert (abs(losses[0] - losses[1]) <= 1e-10) is invariant, norm


def test_the_gradient_is_that_of_the_loss_that_is_trained() -> None:
    model = filled(conv())
    x, y = images()
    adversarial = (x + 0.05).clamp(0, 1)
    own = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    clean, other = model(x), model(adversarial)
    loss = F.cross_entropy(clean, y) + 6 * F.kl_div(other.log_softmax(1), clean.softmax(1), reduction="batchmean")
    g = dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))
    found = found_by(awp(0.005), model, trades(6.0)).delta
    for name, w in own.items():
        assert apart(found[name], 0.005 * w.detach().norm() * unit(g[name])) <= 1e-9


@pytest.mark.parametrize("norm", NORMS)
def test_more_steps_stay_in_the_ball_and_climb_higher(norm: Any) -> None:
    model = filled(conv(nn.GroupNorm(2, 4)))
    x, y = images()
    losses = []
    for steps in (1, 6):
        found = found_by(awp(0.4, norm=norm, steps=steps), model)
        for size in [found.size] if norm == "global" else found.size.values():
            assert float(size.max()) <= 0.4 * (1 + 1e-12)
        with torch.no_grad():
            losses.append(float(F.cross_entropy(function_of(model, found.point)((x + 0.05).clamp(0, 1)), y)))
    assert losses[1] > losses[0]


def test_of_elements_l2_and_linf_are_the_same_ball() -> None:
    model = filled(conv())
    one = found_by(awp(0.1, norm="element"), model).delta
    two = found_by(WeightPerturbation(Ball("linf", 0.1, per="element", relative=True)), model).delta
    assert all(apart(one[name], v) <= 1e-15 for name, v in two.items())


def test_frozen_weights_are_left_out_on_request() -> None:
    model = filled(conv())
    model[0].weight.requires_grad_(False)  # pyright: ignore
    assert list(found_by(awp(), model).delta) == ["0.weight", "3.weight"]
    assert list(found_by(awp(select=lambda _name, p: p.requires_grad and p.dim() > 1), model).delta) == ["3.weight"]
    assert list(found_by(awp(select="all"), model).delta) == ["0.weight", "0.bias", "3.weight", "3.bias"]


@pytest.mark.parametrize(
    ("warmup", "every", "due"),
    [
        (0, 1, "1111 1111 1111"),
        (1, 1, "0000 1111 1111"),
        (3, 1, "0000 0000 0000"),
        (0, 3, "1001 0010 0100"),
        (1, 3, "0000 0010 0100"),
        (0, 100, "1000 0000 0000"),
    ],
)
def test_due(warmup: int, every: int, due: str) -> None:
    """Three epochs of four steps; steps are counted from the start of the training."""
    value = WeightPerturbation(warmup=warmup, every=every)
    found = [str(int(value.due(step // 4, step))) for step in range(12)]
    assert "".join(found) == due.replace(" ", "")


def test_the_short_form() -> None:
    assert awp() == WeightPerturbation() == WeightPerturbation(AWP_BALL, AWP_STEP, "matrices", 0, 1)
    assert awp() == WeightPerturbation(AWP_BALL, AWP_STEP, "matrices", 0, 1, "gradient", False, "global")
    given = awp(0.005, warmup=10, every=2, steps=4)
    assert given.within == Ball("l2", 0.005, per="tensor", relative=True)
    assert given.by == PGD(4, 0.25)
    assert (given.warmup, given.every) == (10, 2)
    assert WEIGHTS["none"]() is None
    assert WEIGHTS["awp"](gamma=0.02) == awp(0.02)
    other = awp(0, norm="global", select="all", shared=True, sync="local")
    assert other.within == Ball("l2", 0, per="all", relative=True)
    assert (other.select, other.direction, other.shared, other.sync) == ("all", "gradient", True, "local")
    assert [awp(norm=norm).within.per for norm in NORMS] == ["tensor", "filter", "all", "element"]
    assert awp(direction="random").direction == "random"


@pytest.mark.parametrize(
    ("given", "argument", "remedy"),
    [
        ({"gamma": -0.1}, "gamma", "size"),
        ({"gamma": float("nan")}, "gamma", "size"),
        ({"gamma": float("inf")}, "gamma", "size"),
        ({"gamma": "0.1"}, "gamma", "size"),
        ({"gamma": None}, "gamma", "size"),
        ({"gamma": True}, "gamma", "size"),
        ({"warmup": -1}, "warmup, every", "warmup=0"),
        ({"warmup": 0.5}, "warmup, every", "warmup=0"),
        ({"warmup": "3"}, "warmup, every", "warmup=0"),
        ({"every": 0}, "warmup, every", "every=1"),
        ({"every": float("nan")}, "warmup, every", "every=1"),
        ({"steps": 0}, "steps", "1"),
        ({"steps": -3}, "steps", "1"),
        ({"steps": 1.5}, "steps", "1"),
        ({"steps": True}, "steps", "1"),
        ({"norm": "layers"}, "norm", "Did you mean 'layer'"),
        ({"norm": "Filter"}, "norm", "Did you mean 'filter'"),
        ({"norm": "l2"}, "norm", "Choose from layer, filter, global, element."),
        ({"norm": None}, "norm", "Choose from"),
        ({"select": "matrix"}, "select", "Did you mean 'matrices'?"),
        ({"select": ["0.weight"]}, "select", "Choose from"),
        ({"direction": "gradients"}, "direction", "Did you mean 'gradient'?"),
        ({"direction": 1}, "direction", "Choose from gradient, random."),
        ({"sync": "globl"}, "sync", "Did you mean 'global'"),
        ({"sync": None}, "sync", "Choose from"),
        ({"shared": "yes"}, "shared", "False"),
        ({"shared": 1}, "shared", "False"),
        ({"shared": True, "direction": "random"}, "shared", "shared=False"),
        ({"shared": True, "steps": 2}, "steps", "shared=False"),
        ({"direction": "random", "steps": 2}, "steps", "Leave out"),
        ({"direction": "random", "sync": "local"}, "sync", "Leave it out"),
    ],
)
def test_bad_values(given: dict[str, Any], argument: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        awp(**given)
    assert caught.value.argument == argument
    assert remedy in caught.value.remedy
    assert caught.value.found


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ({"within": 0.01}, "within"),
        ({"within": None}, "within"),
        ({"within": Ball("l2", 0.05)}, "within"),
        ({"by": None}, "by"),
        ({"by": 3}, "by"),
        ({"by": PGD(1, 1.0, restarts=2), "shared": True}, "steps"),
        ({"by": lambda *a: None, "shared": True}, "steps"),
        ({"by": PGD(1, 0.5), "direction": "random"}, "steps"),
    ],
)
def test_bad_values_of_the_class(given: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        WeightPerturbation(**given)
    assert caught.value.argument == argument
    assert caught.value.remedy


def test_any_constraint_of_weights_and_any_ascent_serve() -> None:
    model = filled(conv())
    parts = {"0.weight": AWP_BALL, "3.weight": Ball("linf", 0.5, per="tensor")}
    found = found_by(WeightPerturbation(parts), model).delta
    assert apart(found["0.weight"], found_by(awp(), model).delta["0.weight"]) <= 1e-12
    assert torch.equal(found["3.weight"], 0.5 * slopes(model, ["3.weight"])["3.weight"].sign())
    for within in (Joint(parts), AdaptiveBall(0.1)):
        assert WeightPerturbation(within).within is within
    assert WeightPerturbation(by=PGD(1, 0.5), shared=True).by.step == 0.5
    assert WeightPerturbation(by=lambda *_a: None).by is not None
