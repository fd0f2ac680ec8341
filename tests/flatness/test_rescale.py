"""Rescaling: the same function, the same relative flatness, another absolute one; and what is refused."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from shaketable.core import PGD, Ball, InputError, ModelError
from shaketable.flatness.average import average
from shaketable.flatness.rescale import Link, links, rescale
from shaketable.flatness.sharpness import SAMSharpness
from shaketable.flatness.worst import worst
from shaketable.models import normalised
from shaketable.models.architectures.mlp import mlp
from shaketable.models.architectures.preact_resnet import preact_resnet18
from shaketable.models.architectures.resnet import resnet18
from shaketable.models.architectures.small_cnn import small_cnn
from shaketable.models.architectures.vit import vit

Make = Callable[..., Any]
SHAPE: dict[str, Any] = {"channels": 1, "classes": 3, "size": (8, 8)}
LINF = Ball("linf", 0.05, box=(0.0, 1.0))


def images(n: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(3)
    return torch.rand(n, 1, 8, 8, generator=source, dtype=torch.float64).to(dtype), torch.arange(n) % 3


class Functional(nn.Module):
    """A stem, pooling and views as functions, and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3)
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.a(x)  # feeds a sum: not scaled
        x = F.max_pool2d(F.leaky_relu(self.b(x)), 2)
        x = x.mean((2, 3)).view(x.size(0), -1)
        return self.two(torch.relu(self.one(x)))


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet": (lambda: resnet18(**SHAPE, width=4), 20),
    "preact": (lambda: preact_resnet18(**SHAPE, width=4), 8),  # the second convolution of each block feeds a shortcut
    "small, BatchNorm": (lambda: small_cnn(**SHAPE, width=4, norm="batch"), 2),
    "small": (lambda: small_cnn(**SHAPE, width=4), 2),
    "normalised": (lambda: normalised(small_cnn(**SHAPE, width=4), (0.3,), (0.2,)), 2),
    "mlp": (lambda: mlp(**SHAPE, width=8, depth=3, dropout=0.1), 2),
    "functional": (Functional, 1),
}


@pytest.mark.parametrize("factor", [0.5, 2.0, 3.7])
@pytest.mark.parametrize("name", list(MODELS))
def test_the_function_is_kept_and_the_weights_are_not(name: str, factor: float, fill: Make) -> None:
    make, count = MODELS[name]
    model = fill(make(), scale=0.4)
    before = copy.deepcopy(model.state_dict())
    x, _ = images()
    found = links(model)
    scaled = rescale(model, factor, check=x)
    assert len(found) == count
    with torch.no_grad():
        assert torch.allclose(scaled(x), model(x), rtol=1e-9, atol=1e-9)
    for link in found:
        own, other = model.get_submodule(link.layer), scaled.get_submodule(link.layer)
        assert torch.equal(other.weight, factor * own.weight)
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
    shared = {t.data_ptr() for t in model.state_dict().values() if t.numel()}
    assert not shared & {t.data_ptr() for t in scaled.state_dict().values() if t.numel()}
    assert set(scaled.state_dict()) == set(before)
    assert not any(module.training for module in scaled.modules())


