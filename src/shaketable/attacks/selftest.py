"""The active self-test of an evaluation: plant adversarial examples that are there for certain, and see if they are found."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..core.ball import Ball
from ..core.errors import GradientError, InputError
from ..core.places import at
from ..core.seeds import generator
from ..models.untouched import untouched
from ..stats import Rate
from .attack import Attack
from .evaluation import Finding
from .pgd import PGDAttack

LEAST = 0.9
FILLER = -20.0  # the logit of the classes that are not part of the test
STEEP = 8.0  # the score is at least minus this at the image, so that no cross-entropy saturates there


@dataclass(frozen=True, eq=False)
class SelfTest:
    """What the attack found of what was planted.

    Args:
        found: images at which the attack found an adversarial point, of those at which there is one.
        by_chance: images at which as many random draws as the planting took found one: the test is only hard if these are
            few.
        hits: of each image that could be planted at, whether it was found.
        readout: the name of the linear layer that was replaced; None: the model's outputs themselves were read.
        skipped: images at which no planted point could be told from the draws.
    """

    found: Rate
    by_chance: Rate
    hits: Bool[Tensor, " n"]
    readout: str | None
    skipped: int

    @property
    def passed(self) -> bool:
        """Whether the attack found at least 90 % of what is there."""
        return self.found.n > 0 and self.found.value >= LEAST

    @property
    def finding(self) -> Finding | None:
        """What the reader of the evaluation must know; None if it passed."""
        if self.passed:
            return None
        if not self.found.n:
            message = (
                f"The self-test could plant nothing at any of {self.skipped} images: all draws gave the same outputs."
            )
        else:
            message = (
                f"The attack found {self.found.hits} of {self.found.n} adversarial points that are there for certain "
                f"(random draws {self.by_chance.hits}); an attack that works finds at least {100 * LEAST:.0f} %."
            )
        remedy = (
            "The robust accuracy is no evidence: mend the attack (more steps, another loss, bpda, eot) until it passes."
        )
        return Finding("finding", "selftest", message, remedy, self.found.n - self.found.hits)

    def __str__(self) -> str:
        return f"planted points found: {self.found}; by as many random draws: {self.by_chance}"


def selftest(
    model: Any,
    x: Float[Tensor, "n ..."],
    *,
    within: Ball,
    seed: int,
    attack: Attack | None = None,
    draws: int = 200,
    tightness: float = 0.9,
) -> SelfTest:
    """The binarisation test (Zimmermann et al. 2022, Increasing Confidence in Adversarial Robustness Evaluations).

    At each image x the last linear layer is replaced by one that tells a single point on the ball's sphere from `draws`
    points within it and nothing else: class 1 there, class 0 at x and at every draw. So an adversarial example exists for
    certain, and through the same features as the model's own decision. The attack of the evaluation must find one.

    Args:
        model: from inputs to logits, in eval mode; left as it is. A module whose outputs are those of an `nn.Linear` is read
            before it; of any other the outputs are the features.
        x: images in the box; a few dozen.
        within: the ball of the evaluation, per example, with one radius and one mask for all.
        attack: the attack of the evaluation; `PGDAttack()`.
        draws: points in the ball that must be of class 0: 200; as many other draws are the attack by chance.
        tightness: where the border lies between the highest draw (0) and the planted point (1).

    Differences from the paper: its readout is a logistic regression trained for each image; here it is Fisher's linear
    discriminant (ridge: a thousandth of the mean variance), which needs no training, and its border lies at `tightness`. Inner
    points are uniform in the ball of the radius, not of a fraction of it. Where the planted point is not above all draws it
    is drawn again, up to 20 times. The other classes have the logit -20, so that losses of three logits or more (DLR) work.

    Cost for an image: 2 `draws` + 20 forward passes at most, and the attack's, one image at a time.

    Raises:
        InputError: a ball that is not per example, or with a radius of each image; a radius of 0; draws below 10.

    Checked by tests/attacks/test_selftest.py: attacks and models that work, broken ones, an attack that does nothing.
    """
    attack = PGDAttack() if attack is None else attack
    _require(within, draws)
    hits, chances, skipped = list[bool](), list[bool](), 0
    keep = untouched(model, x.device) if isinstance(model, nn.Module) else torch.random.fork_rng(devices=[])
    with torch.inference_mode(False), keep:
        features, readout, classes = _features(model, x[:1])
        for k, image in enumerate(x):
            own = generator(seed, "selftest", k)
            planted = _plant(features, image[None], within, own, draws, tightness, classes)
            if planted is None:
                skipped += 1
                continue
            hits.append(_found(planted, image[None], within, attack, own))
            chances.append(any(bool((p > 0).any()) for p in planted.scores(_drawn(image[None], within, own, draws))))
    return SelfTest(
        Rate(sum(hits), len(hits)),
        Rate(sum(chances), len(chances)),
        torch.tensor(hits, dtype=torch.bool),
        readout,
        skipped,
    )


class _Planted(nn.Module):
    """The model with a readout of two classes that matter: 0 at an image and around it, 1 at a point on the sphere."""

    def __init__(
        self, features: Any, weight: Tensor, centre: Tensor, border: float, spread: float, classes: int
    ) -> None:
        super().__init__()
        self.features, self.weight, self.centre = features, weight, centre
        self.border, self.spread, self.classes = border, spread, classes

    def score(self, x: Tensor) -> Tensor:
        """Above 0 where the class is 1; about -8 at the image, or nearer."""
        moved = self.features(x).flatten(1) - self.centre
        return ((moved * self.weight).sum(1) - self.border) / self.spread

    def scores(self, x: Tensor) -> Iterator[Tensor]:
        """The scores of many points, in parts."""
        with torch.no_grad():
            for part in x.split(100):
                yield self.score(part)

    def forward(self, x: Tensor) -> Tensor:
        """Logits: minus and plus half of the score, and the filler."""
        score = self.score(x)
        rest = score.new_full((len(x), self.classes - 2), FILLER)
        return torch.cat([-score[:, None] / 2, score[:, None] / 2, rest], 1)


def _plant(
    features: Any, x: Tensor, within: Ball, source: torch.Generator, draws: int, tightness: float, classes: int
) -> _Planted | None:
    """A readout that is 1 at a point of the sphere alone; None if no point can be told from the draws."""
    ball: Any = within.on(x)
    with torch.no_grad():
        inner = torch.cat([x, _drawn(x, within, source, draws)])
        f = torch.cat([features(part).flatten(1) for part in inner.split(100)]).double()
        f = f.nan_to_num(0.0, 0.0, 0.0)
        centre = f.mean(0)
        spread = torch.cov((f - centre).T).reshape(f.shape[1], -1)
        ridge = 1e-3 * spread.diagonal().mean()
        if not float(ridge) > 0:
            return None
        spread.diagonal().add_(ridge)
        for _ in range(20):
            point = ball.clip(x + ball.sample(x, source, law="sphere"))
            at = features(point).flatten(1).double()[0].nan_to_num(0.0, 0.0, 0.0) - centre
            weight = torch.linalg.solve(spread, at)
            scores, own = (f - centre) @ weight, float(at @ weight)
            highest = float(scores.max())
            if own > highest + 1e-6 * abs(highest) and float(scores.std()) > 0:
                border = highest + tightness * (own - highest)
                unit = max(float(scores.std()), border / STEEP)
                return _Planted(
                    features, weight.to(x), centre.to(x), border, unit, max(classes, 4)
                ).eval()  # fmt: skip
    return None


def _found(planted: _Planted, x: Tensor, within: Ball, attack: Attack, source: torch.Generator) -> bool:
    """Whether the attack finds a point of class 1 in the ball."""
    fast = getattr(attack, "until_fooled", None)
    y = torch.zeros(1, dtype=torch.int64, device=x.device)
    try:
        with torch.enable_grad():
            point = (attack if fast is None else fast())(planted, x, y, within, generator=source).point
    except GradientError:
        return False
    ball: Any = within.on(x)
    delta = ball.project(point.detach() - x, x)
    return bool(next(planted.scores(ball.clip(x + delta))) > 0)


def _drawn(x: Tensor, within: Ball, source: torch.Generator, draws: int) -> Tensor:
    """Points in the ball around one image."""
    many = x.expand(draws, *x.shape[1:])
    ball: Any = within.on(many)
    return ball.clip(many + ball.sample(many, source))


def _features(model: Any, x: Tensor) -> tuple[Any, str | None, int]:
    """What a new readout can read: the input of the last linear layer if its output is the model's; else the outputs."""
    seen: list[tuple[str, Tensor]] = []
    if not isinstance(model, nn.Module):
        with torch.no_grad():
            return model, None, at(model)(x).shape[1]
    hooks = [
        module.register_forward_hook(_noted(seen, name))
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name
    ]
    try:
        with torch.no_grad():
            logits = at(model)(x)
    finally:
        for hook in hooks:
            hook.remove()
    name = next((name for name, out in reversed(seen) if out is logits or torch.equal(out, logits)), None)
    if name is None:
        return model, None, logits.shape[1]
    try:
        twin = copy.deepcopy(model).requires_grad_(False)
    except Exception:  # a model may hold anything: locks, handles, tensors of a graph
        return model, None, logits.shape[1]
    parent, _, leaf = name.rpartition(".")
    setattr(twin.get_submodule(parent), leaf, nn.Identity())
    return twin, name, logits.shape[1]


def _noted(seen: list[tuple[str, Tensor]], name: str) -> Any:
    return lambda module, given, out: seen.append((name, out))


def _require(within: Ball, draws: int) -> None:
    if not within.rowwise or (isinstance(within.radius, Tensor) and within.radius.dim() > 0):
        raise InputError("within", "a ball per example with one radius", "another one", "Test at one radius.")
    if not float(within.radius) > 0:
        raise InputError("within", "a radius above 0", str(within.radius), "Nothing can be planted in a point.")
    if type(draws) is not int or draws < 10:
        raise InputError("draws", "a whole number of at least 10", repr(draws), "200 is usual.")
