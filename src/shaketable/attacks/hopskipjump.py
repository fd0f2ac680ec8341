"""HopSkipJump: near adversarial points from decisions alone (Chen, Jordan & Wainwright 2020)."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.ball import Ball
from ..core.errors import InputError
from ..core.norms import norm as norm_of
from ..core.seeds import generator as make_generator
from .minimal import Counted, Minimal, Nearest, apart, prepared, require_count, won

BATCH = 1024  # points a query of the model holds at most, unless there are more images


@torch.inference_mode(False)  # a gradient needs tensors that were made outside of it
def hopskipjump(
    model: Any,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    norm: Literal["linf", "l2"] = "l2",
    targeted: bool = False,
    start: Float[Tensor, "n ..."] | None = None,
    steps: int = 40,
    first_queries: int = 100,
    most_queries: int = 10_000,
    noise_tries: int = 100,
    box: tuple[float, float] = (0.0, 1.0),
    mask: Tensor | None = None,
    seed: int = 0,
) -> Minimal:
    """Near adversarial points of a model of which nothing but the predicted class is asked, without any gradient.

    Algorithm 2 of the paper. From a point on the boundary, the gradient's direction is estimated from the decisions at
    `first_queries` * sqrt(t) random points about it (equation 16, with their mean as the baseline); a step of
    |z - x| / sqrt(t) along it, or along its signs for linf, is halved until it is adversarial; a bisection between the
    image and that point returns to the boundary.

    Args:
        model: from inputs in the box to logits, of which the largest alone is read; left as it is.
        x, y: images and their true classes, or the classes to reach if `targeted`.
        norm: that is minimised: "l2" or "linf".
        start: adversarial points to begin from. None: uniform noise in the box, drawn until it is adversarial and then
            blended with the image until it just is; a target class is seldom met by noise, so give images of it.
        steps: 40, the authors' code.
        first_queries, most_queries: 100, the paper's, and 10000, the authors' code; the latter bounds those of one estimate.
        noise_tries: draws of noise before an image is given up; 100. The authors' code draws up to 10000.
        box: the range of valid inputs, finite: noise is drawn from it.
        mask: nonzero where an image may change.
        seed: of all draws.

    Differences from the paper: the images of a batch are attacked together, each with draws of its own; the nearest point
    seen is returned, also if a later step was longer; a step is halved 40 times at most. The width of the random points goes
    by the distance of the boundary point; the authors' code takes that of the point before the bisection.

    Cost, in forward passes and without a backward pass: `queries` says it for each image; with the defaults about 18 000, of
    which 17 000 estimate directions.

    Raises:
        InputError: what `prepared` refuses; a box without ends; a start of another shape or outside the box; settings out of
            their range.

    Checked by tests/attacks/test_hopskipjump.py: a linear model's minimum norm within a tenth, no gradient asked for,
    queries counted.
    """
    for name, number in (("steps", steps), ("first_queries", first_queries), ("noise_tries", noise_tries)):
        require_count(name, number, 1)
    require_count("most_queries", most_queries, first_queries)
    if box is None or not all(abs(end) < math.inf for end in box):
        raise InputError("box", "(low, high), both finite", str(box), "Give (0, 1) for images.")
    x, y, ball = prepared(x, y, Ball(norm, 0.0, box=box, mask=mask), ("linf", "l2"))
    begin = None if start is None else _checked_start(start, x, ball)
    counted, nearest, generator = Counted(model), Nearest(x, norm), make_generator(seed, "hopskipjump")
    queries = torch.ones(len(x), dtype=torch.long, device=x.device)
    with apart(x, generator):
        rows = nearest.begin(counted, y, targeted=targeted)
        if len(rows):
            region = torch.ones_like(x, dtype=torch.bool) if ball.mask is None else ball.mask.expand_as(x)  # pyright: ignore
            jump = _Jump(counted, x, y, region, norm, targeted, box, generator, queries)
            rows, points = jump.begun(rows, noise_tries, None if begin is None else begin[rows])
            nearest.keep(rows, points, torch.ones_like(rows, dtype=torch.bool))
            for t in range(1, (steps if len(rows) else 0) + 1):
                count = min(int(first_queries * math.sqrt(t)), most_queries)
                points = jump.step(rows, points, t, count)
                nearest.keep(rows, points, torch.ones_like(rows, dtype=torch.bool))
    return nearest.result(counted, queries)


def _checked_start(start: Any, x: Tensor, ball: Ball) -> Tensor:
    if not isinstance(start, Tensor) or start.shape != x.shape:
        found = f"shape {tuple(start.shape)}" if isinstance(start, Tensor) else type(start).__name__
        raise InputError("start", f"a tensor of shape {tuple(x.shape)}", found, "Give one point for each image.")
    start = start.detach().to(x)
    if not bool(torch.isfinite(start).all()) or not torch.equal(start, ball.clip(start)):  # pyright: ignore
        raise InputError("start", f"finite values in {ball.box}", "others", "Give valid images.")
    return start if ball.mask is None else torch.where(ball.mask, start, x)  # pyright: ignore


@dataclass(eq=False)
class _Jump:
    """The images, and the moves that are made by asking for decisions."""

    model: Counted
    x: Tensor
    y: Tensor
    region: Bool[Tensor, "n ..."]
    norm: str
    targeted: bool
    box: tuple[float, float]
    generator: torch.Generator
    queries: Int[Tensor, " n"]

    def __post_init__(self) -> None:
        self.entries = float(self.x[0].numel())
        d = self.entries  # the paper's theta: how close to the boundary a bisection ends
        self.theta = 1 / (math.sqrt(d) * d) if self.norm == "l2" else 1 / d**2

    def decided(self, rows: Tensor, points: Tensor) -> Bool[Tensor, " k"]:
        """Whether each point, of the image in `rows`, is adversarial; one query each."""
        self.queries.index_add_(0, rows, torch.ones_like(rows))
        hits = [
            won(self.model.logits(part), self.y[own], targeted=self.targeted)
            for part, own in zip(points.split(BATCH), rows.split(BATCH), strict=True)
        ]
        return torch.cat(hits)

    def begun(self, rows: Tensor, tries: int, start: Tensor | None) -> tuple[Tensor, Tensor]:
        """A boundary point for each image that one is found for: their rows and the points."""
        x = self.x[rows]
        points, hit = x.clone(), torch.zeros_like(rows, dtype=torch.bool)
        for _ in range(tries if start is None else 1):
            left = torch.nonzero(~hit)[:, 0]
            if not len(left):
                break
            drawn = self._noise(x[left]) if start is None else start[left]
            drawn = torch.where(self.region[rows[left]], drawn, x[left])
            found = self.decided(rows[left], drawn)
            points[left[found]], hit[left[found]] = drawn[found], True
        rows, points = rows[hit], points[hit]
        if start is None and len(rows):
            low, high = points.new_zeros(len(rows)), points.new_ones(len(rows))
            points = self._bisected(rows, points, low, high, points.new_full((len(rows),), 1e-3), "l2")
        far = self._sizes(rows, points)
        return rows, self._onto_boundary(rows, points, far) if len(rows) else points

    def step(self, rows: Tensor, points: Tensor, t: int, count: int) -> Tensor:
        """One iteration from boundary points: estimate, step, bisect."""
        far = self._sizes(rows, points)
        width = 0.1 * (self.box[1] - self.box[0])
        probe = far * self.theta * (math.sqrt(self.entries) if self.norm == "l2" else self.entries)
        probe = torch.full_like(far, width) if t == 1 else probe.clamp(min=torch.finfo(far.dtype).eps)
        along = self._estimated(rows, points, probe, count)
        stride, moved, open_ = far / math.sqrt(t), points.clone(), torch.arange(len(rows), device=points.device)
        for _ in range(40):  # a stride that was halved so often is rounding
            candidate = (points[open_] + self._wide(stride[open_]) * along[open_]).clamp(*self.box)
            hit = self.decided(rows[open_], candidate)
            moved[open_[hit]] = candidate[hit]
            open_ = open_[~hit]
            if not len(open_):
                break
            stride = stride / 2
        return self._onto_boundary(rows, moved, self._sizes(rows, moved))

    def _estimated(self, rows: Tensor, points: Tensor, probe: Tensor, count: int) -> Tensor:
        """The direction in which the decision turns adversarial, of unit length, or its signs."""
        k, region = len(rows), self.region[rows]
        signed, plain, total = torch.zeros_like(points), torch.zeros_like(points), points.new_zeros(k)
        left = count
        while left:
            each = min(left, max(1, BATCH // k))
            left -= each
            shape = (each, *points.shape)
            noise = self._normal(shape) if self.norm == "l2" else 2 * self._uniform(points.expand(shape)) - 1
            noise = torch.where(region, noise, 0.0).flatten(2)
            noise = (noise / noise.norm(dim=2, keepdim=True).clamp(min=1e-30)).reshape(shape)
            drawn = (points + self._wide(probe) * noise).clamp(*self.box)
            hit = self.decided(rows.repeat(each), drawn.flatten(0, 1)).reshape(each, k)
            turn = (drawn - points) / self._wide(probe)
            sign = torch.where(hit, 1.0, -1.0).to(points)
            signed += (sign.reshape(each, k, *[1] * (points.dim() - 1)) * turn).sum(0)
            plain, total = plain + turn.sum(0), total + sign.sum(0)
        mean = total / count
        slope = torch.where(self._wide(mean.abs() == 1), signed, signed - self._wide(mean) * plain)
        if self.norm == "linf":
            return slope.sign()
        return slope / self._wide(slope.flatten(1).norm(dim=1).clamp(min=1e-30))

    def _onto_boundary(self, rows: Tensor, points: Tensor, far: Tensor) -> Tensor:
        """The point where the way from the image to an adversarial point turns adversarial."""
        low, high = torch.zeros_like(far), torch.ones_like(far) if self.norm == "l2" else far
        theta = torch.full_like(far, self.theta) if self.norm == "l2" else (far * self.theta).clamp(max=self.theta)
        return self._bisected(rows, points, low, high, theta, self.norm)

    def _bisected(self, rows: Tensor, points: Tensor, low: Tensor, high: Tensor, theta: Tensor, norm: str) -> Tensor:
        floor = 2 * torch.finfo(points.dtype).eps * torch.maximum(high, low)
        theta, x, best = torch.maximum(theta, floor), self.x[rows], points
        open_ = torch.nonzero(high - low > theta)[:, 0]
        while len(open_):
            middle = (low[open_] + high[open_]) / 2
            share, own, whole = self._wide(middle), x[open_], points[open_]
            if norm == "l2":
                between = torch.where(whole == own, own, own + share * (whole - own))
            else:
                between = torch.maximum(torch.minimum(whole, own + share), own - share)
            between = between.clamp(*self.box)
            hit = self.decided(rows[open_], between)
            best = best.clone()
            best[open_[hit]] = between[hit]
            high[open_[hit]], low[open_[~hit]] = middle[hit], middle[~hit]
            open_ = open_[(high - low)[open_] > theta[open_]]
        return best

    def _sizes(self, rows: Tensor, points: Tensor) -> Float[Tensor, " k"]:
        return norm_of(self.norm, (points - self.x[rows]).flatten(1))

    def _wide(self, numbers: Tensor) -> Tensor:
        return numbers.reshape(-1, *[1] * (self.x.dim() - 1))

    def _noise(self, like: Tensor) -> Tensor:
        """Uniform in the box."""
        return (self.box[0] + (self.box[1] - self.box[0]) * self._uniform(like)).clamp(*self.box)

    def _uniform(self, like: Tensor) -> Tensor:
        drawn = torch.rand(like.shape, generator=self.generator, device=self.generator.device, dtype=like.dtype)
        return drawn.to(like.device)

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        drawn = torch.randn(shape, generator=self.generator, device=self.generator.device, dtype=self.x.dtype)
        return drawn.to(self.x.device)
