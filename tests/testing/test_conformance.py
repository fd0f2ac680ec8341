"""The public suites: what is right passes, and every way of being wrong is named."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from shaketable.attacks import FGSMAttack, PGDAttack
from shaketable.core import Ball, InputError, cross_entropy
from shaketable.core.losses import difference_of_logits_ratio, logit_margin
from shaketable.testing import ConformanceError, check_attack, check_constraint, check_detector, check_loss


@pytest.mark.parametrize("attack", [FGSMAttack(), PGDAttack(steps=5)])
def test_attacks_of_the_package_pass(attack: Any) -> None:
    names = check_attack(attack, norms=("linf", "l2"))
    assert {"touches nothing", "keeps every pixel outside a region", "stays in an l2 ball and the box"} <= set(names)


def attack(how: str) -> Any:
    """A PGD with one thing wrong."""

    def call(model: Any, x: Tensor, y: Tensor, within: Ball, *, generator: torch.Generator) -> Any:
        if how == "moves the images":
            x.add_(0.0).clamp_(max=0.9)
        if how == "is seeded by itself":
            generator = torch.Generator().manual_seed(torch.seed() % 1000)
        if how == "trains the model":
            model.train()
        if how == "draws globally":
            torch.rand(1)
        if how == "takes NaN" and not bool(torch.isfinite(x).all()):
            x = x.nan_to_num(0.5)
        found = PGDAttack(steps=3)(
            model, x, y, within if how != "forgets the region" else replace(within, mask=None), generator=generator
        )
        if how == "leaves the ball":
            return replace(found, point=(found.point + 0.1).clamp(0, 1))
        if how == "leaves the box":
            return replace(found, point=found.point - 0.5)
        if how == "miscounts":
            return replace(found, calls=found.calls + found.calls)
        if how == "does nothing":
            return PGDAttack(steps=0, start="zero")(model, x, y, within, generator=generator)
        return found

    return call


WRONG = {
    "leaves the ball": "stays in an linf ball and the box",
    "leaves the box": "stays in an linf ball and the box",
    "forgets the region": "keeps every pixel outside a region",
    "is seeded by itself": "gives the same for the same seed",
    "moves the images": "touches nothing",
    "trains the model": "touches nothing",
    "draws globally": "touches nothing",
    "takes NaN": "refuses NaN",
    "miscounts": "counts its passes",
    "does nothing": "fools something",
}


@pytest.mark.parametrize("how", WRONG)
def test_every_mistake_of_an_attack_is_named(how: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_attack(attack(how))
    assert WRONG[how] in caught.value.failures


def test_without_a_mistake_the_same_attack_passes() -> None:
    assert len(check_attack(attack("nothing"))) == 12


@pytest.mark.parametrize("loss", [cross_entropy, logit_margin, difference_of_logits_ratio])
def test_losses_of_the_package_pass(loss: Any) -> None:
    assert len(check_loss(loss)) == 8


LOSSES = {
    "returns one value for each example": lambda z, y: cross_entropy(z, y).mean(),
    "keeps the dtype": lambda z, y: cross_entropy(z, y).float(),
    "treats each example by itself": lambda z, y: cross_entropy(z, y) - cross_entropy(z, y).mean(),
    "is finite": lambda z, y: -(z.exp() / z.exp().sum(1, keepdim=True)).gather(1, y[:, None])[:, 0].log(),
    "touches nothing and repeats itself": lambda z, y: cross_entropy(z + torch.rand(1), y),
    "has the gradient of its values": lambda z, y: cross_entropy(z.detach() + 0 * z, y),
    "rises as the true logit falls": lambda z, y: -cross_entropy(z, y),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_mistake_of_a_loss_is_named(name: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_loss(LOSSES[name])
    assert name in caught.value.failures


BALLS = [
    Ball("linf", 0.1, box=(0, 1)), Ball("l2", 0.5), Ball("l1", 2.0), Ball("linf", 0.1, mask=torch.ones(8, 8).tril()),
    Ball("l2", 0.1, per="filter", relative=True), Ball("l2", 0.3, per="all"),
]  # fmt: skip


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_balls_pass(ball: Ball) -> None:
    assert len(check_constraint(ball)) == 7


class Wrong:
    """A ball with one method replaced."""

    def __init__(self, ball: Ball, **methods: Any) -> None:
        self.ball, self.methods = ball, methods

    def on(self, origin: Any) -> "Wrong":
        return Wrong(self.ball.on(origin), **self.methods)

    def rows(self, index: Tensor) -> "Wrong":
        return Wrong(self.ball.rows(index), **self.methods)

    def __getattr__(self, name: str) -> Any:
        return self.methods.get(name) or getattr(self.ball, name)


BALL = Ball("l2", 0.5)
MISTAKES: dict[str, dict[str, Any]] = {
    "projects into itself, and only once": {"project": lambda delta, origin: 0.9 * delta},
    "leaves what is feasible": {"project": lambda delta, origin: 0.5 * delta / delta.norm()},
    "draws what is feasible, from the generator alone": {"sample": lambda origin, g: torch.rand_like(origin)},
    "goes the steepest way": {"steepest": lambda g, origin, delta: -BALL.steepest(g, origin, delta)},
    "clips nothing that is feasible": {"clip": lambda point: point * 0.9},
    "is the same for some of the rows": {"project": lambda d, o: BALL.project(d, o) * (1.0 if len(d) > 2 else 0.7)},
}


@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_of_a_constraint_is_named(name: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_constraint(Wrong(BALL, **MISTAKES[name]))
    assert name in caught.value.failures


class Gaussian:
    """A detector: the distance to the mean image, in standard deviations."""

    def __init__(self, seed: int = 0, wrong: str = "") -> None:
        self.wrong, self.mean = wrong, None

    def fit(self, x: Tensor) -> "Gaussian":
        if not bool(torch.isfinite(x).all()) and self.wrong != "refuses NaN":
            raise InputError("x", "finite images", "NaN", "Repair them.")
        old = self.mean if self.wrong == "forgets when it is fitted again" else None
        self.mean, self.deviation = x.mean(0), x.std(0) + 0.05
        if old is not None:
            self.mean = (self.mean + old) / 2
        return self

    def score_samples(self, x: Tensor) -> Tensor:
        if self.mean is None:
            if self.wrong == "refuses to score before it is fitted":
                return torch.zeros(len(x))
            raise InputError("detector", "one that is fitted", "none", "Call fit first.")
        score = ((x - self.mean) / self.deviation).flatten(1).norm(dim=1)
        if self.wrong == "scores what is unlike higher":
            return -score
        if self.wrong == "scores an image alone as in a batch":
            return score / score.max()
        if self.wrong == "gives the same for the same seed":
            return score + torch.randn(len(x), generator=torch.Generator().manual_seed(torch.seed() % 10**6))
        if self.wrong == "touches nothing":
            torch.rand(1)
        return score[:, None] if self.wrong == "gives one finite score an image" else score


def test_a_detector_passes() -> None:
    assert len(check_detector(Gaussian)) == 9


@pytest.mark.parametrize("name", [
    "gives one finite score an image", "scores what is unlike higher", "gives the same for the same seed",
    "scores an image alone as in a batch", "forgets when it is fitted again", "touches nothing",
    "refuses to score before it is fitted", "refuses NaN",
])  # fmt: skip
def test_every_mistake_of_a_detector_is_named(name: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_detector(lambda seed=0: Gaussian(seed, name))
    assert name in caught.value.failures
