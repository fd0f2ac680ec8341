"""Adversarial weight perturbation, AWP (Wu, Xia & Wang 2020), as a value of the training step."""

from dataclasses import dataclass, replace
from typing import Any

from ..core import PGD, Ball, InputError
from ..core.places import Select

AWP_BALL = Ball("l2", 0.01, per="tensor", relative=True)
"""||v_l|| <= .01 ||w_l|| for every weight tensor l: the paper's gamma for AT."""

AWP_STEP = PGD(steps=1, step=1.0)
"""One step of the full radius: v_l = gamma ||w_l|| g_l / ||g_l||."""


@dataclass(frozen=True)
class WeightPerturbation:
    """A worst case over the weights, taken before each step of the optimiser.

    Args:
        within: the ball of the perturbation; AWP's by default.
        by: the ascent; one full step by default (the paper's A = 1, K2 = 1). More steps project after each.
        select: which tensors; "matrices" is the paper's: convolution and linear weights, the last layer's too, no biases,
            no BatchNorm.
        warmup: epochs without it; the paper's 0 for CIFAR, 5 for SVHN, 10 for TRADES.
        every: only every so many steps; 1.

    Any ball serves: SAM is ``Ball("l2", rho, per="all")``. A tensor without gradient, or of norm 0, is left alone.
    Cost: one more forward-backward pass by the weights for each step of `by`, and one copy of the perturbed tensors.

    Differences from the authors' code: v is made from the gradient itself, not from the difference that a proxy model's
    optimiser step leaves (which is .5 to .8 off where gradients are small), and taking it off again does not drift.
    Checked by tests/training/test_steps.py against an independent implementation, to 1e-10 in float64.
    """

    within: Ball = AWP_BALL
    by: Any = AWP_STEP
    select: Select = "matrices"
    warmup: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.every < 1:
            found = f"warmup {self.warmup}, every {self.every}"
            raise InputError("warmup, every", "warmup >= 0 and every >= 1", found, "Use warmup=0, every=1.")

    def due(self, epoch: int, step: int) -> bool:
        """Whether it is taken at this step; `step` counts from the start of the training."""
        return epoch >= self.warmup and step % self.every == 0


def awp(gamma: float = 0.01, *, warmup: int = 0, every: int = 1, steps: int = 1) -> WeightPerturbation:
    """AWP with a radius gamma relative to each tensor's norm: .01 for AT, .005 for TRADES (the paper's defaults)."""
    if not isinstance(steps, int) or steps < 1:
        raise InputError("steps", "a whole number >= 1", repr(steps), "The paper's AWP takes 1.")
    by = AWP_STEP if steps == 1 else PGD(steps=steps, step=1.0 / steps)
    return WeightPerturbation(replace(AWP_BALL, radius=gamma), by, warmup=warmup, every=every)
