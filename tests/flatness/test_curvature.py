"""The measure that is lambda_max, its fixed adversarial points, and what is known of it."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable.core import PGD, Ball, GradientError, InputError, generator
from shaketable.core.measure import measure
from shaketable.flatness.curvature import Hessian
from shaketable.flatness.eigenpairs import eigenpairs
from shaketable.flatness.hessian import loss_hessian
from shaketable.flatness.points import attacked_points
from shaketable.flatness.spectrum import trace

Make = Callable[..., Any]
LINF = Ball("linf", 0.05, box=(0.0, 1.0))
OPTIONS: dict[str, Any] = {"seed": 1, "within": LINF, "by": PGD(3), "batch_size": 12}


def data(n: int = 12) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(3)
    x = 0.1 + 0.8 * torch.rand(n, 1, 6, 6, generator=source, dtype=torch.float64)
    return x, torch.randint(0, 3, (n,), generator=source)


class Net(nn.Module):
    """Convolution, BatchNorm, ReLU, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, eps=1e-12), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.bn(self.conv(x))).flatten(1))


def test_the_points_are_those_of_the_robust_loss(fill: Make) -> None:
    model = fill(Net())
    x, y = data()
    points = attacked_points(model, x, y, **OPTIONS)
    found = measure(model, x, y, LINF, by=PGD(3), generator=generator(1, "flatness starts", -1), batch_size=12)
    with torch.no_grad():
        assert torch.allclose(F.cross_entropy(model(points.x), y, reduction="none"), found.robust_loss, rtol=1e-12)
    assert float(found.robust_loss.mean()) > float(found.loss.mean()) + 0.05
    assert float((points.x - x).abs().max()) <= 0.05 + 1e-15
    assert not bool(points.silent.any())
    assert points.calls == replace(found.calls, forward=found.calls.forward - 24)


@pytest.mark.parametrize("points", ["adversarial", "clean"])
def test_the_measure_is_lambda_max_with_its_facts(points: Any, fill: Make) -> None:
    model = fill(Net())
    x, y = data()
    found = Hessian(points=points, top=2, tolerance=1e-12, probes=3)(model, x, y, **OPTIONS)
    place = attacked_points(model, x, y, **OPTIONS).x if points == "adversarial" else x
    operator = loss_hessian(model, place, y)
    values = torch.linalg.eigvalsh(operator.products(torch.eye(operator.size, dtype=torch.float64)))
    assert found.value.value == pytest.approx(float(values[-1]), rel=1e-6)
    assert found.draws == pytest.approx([float(values[-1])], rel=1e-6)
    assert found.value.value == pytest.approx(float(found.per_image.mean()), abs=1e-12)
    assert found.value.low < found.value.value < found.value.high
    assert found.facts["lambda_2"] == pytest.approx(float(values[-2]), rel=1e-6)
    assert found.facts["lambda_min"] == pytest.approx(float(values[0]), rel=1e-6)
    assert found.facts["convexity"] == pytest.approx(abs(float(values[0] / values[-1])), rel=1e-6)
    assert found.facts["trace"] == pytest.approx(trace(operator, seed=1, probes=3).value.value)
    assert found.facts["residual"] < 1e-6
    assert found.facts["constant"] == 0
    with torch.no_grad():
        assert found.reference == pytest.approx(float(F.cross_entropy(model(place), y)))
    assert torch.equal(found.correct, model(x).argmax(1) == y)
    assert found.name == ("hessian" if points == "adversarial" else "clean hessian")
    assert found == Hessian(points=points, top=2, tolerance=1e-12, probes=3)(model, x, y, **OPTIONS)


def test_the_curvature_of_attacked_images_is_another_than_the_clean_one(fill: Make) -> None:
    model = fill(Net())
    x, y = data()
    robust, clean = (Hessian(points=points)(model, x, y, **OPTIONS) for points in ("adversarial", "clean"))
    assert robust.value.value != pytest.approx(clean.value.value, rel=5e-3)
    assert robust.reference > clean.reference + 0.05
    assert robust.calls.forward > clean.calls.forward


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_scaling_before_a_batchnorm_moves_it_by_the_inverse_square(factor: float, fill: Make) -> None:
    """The same function, as in the paper's table (7936 / 1990 / 505), of a net whose scaled layer holds the top direction."""
    model = fill(Net())
    model.head.weight.requires_grad_(False)
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for t in (scaled.conv.weight, scaled.conv.bias, scaled.bn.running_mean):
            t.mul_(factor)
        scaled.bn.running_var.mul_(factor**2)
    x, y = data()
    assert torch.allclose(scaled(x), model(x), rtol=1e-9)

    def top(net: nn.Module) -> float:
        points = attacked_points(net, x, y, **OPTIONS).x
        chosen = loss_hessian(net, points, y, select=lambda name, _w: name == "conv.weight")
        return eigenpairs(chosen, seed=0, bottom=0, tolerance=1e-12).top[0]

    assert top(scaled) == pytest.approx(top(model) / factor**2, rel=1e-6)


def test_a_constant_predictor_is_flat_and_says_so(fill: Make) -> None:
    model = fill(Net())
    with torch.no_grad():
        model.head.weight.zero_()
        model.conv.weight.zero_()
        model.bn.weight.zero_()
        model.bn.bias.fill_(-1.0)
    found = Hessian()(model, *data(), **OPTIONS)
    assert found.value.value == 0
    assert found.constant
    assert "convexity" not in found.facts
    assert math.isfinite(found.reference)


def test_masked_gradients_are_an_error(fill: Make) -> None:
    class Rounded(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((8 * x).round() / 8)

    model = fill(Rounded())
    with pytest.raises(GradientError, match="a gradient of the loss by the images"):
        attacked_points(model, *data(), **OPTIONS)
    with pytest.raises(GradientError, match="a gradient of the loss by the images"):
        Hessian()(model, *data(), **OPTIONS)
    assert Hessian(points="clean")(model, *data(), **OPTIONS).value.value > 0


def test_progress_and_bad_input(fill: Make) -> None:
    seen: list[tuple[int, int]] = []
    Hessian()(fill(Net()), *data(), **OPTIONS, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert all(done <= total for done, total in seen)
    for bad in ({"points": "dirty"}, {"top": 0}, {"bottom": -1}, {"probes": -1}):
        with pytest.raises(InputError):
            Hessian(**bad)  # type: ignore[arg-type]
    x, y = data()
    with pytest.raises(InputError, match="eval mode"):
        Hessian()(fill(Net()).train(), x, y, **OPTIONS)
    with pytest.raises(InputError, match="one or more"):
        Hessian()(fill(Net()), x[:0], y[:0], **OPTIONS)
