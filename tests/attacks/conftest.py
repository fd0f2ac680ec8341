"""A small real network, images, and labels that it mostly gets right; from fixed seeds."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Problem:
    """A model in eval mode, images in [0, 1], and labels of which about four fifths are the model's own predictions."""

    model: nn.Module
    x: Tensor
    y: Tensor


def _network(seed: int) -> nn.Sequential:
    layers = [nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1)]
    model = nn.Sequential(*layers, nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4))
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=source))
        model[1].running_mean.copy_(torch.randn(6, generator=source))  # pyright: ignore
        model[1].running_var.copy_(torch.rand(6, generator=source) + 0.5)  # pyright: ignore
    return model.eval()


@pytest.fixture
def problem() -> Callable[..., Problem]:
    """A factory of problems with (n, 1, 12, 12) images and 4 classes."""

    def make(n: int = 40, *, seed: int = 2, dtype: torch.dtype = torch.float32) -> Problem:
        source = torch.Generator().manual_seed(seed)
        model = _network(seed + 100).to(dtype)
        x = torch.rand(n, 1, 12, 12, generator=source, dtype=torch.float64).to(dtype)
        with torch.no_grad():
            model[-1].bias -= model(x).mean(0)  # so that every class is predicted  # pyright: ignore
            y = model(x).argmax(1)
        wrong = torch.rand(n, generator=source) < 0.2
        return Problem(model, x, torch.where(wrong, (y + 1) % 4, y))

    return make
