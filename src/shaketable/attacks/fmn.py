"""FMN: fast minimum-norm attacks through adaptive norm constraints (Pintor et al. 2021)."""

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.ball import Ball, Norm
from ..core.errors import InputError
from ..core.moves import finite
from ..core.norms import norm as norm_of
from .minimal import (
    Counted,
    Minimal,
    Nearest,
    apart,
    margin_weights,
    margins,
    prepared,
    require_count,
    require_slope,
)

NORMS = ("linf", "l2", "l1", "l0")
DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


@torch.inference_mode(False)  # a gradient needs tensors that were made outside of it
def fmn(
    model: Any,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    norm: Norm = "linf",
    targeted: bool = False,
    steps: int = 100,
    step: tuple[float, float] = (1.0, 0.01),
    gamma: tuple[float, float] = (0.05, 0.001),
    box: tuple[float, float] | None = (0.0, 1.0),
    mask: Tensor | None = None,
) -> Minimal:
    """Near adversarial points in linf, l2, l1 or l0: gradient steps within a ball whose radius follows the boundary.

    Algorithm 1 of the paper. While the margin is m < 0 and no adversarial point is known, the radius is what the linearised
    boundary asks for, |delta| + |m| / |gradient|_dual (l0: one entry more); later it grows by 1 + gamma where the last point
    was not adversarial, and shrinks by 1 - gamma where it was, never above the best norm (l0: by one entry at least). Then
    delta moves along the gradient of the margin, of Euclidean length `step`, and is projected into ball and box.

    Args:
        model: from inputs in the box to logits; left as it is.
        x, y: images and their true classes, or the classes to reach if `targeted`.
        norm: that is minimised; for l0 the number of entries, each channel's counted by itself.
        steps: 100, Foolbox's. The authors' code has 10, the paper goes up to 1000.
        step, gamma: first and last, annealed by a cosine; 1 to .01 and .05 to .001, those of the authors' code and of
            Foolbox. In linf a step of length 1 moves each of d entries by about 1 / sqrt(d) only, so the authors advise a
            longer first one there, and took one in the paper.
        box: the range of valid inputs.
        mask: nonzero where an image may change.

    Differences from the paper: it starts from the image alone, not from a given adversarial point; while none is known the
    radius is 1 + gamma times what the linearised boundary asks for, since that alone may fall short of it by rounding, for
    ever; entries of a gradient that are not finite count as 0. The authors' code also grows the radius by 1 + gamma in l0 while
    none is known, and never beyond the distance of the farthest corner of the box. Nothing is random.

    Cost: 1 forward pass for each image; for each that needs a perturbation `steps` forward and steps - 1 backward passes.

    Raises:
        InputError: what `prepared` refuses; settings out of their range.
        GradientError: no image has a usable gradient.

    Checked by tests/attacks/test_minimum_norm.py: a linear model's minimum norm within 1 % (l0: at most one entry more).
    """
    require_count("steps", steps, 1)
    for name, (first, last), top in (("step", step, math.inf), ("gamma", gamma, 1.0)):
        if not (0 < first < top and 0 < last < top):
            raise InputError(name, f"two numbers between 0 and {top:g}", str((first, last)), "Give (first, last).")
    x, y, ball = prepared(x, y, Ball(norm, 0.0, box=box, mask=mask), NORMS)
    counted, nearest = Counted(model), Nearest(x, norm)
    with apart(x):
        rows = nearest.begin(counted, y, targeted=targeted)
        x, y, ball = x[rows], y[rows], ball.rows(rows)
        delta, radius = torch.zeros_like(x), x.new_zeros(len(x))
        for k in range(steps if len(rows) else 0):
            points, logits = counted.sloped(ball.clip(x + delta))  # pyright: ignore
            margin = margins(logits.detach(), y, targeted=targeted)
            size = nearest.keep(rows, points.detach(), margin > 0)
            if k == steps - 1:
                break
            slope = counted.gradient(logits, points, margin_weights(logits, y, targeted=targeted))
            if k == 0:
                require_slope(slope)
            share = (1 + math.cos(math.pi * k / steps)) / 2
            grow, move = (last + (first - last) * share for first, last in (gamma, step))
            slope = finite(slope) if ball.mask is None else torch.where(ball.mask, finite(slope), 0.0)  # pyright: ignore
            radius = _radius(norm, radius, grow, margin, size, nearest.norms[rows], slope.flatten(1))
            along = replace(ball, norm="l2").steepest(slope, x, delta)
            delta = replace(ball, radius=radius).project(delta + move * along, x)  # pyright: ignore
    return nearest.result(counted)


def _radius(
    norm: str, radius: Tensor, gamma: float, margin: Tensor, size: Tensor, best: Tensor, slope: Tensor
) -> Tensor:
    """The radius of the next ball, of each image: the paper's epsilon step."""
    won, known = margin > 0, torch.isfinite(best)
    if norm == "l0":
        grown = torch.maximum((radius * (1 + gamma)).floor(), radius + 1)
        shrunk = torch.minimum((radius * (1 - gamma)).floor(), radius - 1)
        guess = size + 1
    else:
        grown, shrunk = radius * (1 + gamma), radius * (1 - gamma)
        needed = margin.abs() / norm_of(DUAL[norm], slope)
        guess = (1 + gamma) * torch.where(torch.isfinite(needed), size + needed, radius)
    grown = torch.where(known, grown, guess)
    return torch.where(won, torch.minimum(shrunk, best), grown).clamp(min=0)
