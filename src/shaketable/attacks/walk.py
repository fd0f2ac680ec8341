"""The walk of FAB along a decision boundary, for a batch: the state of its search and one run of it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.ball import Ball
from ..core.errors import GradientError
from ..core.moves import finite
from ..core.norms import draw
from ..core.norms import norm as norm_of
from ..core.record import Flags
from .hyperplane import SHIFTS
from .minimal import Counted, margins, others, require_labels

ROUNDING = 16  # ulps of the logits: smaller margins may turn with the size of the batch
BEYOND = 1024  # ulps of a segment, past where its margin is 0
DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


@dataclass(frozen=True)
class Pace:
    """The settings of a walk; see `fab`."""

    steps: int
    alpha_max: float
    eta: float
    beta: float
    search: int


@dataclass(frozen=True)
class Nearest:
    """The nearest adversarial points known: their norms (n,), margins (n,) and flat perturbations (n, entries)."""

    size: Tensor
    margin: Tensor
    delta: Tensor

    def keep(self, rows: Tensor, hit: Tensor, size: Tensor, margin: Tensor, delta: Tensor) -> None:
        """Write down those for some rows, no row twice, that hit and are nearer than what was known."""
        better = hit & (size < self.size[rows])
        kept = rows[better]
        self.size[kept], self.margin[kept], self.delta[kept] = size[better], margin[better], delta[better]

    def of(self, rows: Tensor) -> "Nearest":
        """A copy of what is known for some rows."""
        return Nearest(self.size[rows], self.margin[rows], self.delta[rows])


class Walk:
    """The nearest adversarial points that were found of a batch, over all runs.

    Args:
        model: its passes are counted.
        x, y: images and their true classes; all the walk's own tensors are flat, (n, entries).
        ball: says the norm, the box and the mask.
        radius: (n,): where given, an image is finished once a point of at most this norm is found.
    """

    def __init__(self, model: Counted, x: Tensor, y: Tensor, ball: Ball, pace: Pace, radius: Tensor | None) -> None:
        self.model, self.y, self.pace, self.radius, self.norm = model, y, pace, radius, ball.norm
        self.shape, self.flat, self.box = x.shape[1:], x.flatten(1), ball.box
        mask: Any = ball.mask
        self.inside = None if mask is None else mask.expand(x.shape).flatten(1)
        logits = model.logits(x)
        require_labels(y, logits)
        self.ranks = others(logits, y).argsort(dim=1, descending=True, stable=True)[:, : logits.shape[1] - 1]
        self.clean_margin = margins(logits, y)
        wrong = logits.argmax(1) != y
        size = torch.where(wrong, 0.0, torch.inf).to(x)
        self.best = Nearest(size, self.clean_margin.clone(), torch.zeros_like(self.flat))
        self.vanishing, self.nonfinite, self.begun = torch.zeros_like(wrong), ~torch.isfinite(logits).all(1), False

    def open_rows(self) -> Tensor:
        """The images that a further run is for: those with no point near enough yet."""
        enough = 0.0 if self.radius is None else self.radius
        return torch.nonzero(~(self.best.size <= enough))[:, 0]

    def start(self, reach: Tensor, generator: torch.Generator) -> Tensor:
        """Random deltas, half as long as the best known and at most half of `reach` (n,), in the box."""
        inside = torch.ones_like(self.flat) if self.inside is None else self.inside.to(self.flat)
        drawn = draw(self.norm, "sphere", inside, torch.minimum(self.best.size, reach)[:, None] / 2, generator)
        return self._kept_inside(self.flat, drawn.to(self.flat))

    def run(self, images: Tensor, targets: Tensor | None, delta: Tensor | None) -> None:
        """Runs for some images, abreast: one towards each row of `targets` (runs, k), or one towards the nearest class.

        They start from `delta` (n, entries), or from the images themselves. An image is finished once one of its runs is.
        """
        runs, count = (1, len(images)) if targets is None else targets.shape
        rows, start = images.repeat(runs), torch.zeros_like(self.flat) if delta is None else delta
        towards, delta = None if targets is None else targets.flatten(), start[rows]
        x, y, best = self.flat[rows], self.y[rows], self.best.of(rows)
        place = torch.arange(len(rows), device=rows.device)
        for step in range(self.pace.steps):
            w, gap = self._plane(self._point(x, delta), y, towards, rows, runs if step == 0 else 0)
            delta = self._moved(x, delta, w, gap)
            fooled = self._judged(best, place, delta, self._point(x, delta), y)[1]
            delta = delta * torch.where(fooled, self.pace.beta, 1.0).to(delta)[:, None]
            if self.radius is None:
                continue
            near = (best.size.unflatten(0, (runs, count)) <= self.radius[images]).any(0)
            going = ~near.repeat(runs)[place]
            if not bool(going.all()):
                rows, delta, x, y, place = rows[going], delta[going], x[going], y[going], place[going]
                towards = None if towards is None else towards[going]
                if not len(rows):
                    break
        for found in torch.arange(runs * count, device=images.device).split(count) if count else ():
            one = best.of(found)
            self.best.keep(images, torch.isfinite(one.size), one.size, one.margin, one.delta)

    def close_in(self, rows: Tensor) -> None:
        """The final search: on the segments from the images to their points, where a line through two margins crosses 0."""
        size = self.best.size[rows]
        rows = rows[torch.isfinite(size) & (size > 0)]
        if not len(rows) or not self.pace.search:
            return
        x, y, known = self.flat[rows], self.y[rows], self.best.of(rows)
        near, near_margin = torch.zeros_like(known.size), self.clean_margin[rows]
        far, far_margin = torch.ones_like(near), known.margin
        for _ in range(self.pace.search):
            crossing = near_margin / (near_margin - far_margin)
            share = near + (far - near) * (crossing + 0.01 * (1 - crossing)).nan_to_num(1.0).clamp(0, 1)
            share = torch.minimum(share + BEYOND * torch.finfo(share.dtype).eps, far)
            delta = self._kept_inside(x, share[:, None] * known.delta)
            margin, fooled = self._judged(self.best, rows, delta, self._point(x, delta), y)
            near, near_margin = torch.where(fooled, near, share), torch.where(fooled, near_margin, margin)
            far, far_margin = torch.where(fooled, share, far), torch.where(fooled, margin, far_margin)

    def flags(self, stopped: Tensor) -> Flags:
        """What was suspicious."""
        return Flags(self.vanishing, self.nonfinite, stopped)

    def _point(self, x: Tensor, delta: Tensor) -> Tensor:
        point = x + delta
        return (point if self.box is None else point.clamp_(*self.box)).unflatten(1, self.shape)

    def _kept_inside(self, x: Tensor, delta: Tensor) -> Tensor:
        return delta if self.box is None else (x + delta).clamp_(*self.box).sub_(x)

    def _plane(
        self, points: Tensor, y: Tensor, target: Tensor | None, rows: Tensor, first: int
    ) -> tuple[Tensor, Tensor]:
        """The nearest linearised boundary at points: its normal, and the logit difference, negative on the own side.

        Of the first step of so many runs abreast (`first`; else 0), whether the gradients are of use is written down.
        """
        points, logits = self.model.sloped(points)
        own, classes = logits.gather(1, y[:, None])[:, 0], logits.shape[1]
        count = classes - 1 if target is None else 1
        nearest, normal, offset, peak = None, points, own, None
        for k in range(1, count + 1):
            other = (y + k) % classes if target is None else target
            gap = logits.gather(1, other[:, None])[:, 0] - own
            difference = torch.zeros_like(logits).scatter_(1, other[:, None], 1.0).scatter_(1, y[:, None], -1.0)
            w = self.model.gradient(logits, points, difference, again=k < count).flatten(1)
            if first:
                high = (w if w.shape[1] else w.new_zeros(len(w), 1)).abs().amax(1) + 0.0 * gap
                peak = high if peak is None else torch.maximum(peak, high)  # which keeps NaN
            w = finite(w)
            if self.inside is not None:
                w = torch.where(self.inside[rows], w, 0.0)
            distance = gap.abs() / norm_of(DUAL[self.norm], w) if count > 1 else gap
            distance = distance.nan_to_num(torch.inf)
            if nearest is None:
                nearest, normal, offset = distance, w, gap
            else:
                nearer = distance < nearest
                nearest, offset = torch.where(nearer, distance, nearest), torch.where(nearer, gap, offset)
                normal = torch.where(nearer[:, None], w, normal)
        if peak is not None:
            self._flag(peak.unflatten(0, (first, -1)), rows[: len(rows) // first])
        return normal, finite(offset)

    def _moved(self, x: Tensor, delta: Tensor, w: Tensor, gap: Tensor) -> Tensor:
        """The next delta: past the plane as seen from the point, and a little of that as seen from the image."""
        low, high = (-torch.inf, torch.inf) if self.box is None else self.box
        origins = torch.stack((x + delta, x))
        offset = torch.stack((gap, gap - (w * delta).sum(1)))
        here, origin = SHIFTS[self.norm](w, offset, low - origins, high - origins)
        near, far = norm_of(self.norm, here), norm_of(self.norm, origin)
        alpha = (near / (near + far)).nan_to_num(0.0).clamp(max=self.pace.alpha_max)[:, None]
        moved = (1 - alpha) * (delta + self.pace.eta * here) + (alpha * self.pace.eta) * origin
        return self._kept_inside(x, moved)

    def _judged(self, best: Nearest, rows: Tensor, delta: Tensor, points: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The margins at points, and which fool the model beyond rounding; the nearest of them are kept."""
        logits = self.model.logits(points)
        margin = margins(logits, y)
        fooled = margin > ROUNDING * torch.finfo(logits.dtype).eps * logits.abs().amax(1)  # in batches of any size
        best.keep(rows, fooled, norm_of(self.norm, delta), margin, delta)
        return margin, fooled

    def _flag(self, peak: Tensor, rows: Tensor) -> None:
        """Write down whether the first gradients (runs, k) are of any use; `peak` is the largest entry, NaN if one is."""
        vanishing, sound = (peak < 1e-12).all(0), torch.isfinite(peak).all(0)
        self.vanishing[rows] = vanishing & self.vanishing[rows] if self.begun else vanishing
        self.nonfinite[rows] = self.nonfinite[rows] | ~sound
        if not self.begun and not bool((torch.isfinite(peak) & (peak > 0)).any()):
            raise GradientError(
                "model", "a gradient by the input", "zero or non-finite gradients for every image",
                "Look for a detached, quantised or saturated output; use an attack without gradients.",
            )  # fmt: skip
        self.begun = True
