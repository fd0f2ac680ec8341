"""The self-test: attacks that work find what was planted, broken models and idle attacks do not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from shaketable.attacks import FGSMAttack, PGDAttack, SquareAttack, selftest
from shaketable.core import Ball, InputError
from shaketable.testing import DEFENCES

Make = Callable[..., Any]
EPS = 0.1
WITHIN = Ball("linf", EPS, box=(0, 1))


@pytest.mark.parametrize("name", ["convolutional", "adversarially trained", "linear"])
def test_pgd_finds_what_random_draws_do_not(honest: Make, name: str) -> None:
    s = honest(name)
    found = selftest(s.model, s.x[:12], within=WITHIN, seed=0)
    assert found.passed, str(found)
    assert found.found.n == 12
    assert found.by_chance.hits <= 2
    assert found.finding is None
    assert found.readout is not None


def test_in_an_l2_ball_too(honest: Make) -> None:
    s = honest("convolutional")
    found = selftest(s.model, s.x[:8], within=Ball("l2", 1.0, box=(0, 1)), seed=0)
    assert found.found.hits >= 7
    assert found.by_chance.hits <= 1


@pytest.mark.parametrize("name", ["quantised input", "masked gradients", "inverted targets", "detached"])
def test_through_a_broken_defence_it_is_not_found(honest: Make, name: str) -> None:
    s = honest("convolutional")
    found = selftest(DEFENCES[name](s.model), s.x[:8], within=WITHIN, seed=0)
    assert not found.passed, str(found)
    assert found.finding is not None
    assert "there for certain" in found.finding.message


def test_an_attack_that_does_nothing_finds_nothing(honest: Make) -> None:
    s = honest("convolutional")
    found = selftest(s.model, s.x[:6], within=WITHIN, attack=PGDAttack(steps=0, start="zero"), seed=0)
    assert found.found.hits == 0


def test_the_planted_point_is_in_the_ball_and_the_image_is_of_class_0(honest: Make) -> None:
    """By an attack that looks inside: it is given the point itself."""
    s, seen = honest("linear"), []

    class Look(FGSMAttack):
        def __call__(self, model, x, y, within, *, generator):
            seen.append(int(model(x).argmax(1)))
            return super().__call__(model, x, y, within, generator=generator)

        def until_fooled(self):
            return self

    assert selftest(s.model, s.x[:5], within=WITHIN, attack=Look(), seed=0).found.n == 5
    assert seen == [0] * 5


def test_the_same_seed_gives_the_same_and_nothing_is_touched(honest: Make) -> None:
    s, random = honest("convolutional"), torch.get_rng_state()
    state = {k: v.clone() for k, v in s.model.state_dict().items()}
    one, two = (selftest(s.model, s.x[:4], within=WITHIN, attack=SquareAttack(queries=30), seed=1) for _ in range(2))
    assert torch.equal(one.hits, two.hits)
    assert one.by_chance == two.by_chance
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(state[k], v) for k, v in s.model.state_dict().items())


def test_a_constant_model_cannot_be_tested_and_says_so(honest: Make) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
    nn.init.zeros_(model[1].weight)
    last = nn.Sequential(model, nn.Tanh()).eval()
    found = selftest(last, honest("linear").x[:3], within=WITHIN, seed=0)
    assert found.skipped == 3
    assert not found.passed
    assert "plant nothing" in (found.finding.message if found.finding else "")


def test_bad_arguments_are_refused(honest: Make) -> None:
    s = honest("linear")
    with pytest.raises(InputError, match="radius above 0"):
        selftest(s.model, s.x[:2], within=Ball("linf", 0.0, box=(0, 1)), seed=0)
    with pytest.raises(InputError, match="draws"):
        selftest(s.model, s.x[:2], within=WITHIN, seed=0, draws=3)
