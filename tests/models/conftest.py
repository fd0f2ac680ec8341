"""Models small enough to be checked exhaustively, and one whose right answer is known without training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shaketable import models


@dataclass(frozen=True)
class Colours:
    """Images of ten classes around known prototypes, and the network that knows these, in normalised space."""

    x: Tensor
    y: Tensor
    network: nn.Module


class NearestPrototype(nn.Module):
    """Logits of a Gaussian classifier around prototypes, (z p - |p|^2 / 2) / s^2; s is their spread over the pixels."""

    def __init__(self, prototypes: Tensor) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(prototypes)

    def forward(self, z: Tensor) -> Tensor:
        flat = self.prototypes.flatten(1)
        return (z.flatten(1) @ flat.T - flat.square().sum(1) / 2) / flat.var().detach()


@pytest.fixture
def colours() -> Callable[..., Colours]:
    def make(
        channels: int, mean: tuple[float, ...], std: tuple[float, ...], n: int = 300, noise: float = 0.05
    ) -> Colours:
        g = torch.Generator().manual_seed(3)
        pattern = torch.rand(10, channels, 1, 1, generator=g) + 0.1 * torch.rand(10, channels, 6, 6, generator=g)
        prototypes = 0.15 + 0.6 * pattern
        y = torch.arange(n) % 10
        x = (prototypes[y] + noise * torch.randn(n, channels, 6, 6, generator=g)).clamp(0, 1)
        m, s = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
        return Colours(x, y, NearestPrototype((prototypes - m) / s).eval())

    return make


@pytest.fixture
def small_spec() -> models.ModelSpec:
    return models.ModelSpec(
        "small_cnn",
        classes=3,
        channels=1,
        size=(6, 6),
        arguments={"width": 2, "hidden": 3, "norm": "batch"},
        mean=(0.2860,),
        std=(0.3530,),
        labels=("a", 'b"\\', "<script>"),
    )


@pytest.fixture
def saved(small_spec: models.ModelSpec, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    models.save(path, models.build(small_spec, 1), small_spec, facts={"epochs": 3})
    return path
