"""Weight perturbations as values of the training step; the first is AWP (Wu, Xia & Wang 2020)."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

from ..core import PGD, Ball, InputError
from ..core.constraint import constraint
from ..core.places import Select
from ..plugins import nearest

Direction = Literal["gradient", "random"]
Sync = Literal["global", "local"]
Norm = Literal["layer", "filter", "global", "element"]

AWP_BALL = Ball("l2", 0.01, per="tensor", relative=True)
"""||v_l|| <= .01 ||w_l|| for every weight tensor l: the paper's gamma for AT."""

AWP_STEP = PGD(steps=1, step=1.0)
"""One step of the full radius: v_l = gamma ||w_l|| g_l / ||g_l||."""


@dataclass(frozen=True)
class WeightPerturbation:
    """A perturbation v of the weights, found before each step of the optimiser, whose gradient is then taken at w + v.

    `awp`, `sam`, `asam` and `rwp` make the ones that have names; any other is a value of this class.

    Args:
        within: the ball of the perturbation; AWP's by default. It must not be per example; a dict gives tensors their own.
        by: the ascent; one full step by default (the paper's A = 1, K2 = 1). More steps project after each.
        select: which tensors; "matrices" is AWP's: those of more than one dimension, the last layer's too, no biases, no
            normalisation layers; "all" is SAM's; or a function of (name, parameter).
        warmup: epochs without it; the paper's 0 for CIFAR, 5 for SVHN, 10 for TRADES.
        every: only every so many steps; 1.
        direction: "gradient", the worst case; "random", a draw from the ball instead, uniform in its volume (the law of
            `Ball.sample`: in a tensor of m entries its length is the radius times U^(1/m), so nearly the whole radius).
            Then `by` is not used and must be left as it is.
        shared: take v from the weights' gradient of the attack's own objective, in the pass of the attack's last step,
            so one step short of x' and for TRADES of the divergence alone: cheaper, and an approximation. One step only.
        sync: with several processes, "global" finds one v for the whole batch, the same as one process would; "local"
            finds one for each process' share of it (the m-sharpness of Foret et al. 2021, their code's default).

    A group of the ball whose weights are all 0 stays, if the radius is relative, and so does one without gradient; tied
    weights are perturbed once. What "matrices" takes:

    - BatchNorm, GroupNorm, PReLU: nothing, their parameters have one dimension. LayerNorm, RMSNorm: nothing, of any shape.
    - a ViT's class token and positions: yes (at 0, where some libraries start them, a relative ball leaves them).
    - `parametrizations.weight_norm`: both the lengths, original0 of shape (out, 1, ...), and the directions, original1,
      each with its own norm; the radius bounds these two, not the weight that is made of them. The directions alone are
      ``select=lambda name, p: name.endswith("original1")``.
    - weights that are frozen (requires_grad=False): yes; leave them out by ``select=lambda name, p: p.requires_grad``.

    Cost: one more forward-backward pass by the weights for each step of `by`; with shared=True one backward pass to the
    weights; with direction="random" none. Always one copy of the perturbed tensors.

    Raises:
        InputError: a value out of range, an unknown name, or options that do not go together.

    Differences from the authors' code: v is made from the gradient itself, not from the difference that a proxy model's
    optimiser step leaves (which is .5 to .8 off where gradients are small), and taking it off again does not drift.
    Checked by tests/training/test_awp.py, test_sam.py, test_rwp.py: exact formulae in float64 on nets with each of the
    layers above; test_steps.py: whole steps against an independent implementation, to 1e-10 in float64.
    """

    within: Any = AWP_BALL
    by: Any = AWP_STEP
    select: Select = "matrices"
    warmup: int = 0
    every: int = 1
    direction: Direction = "gradient"
    shared: bool = False
    sync: Sync = "global"

    def __post_init__(self) -> None:
        if constraint(self.within).rowwise:
            remedy = "Give the ball per='tensor', 'filter', 'element' or 'all'."
            raise InputError("within", "a ball of weights", "one per example", remedy)
        if not callable(self.by):
            raise InputError("by", "an ascent", repr(self.by), "Use PGD(steps=1, step=1.0).")
        if not callable(self.select):
            one_of("select", self.select, ("matrices", "all"))
        if not whole(self.warmup, 0) or not whole(self.every, 1):
            wanted, found = "whole numbers, warmup >= 0 and every >= 1", f"warmup {self.warmup}, every {self.every}"
            raise InputError("warmup, every", wanted, found, "Use warmup=0, every=1.")
        one_of("direction", self.direction, get_args(Direction))
        one_of("sync", self.sync, get_args(Sync))
        if not isinstance(self.shared, bool):
            raise InputError("shared", "True or False", repr(self.shared), "Use False.")
        self._require_together()

    def _require_together(self) -> None:
        """Refuse options of which one would silently do nothing."""
        steps = getattr(self.by, "steps", None)
        found = repr(self.by) if steps is None else str(steps)
        if self.direction == "random":
            if self.shared:
                remedy = "Set shared=False: a random draw needs no gradient and costs no pass."
                raise InputError("shared", 'False with direction="random"', "True", remedy)
            if self.by != AWP_STEP:
                remedy = "Leave out the steps: a draw is not climbed from."
                raise InputError("steps", '1 with direction="random"', found, remedy)
            if self.sync != "global":
                remedy = "Leave it out: all processes draw the same."
                raise InputError("sync", '"global" with direction="random"', repr(self.sync), remedy)
        if self.shared and not (isinstance(self.by, PGD) and self.by.steps == self.by.restarts == 1):
            remedy = "Leave out the steps, or set shared=False: the attack gives one gradient by the weights, not more."
            raise InputError("steps", "1 with shared=True", found, remedy)

    def due(self, epoch: int, step: int) -> bool:
        """Whether it is taken at this step; `step` counts from the start of the training."""
        return epoch >= self.warmup and step % self.every == 0


