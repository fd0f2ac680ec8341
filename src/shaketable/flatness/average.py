"""Average-case flatness of the robust loss (Stutz, Hein & Schiele 2021, section 3.2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import PGD, Ball, InputError, generator
from ..core.ball import Law
from ..core.measure import Measured
from ..core.places import Select
from ..stats import Mean, mean
from .loss_at import (
    ATTACK,
    INPUTS,
    Logits,
    Loss,
    LossAt,
    joined,
    one_of,
    origin_and_ball,
    reference,
    require,
    require_finite,
)
from .presets import Nu
from .result import Flatness, Profile

XI_AVERAGE = 0.5
"""The paper's radius, relative to each layer's norm."""

AverageFlatness = Flatness
"""What `average` returns."""


@dataclass(frozen=True)
class Sampling:
    """Which draws of nu a mean is taken over; the options of `average`."""

    samples: int
    law: Law = "ball"
    nu: Nu = "all"
    antithetic: bool = False

    def __post_init__(self) -> None:
        one_of("law", self.law, get_args(Law))
        one_of("nu", self.nu, get_args(Nu))
        if self.antithetic and self.samples % 2:
            raise InputError("samples", "an even number for pairs nu, -nu", str(self.samples), "Draw one more.")


def average(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    seed: int,
    xi: float | Any = XI_AVERAGE,
    within: Ball = INPUTS,
    by: PGD = ATTACK,
    samples: int = 10,
    reference_restarts: int = 10,
    law: Law = "ball",
    loss: Loss = "robust",
    nu: Nu = "all",
    antithetic: bool = False,
    select: Select | None = None,
    logits: Logits | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Flatness:
    """Average-case flatness, E_nu[RLoss(w + nu)] - RLoss(w), with the inputs attacked anew for every draw of the weights.

    nu is drawn from the balls ||nu_l|| <= xi ||w_l||, one for each convolution's and linear layer's weight and one for
    each of their biases (and for any other parameter, such as a ViT's positions); normalisation layers stay. RLoss is the
    mean cross-entropy at the attacked inputs.

    Args:
        model: in eval mode; it is not changed.
        x, y: the images; the paper takes the first 1000 of the test set.
        seed: of the draws and of the attacks' starts. The k-th draw is the same direction for every model of the same
            architecture and seed (common random numbers), and so are the starts.
        xi: .5, the paper's; or another ball of the weights, or anything with `sample(origin, generator, law)`.
        within, by: the inputs' ball and attack; eps 8/255 and PGD-20 with step .007, the paper's.
        samples: draws of nu; 10, the paper's.
        reference_restarts: of the attack at w itself, 10 in the paper against 1 at w + nu, which biases flatness down; 1
            gives both the same budget.
        law: "ball", uniform in the ball, the paper's definition; "sphere", which the authors' code draws. In these
            dimensions they are nearly the same. "radius", a uniform length, is about half as long.
        loss: "robust"; or "clean", the cross-entropy at the images themselves, without an attack (the paper's "CE").
        nu: "all", one nu for all images, as in the authors' code; "batch", each batch its own, as in the paper. Both have
            the same expectation; with "batch" a draw averages over as many nus as there are batches, so it varies less.
        antithetic: draw pairs nu, -nu (`samples` must be even). The value is then the mean over pairs, and its interval
            counts pairs; `draws` has both of each.
        select: which weights move, as `core.weights` takes it; None: those of every layer but normalisation layers.
        logits: what is done to the logits before the loss is taken, by the attack as well.
        batch_size: images a pass; it is part of the result, since it orders the attacks' starts.
        progress: called with (draws done, draws).

    Returns: `value` is the mean over the draws with its 95 % Student interval. The images are fixed, so the interval is about
    the draws alone. `facts` has "clean", the mean rise of the clean loss at the same nus, which costs nothing more.

    Raises:
        InputError: a model in train mode, fewer than one sample, an xi below 0, labels and images that do not match, a loss
            that is not finite.
        GradientError: the attack saw no gradient for any image at w, though the predictions differ: its robust loss would
            be the clean one. (A constant predictor has no gradient either; its robust loss is the clean loss, rightly.)

    Cost: samples * (steps + 2) forward and samples * steps backward passes, and the reference's, restarts * (steps + 1) + 2 and
    restarts * steps: 432 and 400 an image with the defaults. With loss="clean" samples + 1 forward passes. Memory does not
    grow with the samples. Checked by tests/flatness/test_average.py (the closed form of a linear model; scale invariance)
    and test_quadratic.py (the trace formula).
    """
    of = LossAt(model, x, y, loss, within, by, logits, batch_size)
    how = _require(of, xi, samples, law, nu, antithetic)
    base, facts = reference(of, seed, reference_restarts)
    origin, ball = origin_and_ball(model, xi, select)
    return _over_draws(of, (origin, ball), base, facts, how, seed, progress or _silent)


def profile(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    seed: int,
    xi: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    within: Ball = INPUTS,
    by: PGD = ATTACK,
    samples: int = 10,
    reference_restarts: int = 10,
    law: Law = "ball",
    loss: Loss = "robust",
    nu: Nu = "all",
    antithetic: bool = False,
    select: Select | None = None,
    logits: Logits | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Profile:
    """Average-case flatness at several radii, which share the reference, the directions of nu and the attacks' starts.

    Args:
        xi: the radii; the paper's ablation.
        progress: called with (draws done, draws at all radii).
        others: see `average`. Each result is, bit for bit, what `average` gives for its radius.

    Cost: that of `average` for each radius, but for the reference, which is measured once.
    Checked by tests/flatness/test_profile.py.
    """
    of = LossAt(model, x, y, loss, within, by, logits, batch_size)
    if not len(xi):
        raise InputError("xi", "one radius or more", "none", "The paper's are .25, .5, .75 and 1.")
    ways = [_require(of, radius, samples, law, nu, antithetic) for radius in xi]
    base, facts = reference(of, seed, reference_restarts)
    results: list[Flatness] = []
    for k, (radius, how) in enumerate(zip(xi, ways, strict=True)):
        place = origin_and_ball(model, radius, select)

        def tick(done: int, of_all: int, k: int = k) -> None:
            if progress is not None:
                progress(k * of_all + done, len(xi) * of_all)

        results.append(_over_draws(of, place, base, facts, how, seed, tick))
    return Profile(tuple(float(radius) for radius in xi), tuple(results), base.calls)


def drawn_losses(of: LossAt, place: tuple[dict[str, Tensor], Any], how: Sampling, seed: int, k: int) -> Measured:
    """The losses at the k-th draw of nu, every image attacked anew.

    Args:
        place: the weights and the ball that they are moved in, from `origin_and_ball`.

    The draw depends on the seed, on k (with antithetic pairs on k // 2) and with nu="batch" on the batch; the first batch
    has the nu that all have with nu="all".
    """
    origin, ball = place
    starts = generator(seed, "flatness starts", k)
    index, sign = (k // 2, 1 - 2 * (k % 2)) if how.antithetic else (k, 1)
    found: list[Measured] = []
    for batch, part in enumerate(of.batches() if how.nu == "batch" else [of]):
        source = generator(seed, "flatness", index, *([batch] if batch else []))
        nu = ball.sample(origin, source, how.law)
        found.append(part({name: w + sign * nu[name] for name, w in origin.items()}, starts))
    return joined(found)


def _over_draws(
    of: LossAt,
    place: tuple[dict[str, Tensor], Any],
    base: Measured,
    facts: dict[str, float],
    how: Sampling,
    seed: int,
    progress: Callable[[int, int], None],
) -> Flatness:
    """The mean rise over the draws; only sums are kept of them."""
    at_w = base.robust_loss.double()
    total, clean, calls = torch.zeros_like(at_w), 0.0, base.calls
    draws: list[float] = []
    for k in range(how.samples):
        found = drawn_losses(of, place, how, seed, k)
        require_finite(found.robust_loss, "at moved weights")
        draws.append(float(found.robust_loss.double().mean()) - float(at_w.mean()))
        total += found.robust_loss.double() - at_w
        clean += float((found.loss.double() - base.loss.double()).mean()) / how.samples
        calls += found.calls
        progress(k + 1, how.samples)
    radius = getattr(place[1], "radius", None)
    facts = facts | ({"xi": float(radius)} if isinstance(radius, Real) else {})
    facts = facts | ({"clean": clean} if of.loss == "robust" else {})
    return Flatness(
        f"{of.loss} average", _mean(draws, how.antithetic), float(at_w.mean()),
        (total / how.samples).cpu(), base.correct.cpu(), tuple(draws), len(of.x), calls, facts,
    )  # fmt: skip


def _mean(draws: list[float], antithetic: bool) -> Mean:
    """Over draws, or over pairs of them, which are what was drawn independently."""
    if not antithetic:
        return mean(draws)
    return mean([(a + b) / 2 for a, b in zip(draws[::2], draws[1::2], strict=True)])


def _require(of: LossAt, xi: Any, samples: int, law: Law, nu: Nu, antithetic: bool) -> Sampling:
    require(of.model, of.x, of.y, of.loss)
    if not isinstance(samples, int) or samples < 1 or (isinstance(xi, Real) and not float(xi) >= 0):
        raise InputError("samples, xi", "samples >= 1 and xi >= 0", f"{samples} and {xi}", "The paper uses 10 and 0.5.")
    return Sampling(samples, law, nu, antithetic)


def _silent(_done: int, _of: int) -> None:
    """Reports nothing."""
