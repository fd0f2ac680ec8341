"""Small real networks and images for the tests of the core, made from fixed seeds without the global random state."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


def _drawn(model: nn.Module, seed: int, scale: float = 0.4) -> nn.Module:
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=source))
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                noise = torch.rand(buffer.shape, generator=source)
                buffer.copy_(noise + 0.5 if name.endswith("var") else noise - 0.5)
    return model


@pytest.fixture
def network() -> Callable[..., nn.Module]:
    """A factory of convolutional networks for (n, 3, 8, 8) images and 4 classes, with BatchNorm and in-place ReLUs."""

    def make(*, dropout: float = 0.0, seed: int = 1, dtype: torch.dtype = torch.float32) -> nn.Module:
        layers = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        if dropout:
            layers.append(nn.Dropout(dropout))
        layers += [nn.Conv2d(6, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(32, 4)]
        return _drawn(nn.Sequential(*layers), seed).to(dtype).eval()

    return make


@pytest.fixture
def images() -> Callable[..., Tensor]:
    """A factory of images in [0, 1]."""

    def make(n: int = 6, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)

    return make


@pytest.fixture
def labels() -> Callable[..., Tensor]:
    """A factory of labels of 4 classes."""

    def make(n: int = 6, *, seed: int = 0) -> Tensor:
        return torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(seed))

    return make
