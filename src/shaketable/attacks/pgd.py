"""Gradient attacks within a ball: PGD (Madry et al. 2018) and FGSM (Goodfellow et al. 2015)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.ascent import PGD
from ..core.ball import Ball, Norm
from ..core.errors import InputError
from ..core.losses import ce, cross_entropy, difference_of_logits_ratio, logit_margin
from ..core.perturb import Perturbation, perturb
from ..core.seeds import generator as make_generator

LogitLoss = Callable[[Tensor, Tensor], Tensor]
LossName = Literal["ce", "margin", "dlr"]
LOGIT_LOSSES: dict[str, LogitLoss] = {"ce": cross_entropy, "margin": logit_margin, "dlr": difference_of_logits_ratio}


@dataclass(frozen=True)
class PGDAttack:
    """Projected gradient ascent of a loss of the logits, from a random start (Madry et al. 2018, section 2.1).

    delta <- project(delta + step * radius * steepest(gradient of the loss)), `steps` times, in any ball: sign steps for
    linf, normalised gradients for l2.

    Args:
        loss: "ce" (the paper's), "margin" (the largest other logit minus the true one, Carlini & Wagner 2017), "dlr"
            (Croce & Hein 2020; three classes or more), or a function of (logits (n, k), y (n,)) that returns (n,).
        steps: 20, as robust accuracies are commonly quoted (PGD-20); the paper trains with 7 and evaluates with up to 100.
        step: in units of the ball's radius; .25 is the paper's 2/255 for 8/255.
        restarts: runs from new random starts, of which each image keeps the one of highest loss. From start="zero" they
            are all the same.
        momentum: of the gradients, each divided by its mean absolute value (MI-FGSM, Dong et al. 2018); 0 is none.
        start: "sample", a draw from the ball, or "zero".
        targeted: y are the classes to reach, and the loss is lowered.
        keep: the "last" point of a run, as the paper does, or the "best" one seen.
        stop: drop an image as soon as it is misclassified (or classified as its target). Its point is then the first that
            fools the model and not the strongest, so the values are no robust losses. `evaluate` switches it on when it
            measures accuracy; it is off by default because every other use needs strong points.

    Cost: with the defaults `steps` forward passes and as many backward passes to the input an image. With `stop`,
    keep="best" or restarts, one more forward pass a restart; with `stop` an image costs nothing after it is fooled.

    Differences from the paper: none with the defaults. With `stop` an image counts as fooled if any of its iterates fools
    the model, the start included, so robust accuracy is never higher than that of the last iterate.

    Raises:
        InputError: an unknown loss or start; labels of another shape, or out of the model's classes; what `perturb`
            raises for inputs.
        GradientError: no image has a usable gradient, so the attack would have done nothing.

    Checked by tests/attacks/test_pgd.py (a hand-written loop bit for bit, a linear model's optimum) and
    tests/attacks/test_contract.py.
    """

    loss: LossName | LogitLoss = "ce"
    steps: int = 20
    step: float = 0.25
    restarts: int = 1
    momentum: float = 0.0
    start: Literal["sample", "zero"] = "sample"
    targeted: bool = False
    keep: Literal["last", "best"] = "last"
    stop: bool = False

    def __post_init__(self) -> None:
        if not callable(self.loss) and self.loss not in get_args(LossName):
            found = repr(self.loss)
            raise InputError(
                "loss",
                f"one of {', '.join(LOGIT_LOSSES)}, or a function",
                found,
                "Name one, or pass (logits, y) -> (n,).",
            )
        if self.start not in ("sample", "zero"):
            raise InputError("start", "'sample' or 'zero'", repr(self.start), "Choose one of them.")
        self._ascent()

    def _ascent(self) -> PGD:
        return PGD(self.steps, self.step, self.momentum, self.restarts, self.keep)

    def until_fooled(self) -> "PGDAttack":
        """The same attack, with `stop`."""
        return replace(self, stop=True)

    def __call__(
        self,
        model: Any,
        x: Float[Tensor, "n ..."],
        y: Int[Tensor, " n"],
        within: Ball,
        *,
        generator: torch.Generator,
    ) -> Perturbation:
        """Attack a batch; see `Attack` for the arguments."""
        loss = self.loss if callable(self.loss) else LOGIT_LOSSES[self.loss]
        objective = replace(ce(model, y, targeted=self.targeted, stop=self.stop), loss=loss)
        return perturb(objective, x, within, by=self._ascent(), start=self.start, generator=generator)


@dataclass(frozen=True)
class FGSMAttack:
    """One step of the full radius along the steepest direction, from the input itself (Goodfellow et al. 2015, eq. 1).

    x + eps sign(gradient of the loss) for linf, the normalised gradient for l2 (FGM). A quick look, and no evidence of
    robustness: models that are trained on it learn to mask its gradient (Tramer et al. 2018).

    Args:
        loss, targeted, stop: as in `PGDAttack`; with `stop` only the misclassified inputs themselves are passed over.

    Cost: one forward and one backward pass an image; with `stop` one more forward pass.
    Checked by tests/attacks/test_pgd.py and tests/attacks/test_contract.py.
    """

    loss: LossName | LogitLoss = "ce"
    targeted: bool = False
    stop: bool = False

    def __post_init__(self) -> None:
        self._as_pgd()

    def _as_pgd(self) -> PGDAttack:
        return PGDAttack(self.loss, steps=1, step=1.0, start="zero", targeted=self.targeted, stop=self.stop)

    def until_fooled(self) -> "FGSMAttack":
        """The same attack, with `stop`."""
        return replace(self, stop=True)

    def __call__(
        self,
        model: Any,
        x: Float[Tensor, "n ..."],
        y: Int[Tensor, " n"],
        within: Ball,
        *,
        generator: torch.Generator,
    ) -> Perturbation:
        """Attack a batch; see `Attack` for the arguments. Nothing is drawn from the generator."""
        return self._as_pgd()(model, x, y, within, generator=generator)


def pgd(
    model: Any,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    eps: float | Float[Tensor, " n"],
    norm: Norm = "linf",
    loss: LossName | LogitLoss = "ce",
    steps: int = 20,
    step: float = 0.25,
    restarts: int = 1,
    momentum: float = 0.0,
    start: Literal["sample", "zero"] = "sample",
    targeted: bool = False,
    keep: Literal["last", "best"] = "last",
    box: tuple[float, float] | None = (0.0, 1.0),
    mask: Tensor | None = None,
    seed: int = 0,
) -> Perturbation:
    """PGD on a batch, in one line: ``pgd(model, x, y, eps=8 / 255).point`` are the adversarial images.

    Args:
        model: from inputs in the box to logits; left as it is.
        x, y: inputs and labels, or target classes if `targeted`.
        eps: the radius, in the unit of the inputs; one for all or one for each.
        norm: "linf", "l2", "l1" or "l0".
        box: the range of valid inputs.
        mask: nonzero where an image may change.
        seed: of the random starts. The same seed gives the same result; give each batch its own.
        loss, steps, step, restarts, momentum, start, targeted, keep: see `PGDAttack`.

    For a robust accuracy use `evaluate`, which does less work and checks what it reports. Cost and errors: `PGDAttack`.
    """
    attack = PGDAttack(loss, steps, step, restarts, momentum, start, targeted, keep)
    return attack(model, x, y, Ball(norm, eps, box=box, mask=mask), generator=make_generator(seed, "pgd"))


def fgsm(
    model: Any,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    eps: float | Float[Tensor, " n"],
    norm: Norm = "linf",
    loss: LossName | LogitLoss = "ce",
    targeted: bool = False,
    box: tuple[float, float] | None = (0.0, 1.0),
    mask: Tensor | None = None,
) -> Perturbation:
    """FGSM on a batch, in one line: ``fgsm(model, x, y, eps=8 / 255).point``. See `pgd` for the arguments, and `FGSMAttack`."""
    ball = Ball(norm, eps, box=box, mask=mask)
    return FGSMAttack(loss, targeted)(model, x, y, ball, generator=make_generator(0, "fgsm"))
