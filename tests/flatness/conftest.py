"""Models whose robust loss in a neighbourhood of their weights is known."""

from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture
def fill() -> Callable[..., nn.Module]:
    """Gives a model weights from a seed, in float64 and eval mode."""

    def make(model: nn.Module, seed: int = 0, scale: float = 0.5) -> nn.Module:
        source = torch.Generator().manual_seed(seed)
        model = model.double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(scale * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
            for name, buffer in model.named_buffers():
                if buffer.is_floating_point():
                    noise = torch.rand(buffer.shape, generator=source, dtype=torch.float64)
                    buffer.copy_(noise + 0.5 if name.endswith("var") else noise - 0.5)
        return model

    return make
