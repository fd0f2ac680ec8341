"""DDN: decoupling direction and norm for gradient-based l2 attacks (Rony et al. 2019)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..core.ball import Ball
from ..core.errors import InputError
from ..core.moves import finite
from .minimal import Counted, Minimal, Nearest, apart, prepared, require_count, require_slope, won


@torch.inference_mode(False)  # a gradient needs tensors that were made outside of it
def ddn(
    model: Any,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    targeted: bool = False,
    steps: int = 100,
    radius: float = 1.0,
    gamma: float = 0.05,
    step: float = 1.0,
    levels: int | None = None,
    box: tuple[float, float] | None = (0.0, 1.0),
    mask: Tensor | None = None,
) -> Minimal:
    """Near adversarial points in l2: the gradient says where to go, whether the model is fooled says how far.

    Algorithm 1 of the paper. Each step moves along the normalised gradient of the cross-entropy, by a length annealed by a
    cosine from `step` to a hundredth of it; then the perturbation is put on a sphere whose radius shrinks by the factor
    1 - gamma where the last point was adversarial, and grows by 1 + gamma where it was not.

    Args:
        model: from inputs in the box to logits; left as it is.
        x, y: images and their true classes, or the classes to reach if `targeted`.
        steps: 100; the paper uses 100, 300 and 1000.
        radius, gamma, step: 1, .05 and 1, the paper's, in the unit of [0, 1] images.
        levels: round the points to so many levels of the box; 256 in the paper and its code, so that its images can be saved.
            Here None, no rounding, so that the norm is that of the function and not of a file.
        box: the range of valid inputs.
        mask: nonzero where an image may change.

    Differences from the paper: the rounding; an entry of a gradient that is not finite counts as 0, and an image without a
    gradient stays where it is (the authors' code then draws a random direction). The authors' code also stops the radius at
    the distance of the farthest corner of the box. Nothing is random.

    Cost: 1 forward pass for each image; for each that needs a perturbation `steps` forward and steps - 1 backward passes.

    Raises:
        InputError: what `prepared` refuses; `levels` without a box; settings out of their range.
        GradientError: no image has a usable gradient.

    Checked by tests/attacks/test_minimum_norm.py: a linear model's minimum norm within 3 %.
    """
    _require_settings(steps, radius, gamma, step, levels, box)
    x, y, ball = prepared(x, y, Ball("l2", 0.0, box=box, mask=mask), ("l2",))
    counted, nearest = Counted(model), Nearest(x, "l2")
    with apart(x):
        rows = nearest.begin(counted, y, targeted=targeted)
        x, y, ball = x[rows], y[rows], ball.rows(rows)
        delta, length = torch.zeros_like(x), x.new_full((len(x), *[1] * (x.dim() - 1)), radius)
        for k in range(steps if len(rows) else 0):
            points, logits = counted.sloped(_rounded(ball.clip(x + delta), x, ball, levels))
            hit = won(logits, y, targeted=targeted)
            nearest.keep(rows, points.detach(), hit)
            if k == steps - 1:
                break
            weights = logits.softmax(1) - F.one_hot(y, logits.shape[1])
            slope = counted.gradient(logits, points, -weights if targeted else weights)
            if k == 0:
                require_slope(slope)
            annealed = step * (0.01 + 0.99 * (1 + math.cos(math.pi * k / steps)) / 2)
            delta = (points.detach() - x) + annealed * ball.steepest(finite(slope), x, delta)  # pyright: ignore
            length = length * torch.where(hit, 1 - gamma, 1 + gamma).to(x).reshape(length.shape)
            size = torch.linalg.vector_norm(delta, dim=tuple(range(1, x.dim())), keepdim=True)
            delta = delta * torch.where(size > 0, length / size, 0.0)
    return nearest.result(counted)


def _require_settings(steps: int, radius: float, gamma: float, step: float, levels: Any, box: Any) -> None:
    require_count("steps", steps, 1)
    for name, value in (("radius", radius), ("step", step)):
        if not 0 < value < math.inf:
            raise InputError(name, "a number > 0", str(value), "The paper uses 1.")
    if not 0 < gamma < 1:
        raise InputError("gamma", "a number between 0 and 1", str(gamma), "The paper uses .05.")
    if levels is not None:
        require_count("levels", levels, 2)
        if box is None:
            raise InputError("box", "a box, since points are rounded to levels of it", "None", "Give (0, 1).")


def _rounded(point: Any, x: Tensor, ball: Ball, levels: int | None) -> Tensor:
    """The point on the levels of the box, where it may change."""
    if levels is None or ball.box is None:
        return point
    low, high = ball.box
    width = (high - low) / (levels - 1)
    rounded = (low + ((point - low) / width).round() * width).clamp(low, high)
    return rounded if ball.mask is None else torch.where(ball.mask, rounded, x)  # pyright: ignore
