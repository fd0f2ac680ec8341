"""Average-case flatness of the robust loss (Stutz, Hein & Schiele 2021, section 3.2)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import PGD, Ball, Calls, GradientError, InputError, at, generator
from ..core.ball import Law
from ..core.measure import Measured, measure
from ..stats import Mean, mean
from .layers import layer_weights, layers_ball

XI_AVERAGE = 0.5
"""The paper's radius, relative to each layer's norm."""


@dataclass(frozen=True)
class AverageFlatness:
    """E_nu[RLoss(w + nu)] - RLoss(w); larger is sharper.

    Args:
        value: the mean over the draws of nu, with its 95 % Student interval; the images are fixed, so the interval is
            about the draws alone.
        reference: RLoss(w), the mean robust loss at the weights themselves.
        draws: RLoss(w + nu) - RLoss(w) for each draw.
        examples: how many images.
        calls: passes spent, in examples.
    """

    value: Mean
    reference: float
    draws: tuple[float, ...]
    examples: int
    calls: Calls


def average(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    seed: int,
    xi: float = XI_AVERAGE,
    within: Ball = Ball("linf", 8 / 255, box=(0.0, 1.0)),
    by: PGD = PGD(20, step=0.007 * 255 / 8),
    samples: int = 10,
    reference_restarts: int = 10,
    law: Law = "ball",
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> AverageFlatness:
    """Average-case robust flatness, with the inputs attacked anew for every draw of the weights.

    nu is drawn from the balls ||nu_l|| <= xi ||w_l||, one for each convolution's and linear layer's weight and one for
    each of their biases (and for any other parameter, such as a ViT's positions); normalisation layers stay. RLoss is the
    mean cross-entropy at the attacked inputs.

    Args:
        model: in eval mode; it is not changed.
        x, y: the images; the paper takes the first 1000 of the test set.
        seed: of the draws and of the attacks' starts. The k-th draw is the same direction for every model of the same
            architecture and seed (common random numbers), and so are the starts.
        xi: .5, the paper's.
        within, by: the inputs' ball and attack; eps 8/255 and PGD-20 with step .007, the paper's.
        samples: draws of nu; 10, the paper's.
        reference_restarts: of the attack at w itself, 10 in the paper against 1 at w + nu, which biases flatness down; 1
            gives both the same budget.
        law: "ball", uniform in the ball, the paper's definition; "sphere", which the authors' code draws. In these
            dimensions they are nearly the same.
        progress: called with (draws done, draws).

    Raises:
        InputError: a model in train mode, fewer than one sample, an xi below 0, labels and images that do not match.
        GradientError: the attack saw no gradient for any image at w, though the predictions differ: its robust loss would
            be the clean one. (A constant predictor has no gradient either; its robust loss is the clean loss, rightly.)

    Cost: about samples * (steps + 2) forward and samples * steps backward passes, and the reference's. Memory does not grow
    with the samples. Checked by tests/flatness/test_average.py (the closed form of a linear model; scale invariance).
    """
    _require(model, x, y, xi, samples)
    origin, ball = layer_weights(model), layers_ball(xi)

    def robust(function: Callable[..., Tensor], attack: PGD, draw: int) -> Measured:
        starts = generator(seed, "flatness starts", draw)
        return measure(function, x, y, within, by=attack, generator=starts, batch_size=batch_size)

    at_w = robust(at(model), replace(by, restarts=reference_restarts), -1)
    _require_gradients(at_w, model, x[:batch_size])
    base, calls = _mean(at_w), at_w.calls
    draws: list[float] = []
    for k in range(samples):
        nu: Any = ball.sample(origin, generator(seed, "flatness", k), law)
        moved = {name: w + nu[name] for name, w in origin.items()}
        found = robust(at(model, moved), by, k)
        draws.append(_mean(found) - base)
        calls += found.calls
        if progress is not None:
            progress(k + 1, samples)
    return AverageFlatness(mean(draws), base, tuple(draws), len(x), calls)


def _mean(found: Measured) -> float:
    return float(found.robust_loss.double().mean())


def _require_gradients(found: Measured, model: nn.Module, x: Tensor) -> None:
    """Raise if no image moved under the attack for want of a gradient, and that not because the model is constant."""
    if not bool(found.silent.all()) or not torch.equal(found.loss, found.robust_loss):
        return
    with torch.no_grad():
        logits = at(model)(x)
    if not bool((logits == logits[:1]).all()):
        remedy = "Look for a quantised or saturated output; the flatness of a masked model cannot be measured so."
        raise GradientError("model", "a gradient of the loss by the images", "none for any image", remedy)


def _require(model: nn.Module, x: Tensor, y: Tensor, xi: float, samples: int) -> None:
    if any(module.training for module in model.modules()):
        raise InputError("model", "a model in eval mode", "train mode", "Call model.eval() first.")
    if len(x) == 0 or len(x) != len(y):
        raise InputError("x, y", "as many labels as images, one or more", f"{len(x)} and {len(y)}", "Pair them.")
    if samples < 1 or not xi >= 0:
        raise InputError("samples, xi", "samples >= 1 and xi >= 0", f"{samples} and {xi}", "The paper uses 10 and 0.5.")
