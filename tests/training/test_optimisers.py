"""Optimisers as values: they are PyTorch's own, bit for bit, and refuse what cannot be."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shaketable.core import InputError
from shaketable.training.entropy_sgd import EntropySGD
from shaketable.training.optimisers import SGD, Adam, Optimiser


def _start() -> list[nn.Parameter]:
    source = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=source)) for shape in ((3, 4), (4,))]


def _descend(optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int = 7) -> list[Tensor]:
    """Down a function whose gradients differ at every step."""
    for step in range(steps):
        optimiser.zero_grad(set_to_none=True)
        torch.stack([(p**2).sum() * (step + 1) + torch.cos(p * step).sum() for p in parameters]).sum().backward()
        optimiser.step()
    return [p.detach().clone() for p in parameters]


@pytest.mark.parametrize(
    ("value", "theirs"),
    [
        (SGD(), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01)),
        (SGD(momentum=0.0), lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.01)),
        (
            SGD(momentum=0.8, nesterov=True),
            lambda p: torch.optim.SGD(p, 0.05, momentum=0.8, nesterov=True, weight_decay=0.01),
        ),
        (Adam(), lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.01)),
        (
            Adam(0.5, 0.9, 1e-3),
            lambda p: torch.optim.Adam(p, 0.05, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.01),
        ),
        (Adam(decoupled=True), lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.01)),
    ],
)
def test_they_are_pytorchs(value: Optimiser, theirs: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> None:
    own, other = _start(), _start()
    ours, reference = value(own, 0.05, 0.01), theirs(other)
    assert type(ours) is type(reference)
    for a, b in zip(_descend(ours, own), _descend(reference, other), strict=True):
        assert torch.equal(a, b)


def test_where_adams_weight_decay_acts() -> None:
    """Without a gradient: decoupled, the weights shrink by 1 - rate * decay; coupled, Adam makes it a full step of the rate."""
    for decoupled, expected in ((True, 2.0 * (1 - 0.1 * 0.01)), (False, 2.0 - 0.1)):
        p = nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64))
        optimiser = Adam(decoupled=decoupled)([p], 0.1, 0.01)
        p.grad = torch.zeros_like(p)
        optimiser.step()
        torch.testing.assert_close(p.detach(), torch.full_like(p, expected), rtol=1e-6, atol=0)


def test_values() -> None:
    assert SGD() == SGD(0.9, False)
    assert hash(Adam()) == hash(Adam(decoupled=False))
    with pytest.raises(FrozenInstanceError):
        SGD().momentum = 0.5  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("make", "values", "argument"),
    [
        (SGD, {"momentum": 1.0}, "momentum"),
        (SGD, {"momentum": -0.1}, "momentum"),
        (SGD, {"momentum": float("nan")}, "momentum"),
        (SGD, {"momentum": "0.9"}, "momentum"),
        (SGD, {"momentum": 0.0, "nesterov": True}, "nesterov"),
        (SGD, {"nesterov": "yes"}, "nesterov"),
        (Adam, {"beta1": 1.0}, "beta1"),
        (Adam, {"beta2": -0.5}, "beta2"),
        (Adam, {"beta2": None}, "beta2"),
        (Adam, {"eps": 0.0}, "eps"),
        (Adam, {"eps": float("inf")}, "eps"),
        (Adam, {"decoupled": 1}, "decoupled"),
    ],
)
def test_bad_values(make: Callable[..., object], values: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        make(**values)
    assert caught.value.argument == argument
    assert caught.value.remedy


@pytest.mark.parametrize("value", [SGD(), Adam(), Adam(decoupled=True), EntropySGD()])
@pytest.mark.parametrize(
    ("parameters", "rate", "decay", "argument"),
    [
        ([], 0.1, 0.0, "parameters"),
        ([torch.zeros(2)], 0.1, 0.0, "parameters"),
        ([nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)], 0.1, 0.0, "parameters"),
        (["weight"], 0.1, 0.0, "parameters"),
        ([nn.Parameter(torch.zeros(2))], 0.0, 0.0, "rate"),
        ([nn.Parameter(torch.zeros(2))], float("nan"), 0.0, "rate"),
        ([nn.Parameter(torch.zeros(2))], "0.1", 0.0, "rate"),
        ([nn.Parameter(torch.zeros(2))], 0.1, -1e-4, "weight_decay"),
        ([nn.Parameter(torch.zeros(2))], 0.1, float("inf"), "weight_decay"),
    ],
)
def test_bad_calls(value: Optimiser, parameters: list[Any], rate: Any, decay: Any, argument: str) -> None:
    with pytest.raises(InputError) as caught:
        value(parameters, rate, decay)
    assert caught.value.argument == argument
    assert caught.value.remedy