def test_small_variances_and_single_precision(fill: Make) -> None:
    """Where the variance is of the order of eps, scaling it without its eps would change the function."""
    model = fill(small_cnn(**SHAPE, width=4, norm="batch"))
    with torch.no_grad():
        model.norm1.running_var.mul_(1e-5)
    x, _ = images()
    for dtype in (torch.float64, torch.float32):
        own = copy.deepcopy(model).to(dtype)
        for factor in (0.5, 2.0):
            scaled = rescale(own, factor, check=x.to(dtype))
            with torch.no_grad():
                assert torch.allclose(scaled(x.to(dtype)), own(x.to(dtype)), rtol=1e-4, atol=1e-4)
    naive = copy.deepcopy(model)
    with torch.no_grad():
        for layer, norm in ((naive.conv1, naive.norm1), (naive.conv2, naive.norm2)):
            for t in (layer.weight, layer.bias, norm.running_mean):
                t.mul_(0.5)
            norm.running_var.mul_(0.25)
        assert not torch.allclose(naive(x), model(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_flatness_is_left_and_what_is_absolute_moves(norm: str, factor: float, fill: Make) -> None:
    """Common random numbers, so the paper's 1.36/1.21/1.27 and 6.50/6.48/6.49 become equal."""
    model = fill(small_cnn(**SHAPE, width=4, hidden=8, norm=norm), scale=0.4)
    x, y = images(9)
    scaled = rescale(model, factor, check=x)
    options: dict[str, Any] = {"seed": 1, "within": LINF, "by": PGD(4), "reference_restarts": 1}
    for measure, more in ((average, {"samples": 3}), (worst, {"xi": 0.01, "restarts": 2})):
        one, two = (measure(m, x, y, **options, **more) for m in (model, scaled))
        assert two.draws == pytest.approx(one.draws, abs=1e-4)
        assert max(map(abs, one.draws)) > 0.01
    one, two = (SAMSharpness(steps=5)(m, x, y, seed=0).value.value for m in (model, scaled))
    assert two != pytest.approx(one, rel=5e-3)
    if norm == "batch":
        assert (two > one) == (factor < 1)  # smaller weights in the same absolute ball


def test_links_are_the_batchnorms_or_the_pairs(fill: Make) -> None:
    assert links(fill(small_cnn(**SHAPE, norm="batch"))) == (Link("conv1", "norm1"), Link("conv2", "norm2"))
    assert links(fill(small_cnn(**SHAPE))) == (Link("conv1", "conv2"), Link("fc1", "fc2"))
    assert links(fill(Functional())) == (Link("b", "one"),)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x.flatten(1))))


class Again(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.a(self.bn(self.a(x)))).flatten(1)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x.flatten(1))
        return self.b(torch.relu(x)) + x.sum(1, keepdim=True)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x.flatten(1))
        return self.b(torch.relu(x if float(x.sum()) > 0 else -x))


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "GELU": lambda: mlp(**SHAPE, width=4, activation="gelu"),
    "SiLU": lambda: small_cnn(**SHAPE, width=4, activation="silu"),
    "GroupNorm": lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(288, 3)),
    "ViT": lambda: vit(**SHAPE, patch=4, dim=8, depth=1, heads=2),
    "tied": Tied,
    "called twice": Again,
    "used twice": Two,
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
    "no statistics": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten()
    ),
    "weight norm": lambda: nn.Sequential(nn.Flatten(), weight_norm(nn.Linear(64, 4)), nn.ReLU(), nn.Linear(4, 3)),
    "control flow": Branching,
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_it_does_not_know_how_to_scale_is_refused(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        rescale(REFUSED[name]().eval(), 2.0)
    assert caught.value.remedy
    assert ("trace" in caught.value.expected) == (name in ("control flow", "ViT"))


def test_a_function_that_changes_is_noticed(fill: Make) -> None:
    """A layer whose hook cuts its output, which the graph does not show."""
    model = fill(nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3)))
    model[1].register_forward_hook(lambda _module, _inputs, output: output.clamp(max=0.01))
    x, _ = images()
    rescale(model, 2.0)
    with pytest.raises(ModelError, match="expected the same logits to"):
        rescale(model, 2.0, check=x)


def test_bad_factors_and_modes(fill: Make) -> None:
    model = fill(small_cnn(**SHAPE, width=4))
    for factor in (0.0, -1.0, float("nan"), float("inf"), "2"):
        with pytest.raises(InputError, match="factor: expected a finite number > 0"):
            rescale(model, factor)  # pyright: ignore
    with pytest.raises(InputError, match="eval mode"):
        rescale(model.train(), 2.0)
