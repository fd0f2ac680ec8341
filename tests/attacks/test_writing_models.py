"""A model that writes into its images is attacked as one that does not, and the caller's images stay as they are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shaketable import attacks
from shaketable.core import Ball

BALL = Ball("linf", 0.1, box=(0.0, 1.0))


class Normalising(nn.Module):
    """Normalises its images, in place or not."""

    def __init__(self, network: nn.Module, *, writes: bool) -> None:
        super().__init__()
        self.network, self.writes = network, writes

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.sub_(0.5).div_(0.25) if self.writes else x.sub(0.5).div(0.25))


def pair() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    writing, plain = (Normalising(network, writes=writes).eval() for writes in (True, False))
    x = torch.rand(5, 1, 8, 8)
    y = plain(x).argmax(1)
    y[0] = (y[0] + 1) % 5  # one that is wrong as it is
    return writing, plain, x, y


def points(found: Any) -> Tensor:
    return found.points if hasattr(found, "points") else found.point


ATTACKS: dict[str, Callable[..., Any]] = {
    "fgsm": lambda *to: attacks.fgsm(*to, eps=0.1),
    "pgd": lambda *to: attacks.pgd(*to, eps=0.1, seed=0),
    "apgd": lambda *to: attacks.apgd(*to, eps=0.1, steps=6, seed=0),
    "square": lambda *to: attacks.square(*to, eps=0.1, queries=30, seed=0),
    "autoattack": lambda *to: attacks.autoattack(*to, eps=0.1, seed=0),
    "fab": lambda *to: attacks.fab(*to, norm="linf", steps=5, seed=0),
    "cw": lambda *to: attacks.cw(*to, steps=10),
    "ddn": lambda *to: attacks.ddn(*to, steps=10),
    "fmn": lambda *to: attacks.fmn(*to, norm="l2", steps=10),
    "hopskipjump": lambda *to: attacks.hopskipjump(*to, steps=3, seed=0),
    "regional": lambda *to: attacks.regional(*to, steps=5, seed=0),
    "evaluate": lambda *to: attacks.evaluate(*to, within=BALL, seed=0, points=True),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_attacked_as_the_one_that_does_not(name: str) -> None:
    writing, plain, x, y = pair()
    before = x.clone()
    found, expected = (points(ATTACKS[name](model, x, y)) for model in (writing, plain))
    assert torch.equal(x, before)
    assert torch.equal(found, expected)
    assert not torch.equal(found, before)


def test_the_checks_of_an_evaluation_are_those_of_the_one_that_does_not() -> None:
    writing, plain, x, y = pair()
    before = x.clone()
    lints = [attacks.lint(model, x, y, within=BALL, seed=0) for model in (writing, plain)]
    tests = [attacks.selftest(model, x, within=BALL, seed=0) for model in (writing, plain)]
    assert torch.equal(x, before)
    assert str(lints[0]) == str(lints[1])
    assert str(tests[0]) == str(tests[1])
