"""A small real network, images, and labels that it mostly gets right; from fixed seeds."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shaketable as st
from shaketable.models import ModelSpec, build


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


ARCHITECTURES = {
    "convolutional": ModelSpec("small_cnn", 10, 1, (28, 28), mean=(0.286,), std=(0.353,)),
    "perceptron": ModelSpec("mlp", 10, 1, (28, 28), mean=(0.286,), std=(0.353,)),
    "transformer": ModelSpec("vit", 10, 1, (28, 28), {"patch": 7, "dim": 32, "depth": 1, "heads": 2}),
    "linear": None,
    "adversarially trained": ModelSpec("small_cnn", 10, 1, (28, 28), mean=(0.286,), std=(0.353,)),
}


@functools.cache
def _honest(name: str) -> Problem:
    """A model of 300 training images and about a hundred steps."""
    spec, parts = ARCHITECTURES[name], st.data.open_parts("fashion-mnist")
    train, test = parts.train.batch(range(240)), parts.test.batch(range(150))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)) if spec is None else build(spec, seed=0)
    optimiser, robust = torch.optim.Adam(model.parameters(), 2e-3), name == "adversarially trained"
    ball, source = st.Ball("linf", 0.1, box=(0, 1)), st.generator(0)
    for epoch in range(16 if robust else 12):
        for rows in torch.randperm(240, generator=st.generator(1, epoch)).split(50):
            x, y = train.x[rows], train.y[rows]
            if robust:
                model.eval()
                x = st.perturb(st.ce(model, y), x, ball, by=st.PGD(2, 0.7), start="sample", generator=source).point
            model.train()
            optimiser.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimiser.step()
    model.zero_grad()
    return Problem(model.eval(), test.x, test.y)


@pytest.fixture
def honest() -> Callable[[str], Problem]:
    """Honest models on real images, by name; each is trained once."""
    return _honest
