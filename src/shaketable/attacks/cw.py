"""The attack of Carlini & Wagner (2017) in l2."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.ball import Ball
from ..core.errors import InputError
from ..core.moves import finite
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

NEAR_ONE = 0.999999  # an entry on the wall of the box would have an infinite tanh^-1


@torch.inference_mode(False)  # a gradient needs tensors that were made outside of it
def cw(
    model: Any,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    targeted: bool = False,
    confidence: float = 0.0,
    search: int = 9,
    steps: int = 1000,
    rate: float = 0.01,
    constant: float = 1e-3,
    abort_early: bool = True,
    box: tuple[float, float] = (0.0, 1.0),
    mask: Tensor | None = None,
) -> Minimal:
    """Near adversarial points in l2: |z - x|^2 + c f(z) is minimised by Adam, for a c that is searched for each image.

    Sections V and VI.A of the paper: z = box(tanh(w)) needs no clipping; f is the margin of the true class over the best
    other (targeted: of the best other over the target), but at least -confidence. c starts from `constant`, is multiplied by
    10 until an adversarial point is found, and then bisected between the largest c that failed and the smallest that did not,
    as in the authors' code.

    Args:
        model: from inputs in the box to logits; left as it is.
        x, y: images and their true classes, or the classes to reach if `targeted`.
        confidence: kappa, the margin that an adversarial point must have; 0.
        search: values of c that are tried; 9, the authors' code.
        steps: of Adam for each c; 1000, a tenth of the 10000 in the authors' code, which may abort earlier.
        rate, constant: .01 and .001, the authors' code.
        abort_early: end a search when in a tenth of the steps no image's objective fell by a ten thousandth. The authors'
            code looks at the sum over its batch, which by default is one image.
        box: the range of valid inputs, finite.
        mask: nonzero where an image may change.

    Differences from the authors' code: distances are those to the image itself, not to the image that went through tanh and
    back; pixels outside a mask are put back bit for bit; with ten values of c or more, its last run takes the smallest c that
    did not fail once again. Nothing is random: the paper's random starting points are in neither.

    Cost: 1 forward pass for each image; for each that needs a perturbation at most search * (steps forward, steps - 1
    backward) passes.

    Raises:
        InputError: what `prepared` refuses; a box without ends; settings out of their range.
        GradientError: no image has a usable gradient.

    Checked by tests/attacks/test_minimum_norm.py: a linear model's minimum norm within 2 %.
    """
    for name, number in (("search", search), ("steps", steps)):
        require_count(name, number, 1)
    for name, value, low in (("confidence", confidence, -1e-300), ("rate", rate, 0.0), ("constant", constant, 0.0)):
        if not low < value < float("inf"):
            raise InputError(name, "a number > 0, or for the confidence 0", str(value), "The authors use 0, .01, .001.")
    if box is None or not all(abs(end) < float("inf") for end in box):
        raise InputError("box", "(low, high), both finite", str(box), "Give (0, 1) for images, or use `ddn`.")
    x, y, ball = prepared(x, y, Ball("l2", 0.0, box=box, mask=mask), ("l2",))
    counted, nearest = Counted(model), Nearest(x, "l2")
    with apart(x):
        rows = nearest.begin(counted, y, targeted=targeted)
        task = _Task(counted, nearest, rows, x[rows], y[rows], ball.rows(rows), targeted, confidence, rate)
        low, c = x.new_zeros(len(rows)), x.new_full((len(rows),), constant)
        high = torch.full_like(c, torch.inf)
        for _ in range(search if len(rows) else 0):
            hit = task.minimise(c, steps, abort_early)
            low, high = torch.where(hit, low, c), torch.where(hit, c, high)
            c = torch.where(torch.isfinite(high), (low + high) / 2, 10 * c)
    return nearest.result(counted)


class _Task:
    """The images that need a perturbation, and the minimisation for given constants."""

    def __init__(
        self, model: Counted, nearest: Nearest, rows: Tensor, x: Tensor, y: Tensor, ball: Ball, targeted: bool,
        confidence: float, rate: float,
    ) -> None:  # fmt: skip
        assert ball.box is not None
        self.model, self.nearest, self.rows, self.x, self.y, self.mask = model, nearest, rows, x, y, ball.mask
        self.targeted, self.confidence, self.rate, self.box = targeted, confidence, rate, ball.box
        self.half, self.middle = (ball.box[1] - ball.box[0]) / 2, (ball.box[1] + ball.box[0]) / 2
        self.begun = False

    def minimise(self, c: Tensor, steps: int, abort_early: bool) -> Tensor:
        """Adam (Kingma & Ba 2015, its defaults) from the images; returns for which of them a point was found."""
        w = torch.atanh(((self.x - self.middle) / self.half).clamp(-1, 1) * NEAR_ONE)
        first, second = torch.zeros_like(w), torch.zeros_like(w)
        c, hit, lowest = c.reshape(-1, *[1] * (w.dim() - 1)), torch.zeros_like(self.y, dtype=torch.bool), None
        for k in range(1, steps + 1):
            squashed = torch.tanh(w)
            points, logits = self.model.sloped(self._point(squashed))
            margin = margins(logits.detach(), self.y, targeted=self.targeted)
            enough = (margin > 0) & (margin >= self.confidence)
            hit |= enough
            length = self.nearest.keep(self.rows, points.detach(), enough)
            if k == steps:
                break
            if abort_early and k % max(1, steps // 10) == 0:
                value = length**2 - c.flatten() * margin.clamp(max=self.confidence)
                if lowest is not None and bool((value > 0.9999 * lowest).all()):
                    break
                lowest = value if lowest is None else torch.minimum(value, lowest)
            slope = self._slope(points, logits, margin, c) * (1 - squashed**2) * self.half
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
            w = w - self.rate * (first / (1 - 0.9**k)) / ((second / (1 - 0.999**k)).sqrt() + 1e-8)
        return hit

    def _point(self, squashed: Tensor) -> Tensor:
        point = (self.middle + self.half * squashed).clamp(*self.box)
        return point if self.mask is None else torch.where(self.mask, point, self.x)  # pyright: ignore

    def _slope(self, points: Tensor, logits: Tensor, margin: Tensor, c: Tensor) -> Tensor:
        """The gradient of the objective by the points."""
        weights = margin_weights(logits, self.y, targeted=self.targeted)
        weights = torch.where((margin < self.confidence)[:, None] | (margin <= 0)[:, None], weights, 0.0)
        slope = self.model.gradient(logits, points, weights)
        if not self.begun:
            require_slope(slope)
            self.begun = True
        whole = 2 * (points.detach() - self.x) - c * finite(slope)
        return whole if self.mask is None else torch.where(self.mask, whole, 0.0)  # pyright: ignore
