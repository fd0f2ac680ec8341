"""Adaptive, SAM and filter-normalised sharpness: known optima, invariances, and which logits they see."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable.core import PGD, Ball, InputError, generator
from shaketable.flatness.logits import by_deviation, by_length
from shaketable.flatness.sharpness import AdaptiveNoise, AdaptiveSharpness, FilterNormalised, SAMSharpness

Make = Callable[..., Any]
LINF = Ball("linf", 0.05, box=(0.0, 1.0))


def data(n: int = 6, classes: int = 2) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(3)
    return 0.2 + 0.6 * torch.rand(n, 6, generator=source, dtype=torch.float64), torch.arange(n) % classes


def test_logits_are_centred_and_scaled() -> None:
    logits = torch.tensor([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]], dtype=torch.float64, requires_grad=True)
    found = by_deviation(logits)
    assert found[0].mean().item() == pytest.approx(0, abs=1e-12)
    assert found[0].square().mean().item() == pytest.approx(1)  # the deviation over all classes, not over one fewer
    assert torch.allclose(found, by_length(logits) * math.sqrt(3))
    assert torch.allclose(by_deviation(10 * logits + 4), found)
    assert found[1].tolist() == [0, 0, 0]
    (slope,) = torch.autograd.grad(found.square().sum() + found[1].sum(), logits)
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize("loss", ["clean", "robust"])
def test_the_adaptive_worst_case_of_a_linear_model(loss: Any, fill: Make) -> None:
    """One image, plain logits: every weight moves against the margin by rho of itself, x >= 0 keeps the signs known."""
    model = fill(nn.Linear(6, 2))
    x, y = data(1)
    found = AdaptiveSharpness(rho=0.01, logits="plain", loss=loss)(model, x, y, seed=0, within=LINF, by=PGD(20))
    w, b = model.weight.detach(), model.bias.detach()
    slope = w[0] - w[1]
    point = x[0] - (0.05 * slope.sign() if loss == "robust" else 0)
    margin = point @ slope + b[0] - b[1]
    lowered = margin - 0.01 * (w.abs().sum(0) @ point + b.abs().sum())
    assert found.value.value == pytest.approx(float(F.softplus(-lowered) - F.softplus(-margin)), abs=1e-9)
    assert found.name == f"{loss} adaptive worst"


def test_the_adaptive_average_is_drawn_from_each_weights_own_normal_law(fill: Make) -> None:
    model = fill(nn.Linear(6, 2))
    x, y = data()
    origin = {name: p.detach() for name, p in model.named_parameters()}
    found = AdaptiveSharpness(case="average", rho=0.2, logits="plain", samples=3)(model, x, y, seed=5)
    base = F.cross_entropy(model(x), y).item()
    for k, draw in enumerate(found.draws):
        source = generator(5, "flatness", k)
        nu = {name: 0.2 * w.abs() * torch.randn(w.shape, generator=source, dtype=w.dtype) for name, w in origin.items()}
        moved = F.linear(x, origin["weight"] + nu["weight"], origin["bias"] + nu["bias"])
        assert draw == pytest.approx(F.cross_entropy(moved, y).item() - base, abs=1e-12)
    many: Any = AdaptiveNoise(0.2).sample({"w": torch.full((20000,), -3.0)}, generator(0, "test"))
    assert float(many["w"].std()) == pytest.approx(0.6, rel=0.02)


@pytest.mark.parametrize("case", ["worst", "average"])
def test_normalised_logits_do_not_see_the_logits_scale(case: Any, fill: Make) -> None:
    model = fill(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    x, y = data(classes=3)
    larger = copy.deepcopy(model)
    with torch.no_grad():
        larger[2].weight.mul_(7)
        larger[2].bias.mul_(7)
    rises: dict[str, list[float]] = {}
    for logits in ("deviation", "length", "plain"):
        measure = AdaptiveSharpness(case=case, logits=logits, samples=3, steps=5)
        rises[logits] = [measure(m, x, y, seed=0).value.value for m in (model, larger)]
    for logits in ("deviation", "length"):
        assert rises[logits][1] == pytest.approx(rises[logits][0], rel=1e-6)
    assert rises["plain"][1] != pytest.approx(rises["plain"][0], rel=0.1)
    assert rises["deviation"][0] != pytest.approx(rises["length"][0], rel=0.1)


def test_the_attack_sees_the_normalised_logits(fill: Make) -> None:
    """The reference of a linear model of three classes is not what an attack on the plain loss would find."""
    model = fill(nn.Linear(6, 3), scale=2.0)
    x, y = data(classes=3)
    found = AdaptiveSharpness(loss="robust", steps=1)(model, x, y, seed=0, within=LINF, by=PGD(40, 0.1))
    corners = 0.05 * torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6)
    with torch.no_grad():
        losses = torch.stack([F.cross_entropy(by_deviation(model(x + c)), y, reduction="none") for c in corners])
        plain = torch.stack([F.cross_entropy(model(x + c), y, reduction="none") for c in corners])
    own = losses.gather(0, plain.argmax(0, keepdim=True)).mean()
    assert found.reference >= float(own) - 1e-9
    assert found.reference == pytest.approx(float(losses.max(0).values.mean()), abs=1e-3)


def test_adaptive_sharpness_moves_normalisation_layers_too_and_sam_all(fill: Make) -> None:
    """As their authors do, unlike the flatness of layers: of a net whose BatchNorm alone matters, they see something."""

    class Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(6)
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.bn(x).detach()) * 0 + self.bn(x)[:, :2]

    model = fill(Only())
    x, y = data()
    for measure in (AdaptiveSharpness(logits="plain"), SAMSharpness()):
        assert measure(model, x, y, seed=0).value.value > 1e-4
    assert FilterNormalised(loss="clean", samples=2)(model, x, y, seed=0).value.value == 0


def test_one_ball_for_all_sees_the_scale_of_layers_and_relative_ones_do_not(fill: Make) -> None:
    """A ReLU pair rescaled: the function is the same, and so are all measures but SAM's."""
    model = fill(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    x, y = data(20, 3)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.mul_(4)
        other[0].bias.mul_(4)
        other[2].weight.div_(4)
    attacked: dict[str, Any] = {"seed": 0, "within": LINF, "by": PGD(3)}
    for measure in (
        AdaptiveSharpness(), AdaptiveSharpness(case="average", samples=3), AdaptiveSharpness(loss="robust", steps=3),
        FilterNormalised(samples=3, reference_restarts=1), FilterNormalised(case="worst", restarts=1, reference_restarts=1),
    ):  # fmt: skip
        one, two = (measure(m, x, y, **attacked).value.value for m in (model, other))
        assert two == pytest.approx(one, rel=1e-6), measure
        assert abs(one) > 1e-5
    one, two = (SAMSharpness()(m, x, y, **attacked).value.value for m in (model, other))
    assert two > 1.5 * one


def test_filters_have_balls_of_their_own(fill: Make) -> None:
    """Every row of a linear layer moves by xi of its own length, and its bias stays."""

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.seen = nn.Linear(6, 3), []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append((self.head.weight.detach().clone(), self.head.bias.detach().clone()))
            return self.head(x)

    model = fill(Watched())
    x, y = data(20, 3)
    found = FilterNormalised(xi=0.3, samples=4, loss="clean")(model, x, y, seed=0)
    w, b = model.head.weight.detach(), model.head.bias.detach()
    moved = [(seen, bias) for seen, bias in model.seen if not torch.equal(seen, w)]
    assert len(moved) == 4
    for seen, bias in moved:
        assert ((seen - w).norm(dim=1) <= 0.3 * w.norm(dim=1) * (1 + 1e-12)).all()
        assert ((seen - w).norm(dim=1) > 0).all()
        assert torch.equal(bias, b)
    assert (found.name, found.facts["xi"]) == ("clean filter average", 0.3)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: AdaptiveSharpness(rho=-1), "rho"),
        (lambda: AdaptiveSharpness(case="median"), "case"),  # pyright: ignore
        (lambda: AdaptiveSharpness(logits="softmax"), "logits"),  # pyright: ignore
        (lambda: AdaptiveSharpness(loss="mse"), "loss"),  # pyright: ignore
        (lambda: SAMSharpness(rho=math.inf), "rho"),
        (lambda: SAMSharpness(nu="each"), "nu"),  # pyright: ignore
        (lambda: FilterNormalised(xi=math.nan), "xi"),
    ],
)
def test_bad_values_are_refused_when_they_are_made(make: Callable[[], Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.argument == argument
