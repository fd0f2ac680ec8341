"""The lints: every broken defence is caught, and no honest model is flagged."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from shaketable.attacks import LINTS, FGSMAttack, PGDAttack, lint
from shaketable.attacks.lints_of_strength import above_a_tenth
from shaketable.core import Ball, InputError
from shaketable.testing import CAUGHT_BY, DEFENCES

Make = Callable[..., Any]
EPS = 0.1
WITHIN = Ball("linf", EPS, box=(0, 1))
SMALL = {"convolutional": 0.02, "perceptron": 0.02, "transformer": 0.02, "linear": 0.02, "adversarially trained": EPS}


@pytest.mark.parametrize("name", DEFENCES)
def test_every_broken_defence_is_caught(honest: Make, name: str) -> None:
    s = honest("convolutional")
    found = lint(DEFENCES[name](s.model), s.x, s.y, within=Ball("linf", 0.03, box=(0, 1)), seed=0, images=30)
    flagged = {f.code for f in found.findings}
    assert flagged & CAUGHT_BY[name], str(found)


@pytest.mark.parametrize("name", SMALL)
def test_no_honest_model_is_flagged(honest: Make, name: str) -> None:
    s = honest(name)
    found = lint(s.model, s.x, s.y, within=Ball("linf", SMALL[name], box=(0, 1)), seed=0, images=30)
    assert found.passed, str(found)
    assert [check.code for check in found.checks] == list(LINTS)
    assert found.images == 30
    assert found.calls.forward > 30


def test_a_weak_attack_is_told_from_a_strong_one(honest: Make) -> None:
    s = honest("adversarially trained")
    weak = lint(s.model, s.x, s.y, within=Ball("linf", 0.25, box=(0, 1)), attack=PGDAttack(steps=1, step=0.05), seed=0)
    assert {f.code for f in weak.findings} & {"restarts", "search", "unbounded"}, str(weak)
    assert not lint(s.model, s.x, s.y, within=WITHIN, attack=PGDAttack(steps=20), seed=0, images=30).findings


def test_a_surrogates_points_are_tried(honest: Make) -> None:
    s = honest("convolutional")
    masked = DEFENCES["masked gradients"](s.model)
    found = lint(masked, s.x, s.y, within=WITHIN, seed=0, surrogates={"itself": s.model}, images=30)
    assert "transfer" in {f.code for f in found.findings}


class LastOfAll:
    """An attack that returns where it began after it has found better."""

    def __call__(self, model, x, y, within, *, generator):
        PGDAttack(steps=5)(model, x, y, within, generator=generator)
        return PGDAttack(steps=0, start="zero")(model, x, y, within, generator=generator)


def test_an_attack_that_throws_away_what_it_found_is_told(honest: Make) -> None:
    s = honest("convolutional")
    found = lint(s.model, s.x, s.y, within=Ball("linf", 0.03, box=(0, 1)), attack=LastOfAll(), seed=0, images=30)
    assert "silent" in {f.code for f in found.findings}


def test_the_same_seed_gives_the_same_and_nothing_is_touched(honest: Make) -> None:
    s = honest("convolutional")
    state, random = {k: v.clone() for k, v in s.model.state_dict().items()}, torch.get_rng_state()
    one, two = (lint(s.model, s.x, s.y, within=WITHIN, attack=FGSMAttack(), seed=3, images=10) for _ in range(2))
    assert one == two
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(state[k], v) for k, v in s.model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in s.model.parameters())


def test_what_cannot_be_linted_is_refused_or_empty(honest: Make) -> None:
    s = honest("linear")
    with pytest.raises(InputError, match="one radius"):
        lint(s.model, s.x, s.y, within=Ball("linf", torch.full((150,), 0.1), box=(0, 1)), seed=0)
    wrong = (s.model(s.x).argmax(1) + 1) % 10
    nothing = lint(s.model, s.x, wrong, within=WITHIN, seed=0)
    assert nothing.images == 0
    assert "no image right" in str(nothing)
    with pytest.raises(InputError, match="at least one image"):
        lint(s.model, s.x[:0], s.y[:0], within=WITHIN, seed=0)
    with pytest.raises(InputError, match="images: expected"):
        lint(s.model, s.x, s.y, within=WITHIN, seed=0, images=0)


def test_at_radius_0_only_the_model_is_looked_at(honest: Make) -> None:
    """No attack can do anything there, which is no sign of anything; what is wrong with the model itself still is."""
    s, point = honest("convolutional"), Ball("linf", 0.0, box=(0, 1))
    found = lint(s.model, s.x, s.y, within=point, seed=0, images=20)
    assert found.passed, str(found)
    assert [check.code for check in found.checks] == list(LINTS)
    looked = {check.code for check in found.checks if not check.measured.startswith("not looked at")}
    assert looked == {"random", "probabilities", "gradients"}
    squashed = torch.nn.Sequential(s.model, torch.nn.Softmax(1))
    flagged = {f.code for f in lint(squashed, s.x, s.y, within=point, seed=0, images=20).findings}
    assert "probabilities" in flagged


@pytest.mark.parametrize(
    ("count", "of", "suspicious"),
    [(2, 4, True), (2, 19, True), (2, 20, False), (1, 4, False), (5, 50, False), (6, 50, True), (0, 0, False)],
)
def test_a_tenth_is_two_images_and_more_than_a_tenth(count: int, of: int, suspicious: bool) -> None:
    assert above_a_tenth(count, of) is suspicious
