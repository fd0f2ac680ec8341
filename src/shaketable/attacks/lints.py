"""Lints of an evaluation: signs that a robust accuracy says more of the attack than of the model.

A lint looks at a model, some of its images, a ball and the attack that was used, and says what it measured and whether
that is suspicious. `LINTS` names them; a new one is a function and a line there. They are signs, not proofs: a model that
passes all of them may still be broken by a better attack, and one that fails may still be robust.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core.ball import Ball
from ..core.errors import InputError
from ..core.places import at
from ..core.record import Calls
from ..models.untouched import untouched
from .attack import Attack
from .evaluation import Finding
from .lints_of_signals import gradients, probabilities, random, rising, saturated, silent
from .lints_of_strength import monotone, noise, restarts, search, transfer, unbounded
from .minimal import require_count
from .pgd import PGDAttack
from .probe import Check, Probe

IMAGES = 50
AT_RADIUS_0 = frozenset({"random", "probabilities", "gradients"})  # they are of the model; the others of an attack

LINTS: dict[str, Callable[[Probe], Check]] = {
    "random": random,
    "probabilities": probabilities,
    "gradients": gradients,
    "saturated": saturated,
    "rising": rising,
    "silent": silent,
    "monotone": monotone,
    "unbounded": unbounded,
    "noise": noise,
    "search": search,
    "restarts": restarts,
    "transfer": transfer,
}


@dataclass(frozen=True)
class Lints:
    """All that the lints found.

    Args:
        checks: one of each lint, in the order of `LINTS`.
        images: how many were looked at.
        calls: the passes spent, in images.
    """

    checks: tuple[Check, ...]
    images: int
    calls: Calls

    @property
    def passed(self) -> bool:
        """Whether nothing is suspicious."""
        return all(check.passed for check in self.checks)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of the checks that did not pass."""
        return tuple(found for check in self.checks if (found := check.finding) is not None)

    def __str__(self) -> str:
        if not self.checks:
            return "nothing was looked at: the model gets no image right"
        return "\n".join(f"{'ok' if c.passed else 'FINDING':8}{c.code}: {c.measured}" for c in self.checks)


def lint(
    model: Any,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    within: Ball,
    seed: int,
    attack: Attack | None = None,
    surrogates: Mapping[str, Any] | None = None,
    images: int = IMAGES,
) -> Lints:
    """Run all lints on the first images that the model gets right.

    Args:
        model: from inputs to logits, in eval mode; left as it is.
        x, y: images in the box and their labels; a few hundred drawn at random are plenty.
        within: the ball of the evaluation, with one radius and one mask for all images.
        attack: the attack of the evaluation; `PGDAttack()`.
        surrogates: other models of the same classes, whose adversarial images are tried on this one.
        images: how many are looked at; 50, of which 3 in error (6 %) are the fewest that a share of 5 % flags.

    The lints are those that Carlini et al. 2019 (On Evaluating Adversarial Robustness), AutoAttack's flags (Croce & Hein
    2020) and Pintor et al. 2022 (Indicators of Attack Failure) ask for, written anew from the papers; see each of them. The
    thresholds are ours (2 images and 5 %), chosen so that none of the honest models of the tests is flagged. At radius 0 no
    attack can do anything, and only what is of the model itself is looked at: random, probabilities, gradients.

    Cost for an image, at most: 6 times the attack's, 22 forward and 2 backward passes for noise and gradients, 10 L for PGD
    on the margin, 150 forward passes for each that survives; a pass of a surrogate's attack each.

    Raises:
        InputError: what `evaluate` raises; no image; radii or masks of each image.

    Checked by tests/attacks/test_lints.py: broken defences, each of which a lint must catch, and honest models.
    """
    if isinstance(within.radius, Tensor) and within.radius.dim() > 0:
        raise InputError("within", "one radius for all images", "one for each", "Lint the evaluation at one radius.")
    require_count("images", images, 1)
    if not len(x):
        raise InputError("x", "at least one image", "none", "Check the data set and the split.")
    attack = PGDAttack() if attack is None else attack
    with torch.inference_mode(False), _kept(model, x.device):
        with torch.no_grad():
            logits = torch.cat([at(model)(part) for part in x.split(100)])
        right = torch.nonzero(logits.argmax(1) == y)[:, 0][:images]
        probe = Probe(model, x[right], y[right], within, attack, seed, dict(surrogates or {}))
        if not len(right):
            return Lints((), 0, Calls(len(x), 0))
        checks = tuple(_looked(name, look, probe) for name, look in LINTS.items())
    return Lints(checks, len(right), probe.calls + Calls(len(x), 0))


def _looked(name: str, look: Callable[[Probe], Check], probe: Probe) -> Check:
    if float(probe.within.radius) == 0 and name not in AT_RADIUS_0:
        return Check(name, True, "not looked at: radius 0", "")
    return look(probe)


def _kept(model: Any, device: torch.device) -> Any:
    return untouched(model, device) if isinstance(model, nn.Module) else torch.random.fork_rng(devices=[])
