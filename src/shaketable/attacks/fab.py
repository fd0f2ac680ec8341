"""FAB: minimally distorted adversarial examples with a fast adaptive boundary attack (Croce & Hein 2020)."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.ball import Ball
from ..core.errors import InputError
from ..core.perturb import Perturbation
from ..core.record import Calls, Flags
from ..core.seeds import generator as make_generator
from .minimal import Counted, Minimal, apart, prepared, require_count
from .targets import abreast
from .walk import Pace, Walk

NORMS = ("linf", "l2", "l1")
REACH = {"linf": 0.3, "l2": 1.0, "l1": 5.0}  # of random restarts, where no ball says it: AutoAttack's


@dataclass(frozen=True)
class FABAttack:
    """FAB within a ball: an image is fooled if the nearest adversarial point that was found lies in the ball.

    At a point z the nearest decision boundary is linearised; z and the image x are projected onto it within the box,
    exactly in the ball's norm (`hyperplane`), giving shifts d and o; and

        z <- box((1 - a) (z + eta d) + a (x + eta o)),  a = min(|d| / (|d| + |o|), alpha_max)

    Where that is adversarial it is kept if it is the nearest yet, and z <- (1 - beta) x + beta z (algorithm 1 of the paper).
    Last, three steps on the segment from x to the nearest point move it closer to the boundary.

    Args:
        targeted: aim at one class at a time, the likeliest other ones first (FAB-T of AutoAttack): a gradient a step instead
            of classes - 1. Success is any other class all the same; the labels given are the true ones.
        targets: how many classes FAB-T aims at, at most those that there are; 9, AutoAttack's. As many as `abreast` says are
            walked to at once, if there is one restart.
        steps: of each run; 100, the paper's and AutoAttack's.
        restarts: runs for each target, the first from the image itself, others from random points; 1 in AutoAttack's
            standard ensemble, 5 of the untargeted attack in its plus version.
        alpha_max, eta, beta: .1, 1.05 and .9, those of the paper's code for all norms, and AutoAttack's.
        search: steps of the final search; 3, the paper's. AutoAttack makes none.
        stop: drop an image, with all its walks, as soon as a point in the ball is found: the verdicts are the same, the
            points are not the nearest. `evaluate` switches it on when it measures accuracy.

    The point of an image that is not fooled is the image itself: FAB looks for near points, not for high losses, so no
    robust loss can be read from it. No value is returned.

    Cost, for an image that is not fooled: with C classes, for each restart (and target) steps * (2 forward + C - 1
    backward), targeted 2 forward + 1 backward; `search` forward passes a run where a point was found outside the ball; 1
    forward at the start. Misclassified images cost that alone.

    Differences from the authors' code in AutoAttack: the final search (the paper's) is made, with the crossing of
    the line through the two margins pushed to the adversarial side by a hundredth of what is left, and a margin within the
    rounding of the logits, which turns with the size of a batch, counts as none;
    restarts know the best point of all earlier runs, other targets' included; perturbations are kept as differences from
    the image, so that pixels outside a mask stay bit-identical.

    Raises:
        InputError: a norm that is not linf, l2 or l1; a ball that is not per example; what `prepared` refuses.
        GradientError: no image has a usable gradient, so the attack would have done nothing.

    Checked by tests/attacks/test_fab.py (a linear model's minimum norm to 1e-6, counted passes) and
    tests/attacks/test_contract.py.
    """

    labels_are_targets: ClassVar[bool] = False  # `targeted` says which boundaries are walked to, not what y means
    norms: ClassVar[tuple[str, ...]] = NORMS

    targeted: bool = False
    targets: int = 9
    steps: int = 100
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    search: int = 3
    stop: bool = False

    def __post_init__(self) -> None:
        for name, least in (("targets", 1), ("steps", 1), ("restarts", 1), ("search", 0)):
            require_count(name, getattr(self, name), least)
        for name, low, high in (("alpha_max", 0.0, 1.0), ("eta", 1.0, math.inf), ("beta", 0.0, 1.0)):
            if not low <= getattr(self, name) <= high:
                found = str(getattr(self, name))
                raise InputError(name, f"a number from {low:g} to {high:g}", found, "The paper uses .1, 1.05 and .9.")

    def until_fooled(self) -> "FABAttack":
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
        """Attack a batch; see `Attack` for the arguments. Random restarts are drawn from the generator, nothing else."""
        x, y, ball = prepared(x, y, within, self.norms)
        if not len(x):
            none = torch.zeros(0, dtype=torch.bool, device=x.device)
            return Perturbation(x, x.clone(), x, None, x.new_zeros(0), Calls(), Flags(none, none, none))
        counted = Counted(model)
        with apart(x, generator):
            radius = torch.as_tensor(ball.reach(x), device=x.device).to(x).flatten().expand(len(x))
            walk = self._walked(counted, x, y, ball, radius, generator, radius if self.stop else None)
            hit = walk.best.size <= radius
            delta = torch.where(hit[:, None], walk.best.delta, 0.0).unflatten(1, walk.shape)
            point, size = ball.clip(x + delta), ball.size(delta, x)
        return Perturbation(x, delta, point, None, size, counted.calls, walk.flags(hit))

    def _walked(
        self, model: Counted, x: Tensor, y: Tensor, ball: Ball, reach: Tensor, generator: Any, radius: Tensor | None
    ) -> Walk:
        """All runs: the restarts for each target, of the images that are not finished."""
        walk = Walk(model, x, y, ball, Pace(self.steps, self.alpha_max, self.eta, self.beta, self.search), radius)
        targets = walk.ranks[:, : self.targets] if self.targeted else None
        count = 1 if targets is None else targets.shape[1]
        plan = [(k, restart) for k in range(count) for restart in range(self.restarts)]
        while plan and len(rows := walk.open_rows()):
            width = abreast(x[0], len(rows)) if self.restarts == 1 else 1  # a restart knows what was found before it
            now, plan = plan[:width], plan[width:]
            towards = None if targets is None else targets[rows][:, [k for k, _ in now]].T
            walk.run(rows, towards, walk.start(reach, generator) if now[0][1] else None)
            if radius is not None or self.restarts > 1:
                walk.close_in(walk.open_rows())
        if radius is None and self.restarts == 1:
            walk.close_in(walk.open_rows())
        return walk


def fab(
    model: Any,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    norm: Literal["linf", "l2", "l1"] = "linf",
    targeted: bool = False,
    targets: int = 9,
    steps: int = 100,
    restarts: int = 1,
    reach: float | None = None,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    search: int = 3,
    box: tuple[float, float] | None = (0.0, 1.0),
    mask: Tensor | None = None,
    seed: int = 0,
) -> Minimal:
    """The nearest adversarial points that FAB finds, in one line: ``fab(model, x, y, norm="l2").norms``.

    Args:
        model: from inputs in the box to logits; left as it is.
        x, y: images and their true classes.
        norm: that is minimised: "linf", "l2" or "l1".
        reach: random restarts begin at most half of this away; None: .3, 1 and 5 for linf, l2 and l1, as in AutoAttack's code.
        box: the range of valid inputs.
        mask: nonzero where an image may change.
        seed: of the random restarts.
        targeted, targets, steps, restarts, alpha_max, eta, beta, search: see `FABAttack`.

    Cost and errors: `FABAttack`; without restarts, one final search at the end. Checked by tests/attacks/test_fab.py.
    """
    attack = FABAttack(targeted, targets, steps, restarts, alpha_max, eta, beta, search)
    x, y, ball = prepared(x, y, Ball(norm, REACH.get(norm, 0.0) if reach is None else reach, box=box, mask=mask), NORMS)
    counted, generator = Counted(model), make_generator(seed, "fab")
    if not len(x):
        return Minimal(x, x.new_zeros(0), torch.zeros(0, dtype=torch.bool, device=x.device), Calls())
    with apart(x, generator):
        cap = x.new_full((len(x),), float(ball.radius))
        walk = attack._walked(counted, x, y, ball, cap, generator, None)
        found = torch.isfinite(walk.best.size)
        point = ball.clip(x + torch.where(found[:, None], walk.best.delta, 0.0).unflatten(1, walk.shape))
    assert isinstance(point, Tensor)
    return Minimal(point, walk.best.size, found, counted.calls)
