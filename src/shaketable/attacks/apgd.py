"""APGD as an attack: a loss of the logits raised without a step to tune, by itself or towards the likeliest classes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.apgd import APGD
from ..core.ball import Ball, Norm
from ..core.errors import GradientError, InputError
from ..core.losses import ce
from ..core.perturb import Perturbation, drawn_start, perturb
from ..core.record import Calls
from ..core.seeds import generator as make_generator
from .pgd import LOGIT_LOSSES, LogitLoss
from .targets import TARGET_LOSSES, Towards, abreast, likeliest, looked
from .worst import Worst

APGDLoss = Literal["ce", "margin", "dlr", "dlr-targeted", "ce-targeted"]


@dataclass(frozen=True)
class APGDAttack:
    """Auto-PGD on a loss of the logits, from a random start (Croce & Hein 2020; in l1 balls Croce & Hein 2021).

    How it climbs: `shaketable.core.APGD`. A targeted loss is raised for each of the classes that are likeliest at x, besides
    the true one, for as many at once as `abreast` says; what is wanted remains misclassification, as whatever class.

    Args:
        loss: "ce", "margin", "dlr" (the paper's APGD-DLR; three classes or more), a function of (logits (n, k), y (n,)) that
            returns (n,); "dlr-targeted" (AutoAttack's APGD-T; four classes or more) or "ce-targeted".
        steps: 100, the paper's, for every target.
        restarts: runs from new random starts (for every target), of which each image keeps the highest loss.
        targets: how many classes a targeted loss tries; 9, the paper's, or all others if there are fewer. In l1 balls
            AutoAttack tries 5.
        rho: when a step is halved; .75, the paper's.
        staged: in l1 balls, come down from three times the radius; AutoAttack's way.
        stop: drop an image, in all its runs, as soon as it is misclassified in one; later steps, targets and restarts run on
            the others alone. `evaluate` switches it on when it measures accuracy.

    Cost, of an image: `steps` forward and backward passes to the input and one more forward pass, times restarts, times
    targets; with a targeted loss one forward pass before. With `stop` nothing after it is fooled.

    Differences from the paper: none that is known. The start is drawn from the ball by `Ball.sample`; the authors' code puts
    it on the surface: in linf balls a uniform draw and in l2 balls a Gaussian one, scaled; in l1 balls a Gaussian one,
    projected. Over targets and restarts the point of highest loss is kept, unless one is misclassified and `stop` is on.

    Raises:
        InputError: an unknown loss; too few classes for it; an l0 ball; what `perturb` raises for inputs.
        GradientError: no image has a usable gradient.

    Checked by tests/attacks/test_apgd.py (linear models' optima, counted passes) and tests/attacks/test_contract.py.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")

    loss: APGDLoss | LogitLoss = "ce"
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    rho: float = 0.75
    staged: bool = True
    stop: bool = False

    def __post_init__(self) -> None:
        if not callable(self.loss) and self.loss not in get_args(APGDLoss):
            names = ", ".join(get_args(APGDLoss))
            raise InputError(
                "loss", f"one of {names}, or a function", repr(self.loss), "Name one, or pass (logits, y) -> (n,)."
            )
        if type(self.targets) is not int or self.targets < 1:
            raise InputError("targets", "a whole number >= 1", repr(self.targets), "AutoAttack's is 9.")
        self._ascent()

    def _ascent(self) -> APGD:
        return APGD(self.steps, rho=self.rho, restarts=self.restarts, staged=self.staged)

    def until_fooled(self) -> "APGDAttack":
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
        objective = ce(model, y, stop=self.stop)  # checks the labels
        if isinstance(self.loss, str) and self.loss in TARGET_LOSSES:
            return self._towards(model, x, objective.target, within, generator)
        loss: Callable[..., Tensor] = LOGIT_LOSSES[self.loss] if isinstance(self.loss, str) else self.loss
        objective = replace(objective, loss=loss)
        return perturb(objective, x, within, by=self._ascent(), start="sample", generator=generator)

    def _towards(self, model: Any, x: Tensor, y: Tensor, within: Ball, generator: torch.Generator) -> Perturbation:
        assert isinstance(self.loss, str)
        first, logits = looked(model, x, y, within, self.stop, generator)
        if logits is None:
            return first
        classes, loss = likeliest(logits, y, self.targets), TARGET_LOSSES[self.loss]
        worst = Worst(first.origin, within.on(first.origin), compares=True)
        worst.take(worst.left(), replace(first, value=None), first.flags.stopped)
        once, climbed, refused = replace(self._ascent(), restarts=1), False, None
        plan = [target for target in classes.unbind(1) for _ in range(self.restarts)]
        while plan and len(rows := worst.left()):
            width = abreast(worst.x[0], len(rows))
            now, plan = torch.stack(plan[:width]), plan[width:]
            starts = [drawn_start("sample", worst.x, worst.within, generator) for _ in now]  # of all, whoever is left
            objective = Towards(model, y[rows], now[:, rows], loss, stops=self.stop)
            every = rows.repeat(len(now))
            start = torch.cat([start[rows] for start in starts])  # pyright: ignore
            try:
                found = perturb(
                    objective, worst.x[every], worst.within.rows(every), by=once, start=start, generator=generator
                )
            except GradientError as error:  # of these classes; another may have one
                refused = error
                worst.refuse(rows, Calls(len(every), len(every)))
                continue
            climbed = True
            found = objective.best(found)
            worst.take(rows, found, found.flags.stopped)
        if refused is not None and not climbed:
            raise refused
        return worst.perturbation(valued=True)


def apgd(
    model: Any,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    eps: float | Float[Tensor, " n"],
    norm: Norm = "linf",
    loss: APGDLoss | LogitLoss = "ce",
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    box: tuple[float, float] | None = (0.0, 1.0),
    mask: Tensor | None = None,
    seed: int = 0,
) -> Perturbation:
    """APGD on a batch, in one line: ``apgd(model, x, y, eps=8 / 255).point`` are the adversarial images.

    Args:
        model: from inputs in the box to logits; left as it is.
        x, y: inputs and labels.
        eps: the radius, in the unit of the inputs; one for all or one for each.
        norm: "linf", "l2" or "l1".
        box: the range of valid inputs.
        mask: nonzero where an image may change.
        seed: of the random starts. The same seed gives the same result; give each batch its own.
        loss, steps, restarts, targets: see `APGDAttack`.

    For a robust accuracy use `evaluate`, which does less work and checks what it reports. Cost and errors: `APGDAttack`.
    """
    attack = APGDAttack(loss, steps, restarts, targets)
    return attack(model, x, y, Ball(norm, eps, box=box, mask=mask), generator=make_generator(seed, "apgd"))
