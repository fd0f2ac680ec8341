"""Small real networks and data sets for the tests of training, from fixed seeds without the global random state."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from shaketable.data import Dataset, from_arrays


def _drawn(model: nn.Module, seed: int) -> nn.Module:
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                module.weight.add_(1.0)
    return model


@pytest.fixture
def network() -> Callable[..., nn.Module]:
    """A factory of convolutional networks in train mode for (n, 3, 6, 6) images and 4 classes."""

    def make(
        norm: str = "none", *, seed: int = 1, dtype: torch.dtype = torch.float32, dropout: float = 0.0
    ) -> nn.Module:
        norms = {"batch": lambda: nn.BatchNorm2d(4), "group": lambda: nn.GroupNorm(2, 4), "none": nn.Identity}
        layers = [nn.Conv2d(3, 4, 3, padding=1), norms[norm](), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(4, 4, 3, stride=2), norms[norm](), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout)]
        return _drawn(nn.Sequential(*layers, nn.Linear(16, 4)), seed).to(dtype).train()

    return make


@pytest.fixture
def batch() -> Callable[..., tuple[Tensor, Tensor]]:
    """A factory of images in [0, 1] of shape (n, 3, 6, 6) and labels of 4 classes."""

    def make(n: int = 6, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        source = torch.Generator().manual_seed(seed)
        x = torch.rand(n, 3, 6, 6, generator=source, dtype=torch.float64)
        return x.to(dtype), torch.randint(0, 4, (n,), generator=source)

    return make


@pytest.fixture
def dataset() -> Callable[..., Dataset]:
    """A factory of grey 6 x 6 images of two classes, dark and bright to the left, so that a radius of .1 can be withstood.

    `flipped` of the labels are wrong.
    """

    def make(n: int = 24, *, seed: int = 0, flipped: float = 0.0) -> Dataset:
        source = torch.Generator().manual_seed(seed)
        y = torch.arange(n) % 2
        x = 0.3 + 0.2 * torch.rand(n, 1, 6, 6, generator=source)
        x[:, :, :, :3] += 0.35 * y.reshape(-1, 1, 1, 1)
        wrong = torch.rand(n, generator=source) < flipped
        return from_arrays(x, torch.where(wrong, 1 - y, y), classes=["dark", "bright"])

    return make


@pytest.fixture
def small() -> Callable[..., nn.Module]:
    """A factory of networks for the images of `dataset`."""

    def make(*, norm: str = "batch", dropout: float = 0.0, seed: int = 1) -> nn.Module:
        middle = nn.BatchNorm2d(4) if norm == "batch" else nn.Identity()
        layers = [nn.Conv2d(1, 4, 3, stride=2), middle, nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(16, 2)]
        return _drawn(nn.Sequential(*layers), seed)

    return make
