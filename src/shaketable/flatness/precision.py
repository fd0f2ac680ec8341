"""Average-case flatness to a stated standard error, of one model or as the difference of two, at few passes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import PGD, Ball, Calls
from ..core.ball import Law
from ..stats import Mean
from .attack_levels import Draws, Settings, Side, cost
from .average import XI_AVERAGE
from .loss_at import ATTACK, INPUTS, LossAt, require
from .multilevel import Plan, require_affordable, sample

CHEAP = (PGD(2, step=1.0),)
"""PGD-2 with steps of the whole radius: of those tried, what spares most passes beside PGD-20, for any number of images.

Near behind: PGD-3 with .7 and PGD-4 with .5. Worse: PGD-1; the first steps of PGD-20 itself; starts at the worst points of
w, which meet other maxima (correlation .77 to .82 an image where PGD-2 has .85); the clean loss (.35); three levels.
"""


@dataclass(frozen=True)
class Estimated:
    """E_nu[RLoss(w + nu)] - RLoss(w), or the difference of two models' (the first one's minus the second one's).

    Args:
        value: with its 95 % Student interval, over the draws (the images are fixed); `n` counts draws at the cheapest level.
        standard_error: what the draws show. The plan's holds over repeats; that of one run differs by a tenth or so.
        asked: the standard error that was asked for.
        reference: RLoss(w), or the difference of the two.
        plan: the draws at each level and their passes, as decided by the pilot.
        examples: how many images.
        calls: passes spent on the draws, in examples.
        reference_calls: passes spent at w itself.
        single: the variance of the rise in one independent draw of nu for all images, one sign, the dear attack: the paper's
            protocol. It is found from few images at few nus, so its interval is wide where draws are few, and may hold 0.
            Of a difference, the sum of the two models'.
        single_passes: forward and backward passes of such a draw, n (2 steps + 1); of a difference, of one for each model.
    """

    value: Mean
    standard_error: float
    asked: float
    reference: float
    plan: Plan
    examples: int
    calls: Calls
    reference_calls: Calls
    single: Mean
    single_passes: int

    @property
    def reached(self) -> bool:
        """Whether the standard error that was asked for was planned for, without running into `most`."""
        return not self.plan.limited

    @property
    def independent_passes(self) -> tuple[float, float]:
        """What independent draws would take to this standard error, by the interval of `single`; one draw at least."""
        squared = self.standard_error**2
        low, high = (max(1.0, end / squared if squared else 1.0) for end in (self.single.low, self.single.high))
        return low * self.single_passes, high * self.single_passes


def estimate(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    seed: int,
    standard_error: float,
    xi: float | Any = XI_AVERAGE,
    within: Ball = INPUTS,
    by: PGD = ATTACK,
    levels: tuple[PGD, ...] = CHEAP,
    images: int = 16,
    antithetic: bool = True,
    pilot: int = 16,
    law: Law = "ball",
    reference_restarts: int = 10,
    batch_size: int = 64,
    most: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Estimated:
    """What `average` measures (Stutz et al. 2021), to a stated standard error, at a fraction of the passes.

    Four things spare passes, and leave the expectation as it is:

    - Few images a draw. The draws of nu, not the images, set the error: half of the images at the same nu vary nearly as
      all of them do. So each nu is met by a few images, and a pass over the images meets many nus. They are drawn one from
      each of `images` blocks of the images in the order of their loss at w, each block weighted by its size.
    - Pairs nu, -nu: what is odd in nu cancels, for each image.
    - A cheaper attack, made at many draws, corrected by the dear one at few: see `multilevel.sample`. The correction is
      sampled, so the cheap attack's weakness (PGD-2 finds .2 less loss) leaves no bias.
    - The rise of each image's own loss is averaged, by each level's own loss at w.

    Args:
        model, x, y, xi, within, by, law, reference_restarts: see `average`.
        seed: the k-th draw is the same direction, from the same starts, as that of `average`: with all images, without pairs
            and without levels they are the same draws.
        standard_error: of the value over the draws of nu (and of images and starts), the images fixed.
        levels: cheaper attacks, cheapest first; () for none.
        images: of one draw; 2 or more (all, if there are fewer). The fewer, the fewer passes: on
            the benchmark's AT-AWP net, of 250 images, draws of all images take 17 times as many as draws of 16, and draws of 64
            images 4 to 5 times. Batches of so few images use an accelerator badly.
        pilot: draws at all levels, a multiple of 4, from which the plan is made.
        most: forward and backward passes at most, together, without the reference; None: those of 200 draws as the
            paper's. If they do not suffice, the result is what they gave: `reached` is False, `standard_error` says.
        progress: called with (draws done, draws planned).

    Differences from the paper: it draws 10 independent nus and states no error.

    Raises:
        InputError: what `average` refuses; a standard error not above 0, fewer than 2 images a draw, levels that do not get
            dearer, `most` below the pilot's passes.
        GradientError: see `average`.

    Cost: the reference's, and the plan's `cost`. A forward and a backward pass count 1 each: the backward pass goes to the
    images alone, and costs about as much as a forward pass. A draw is 2 * images * (steps + 2 forward, steps backward).
    At the same standard error that is a small part of what independent draws take: see benchmarks/flatness_precision.py.
    Memory: one batch of a draw's images, one copy of the weights moved, and numbers.
    Checked by tests/flatness/test_precision.py (a known expectation, the draws of `average`, passes), and by the benchmark.
    """
    settings = Settings(seed, xi, law, (*levels, by), images, antithetic, reference_restarts)
    return _estimate(
        [LossAt(model, x, y, "robust", within, by, None, batch_size)], settings, standard_error, pilot, most, progress
    )


def difference(
    a: nn.Module,
    b: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    seed: int,
    standard_error: float,
    xi: float | Any = XI_AVERAGE,
    within: Ball = INPUTS,
    by: PGD = ATTACK,
    levels: tuple[PGD, ...] = CHEAP,
    images: int = 16,
    antithetic: bool = True,
    pilot: int = 16,
    law: Law = "ball",
    reference_restarts: int = 10,
    batch_size: int = 64,
    most: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Estimated:
    """The average-case flatness of a minus that of b, with common random numbers: the same draws for both.

    A draw is the same direction nu, scaled by each model's own norms, the same images and the same starts of the attacks.
    For two models of the same architecture that makes the difference vary less than either; for others it is no
    worse than independent draws, and unbiased all the same.

    Args:
        a, b: two models for the same images, in eval mode.
        others: see `estimate`.

    Cost: twice that of `estimate` for each draw, and both references. Checked by tests/flatness/test_precision.py.
    """
    settings = Settings(seed, xi, law, (*levels, by), images, antithetic, reference_restarts)
    sides = [LossAt(model, x, y, "robust", within, by, None, batch_size) for model in (a, b)]
    return _estimate(sides, settings, standard_error, pilot, most, progress)


def _estimate(
    models: list[LossAt],
    settings: Settings,
    standard_error: float,
    pilot: int,
    most: int | None,
    progress: Callable[[int, int], None] | None,
) -> Estimated:
    for of in models:
        require(of.model, of.x, of.y, of.loss)
    n, dear = len(models[0].x), settings.attacks[-1]
    runs = min(settings.images, n) * len(models) * (2 if settings.antithetic else 1)
    passes = [runs * cost(attack) for attack in settings.attacks]
    single = n * (2 * dear.steps * dear.restarts + 1) * len(models)
    most = 200 * single if most is None else most
    require_affordable(standard_error, pilot, most, passes)
    draws = Draws([Side(of, settings) for of in models], settings)
    found = sample(draws, passes, standard_error=standard_error, pilot=pilot, most=most, progress=progress)
    base = [float(side.at_w[-1].mean()) for side in draws.sides]
    spent = reduce(Calls.__add__, (side.calls for side in draws.sides))
    return Estimated(
        found.value, found.standard_error, standard_error, base[0] - math.fsum(base[1:]), found.plan, n, draws.calls,
        spent, draws.single(), single,
    )  # fmt: skip