def awp(
    gamma: float = 0.01,
    *,
    warmup: int = 0,
    every: int = 1,
    steps: int = 1,
    norm: Norm = "layer",
    select: Select = "matrices",
    direction: Direction = "gradient",
    shared: bool = False,
    sync: Sync = "global",
) -> WeightPerturbation:
    """Adversarial weight perturbation: v = gamma ||w|| g / ||g||, of each layer (Wu, Xia & Wang 2020).

    Args:
        gamma: the radius, a fraction of the weights' norm; .01 for AT and .005 for TRADES are the paper's.
        warmup, every, select, direction, shared, sync: see `WeightPerturbation`.
        steps: of the ascent, 1/steps of the radius each, projected after each; the paper's 1.
        norm: of what the norms are taken.
            "layer", the paper's: ||v_l|| <= gamma ||w_l|| for each tensor l.
            "filter": ||v_f|| <= gamma ||w_f|| for each slice f of a tensor's first dimension: a convolution's filter, a
            linear layer's row (a transposed convolution's input channel; of a tensor of one dimension each entry).
            "global": ||v|| <= gamma ||w|| for all selected tensors as one vector, so layers with larger gradients move more.
            "element": |v_i| <= gamma |w_i| for each entry, so v_i = gamma |w_i| sign(g_i) (l2 and linf are the same there).

    "layer", "filter" and "element" do not change with the scale of layers; "global" does. Cost, errors and differences
    from the authors' code: see `WeightPerturbation`. Checked by tests/training/test_awp.py.
    """
    ball = relative_ball(gamma, norm)
    return WeightPerturbation(ball, climb(steps), select, warmup, every, direction, shared, sync)


def relative_ball(gamma: float, norm: Norm) -> Ball:
    """||v|| <= gamma ||w|| for each layer, filter or element, or for all of them as one; see `awp`."""
    finite("gamma", gamma, "Give the size relative to the weights' norm; the paper's is .01.")
    groups: dict[str, Any] = {"layer": "tensor", "filter": "filter", "global": "all", "element": "element"}
    one_of("norm", norm, tuple(groups))
    return Ball("l2", gamma, per=groups[norm], relative=True)


def climb(steps: int) -> PGD:
    """Steps of equal length that reach the ball's border together."""
    if not whole(steps, 1):
        raise InputError("steps", "a whole number >= 1", repr(steps), "The papers take 1.")
    return AWP_STEP if steps == 1 else PGD(steps=steps, step=1.0 / steps)


def finite(argument: str, value: Any, remedy: str) -> None:
    """Raise an `InputError` unless a value is a finite number >= 0."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < math.inf:
        raise InputError(argument, "a finite number >= 0", repr(value), remedy)


def one_of(argument: str, value: Any, names: tuple[str, ...]) -> None:
    """Raise an `InputError`, with the nearest name, unless a value is one of some names."""
    if not isinstance(value, str) or value not in names:
        raise InputError(argument, f"one of {', '.join(names)}", repr(value), nearest(value, names))


def whole(value: Any, least: int) -> bool:
    """Whether a value is a whole number, and not below the least."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
