"""A small real problem for the suites: a convolutional model with BatchNorm, images, labels that it mostly gets right."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Problem:
    """A model in eval mode from (n, 1, 12, 12) images in [0, 1] to 5 logits, images and labels."""

    model: nn.Module
    x: Tensor
    y: Tensor


def problem(n: int = 16, *, dtype: torch.dtype = torch.float32) -> Problem:
    """The same one at every call; labels are the model's own predictions but for every fifth image."""
    source = torch.Generator().manual_seed(7)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(288, 5),
    ).to(dtype)  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=source))
        model.eval()
        x = torch.rand(n, 1, 12, 12, generator=source, dtype=torch.float64).to(dtype)
        logits = model(x)
        model[-1].bias -= logits.mean(0) if n else 0.0  # so that every class is predicted  # pyright: ignore
        y = model(x).argmax(1)
    wrong = torch.arange(n) % 5 == 4
    return Problem(model, x, torch.where(wrong, (y + 1) % 5, y))


@dataclass(frozen=True, eq=False)
class Untouched:
    """What must not change: a model's state, modes and gradients, images, labels and the global random state."""

    of: Problem
    state: dict[str, Tensor]
    x: Tensor
    y: Tensor
    random: Tensor

    @staticmethod
    def before(of: Problem) -> "Untouched":
        """As it is now."""
        state = {name: value.clone() for name, value in of.model.state_dict().items()}
        return Untouched(of, state, of.x.clone(), of.y.clone(), torch.get_rng_state())

    def changed(self) -> list[str]:
        """What has changed since, in words."""
        model = self.of.model
        checks = {
            "the images": torch.equal(self.x, self.of.x),
            "the labels": torch.equal(self.y, self.of.y),
            "the global random state": torch.equal(self.random, torch.get_rng_state()),
            "the weights or buffers": all(torch.equal(self.state[k], v) for k, v in model.state_dict().items()),
            "the mode": not any(module.training for module in model.modules()),
            "requires_grad or grad": all(p.requires_grad and p.grad is None for p in model.parameters()),
        }
        return [what for what, same in checks.items() if not same]
