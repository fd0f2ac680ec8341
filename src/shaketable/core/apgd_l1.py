"""APGD in l1 balls of images: sparse steps, and a projection that knows the box (Croce & Hein 2021, "Mind the box")."""

from dataclasses import replace
from math import ceil
from typing import Any

import torch
from torch import Tensor

from .ball import Ball
from .constraint import Constraint
from .moves import finite
from .norms import as_groups
from .record import Record
from .walk import Walk

STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # radii, in that of the ball, and their shares of the steps
FIRST = 0.2  # the share of the entries that the first steps move


def ascend_sparsely(
    objective: Any, origin: Any, within: Constraint, delta: Any, rows: Tensor | None, record: Record, steps: int,
    *, staged: bool,
) -> None:  # fmt: skip
    """l1-APGD of Croce & Hein 2021 (section 3, algorithm 1), in three stages of shrinking radius (their multi-eps variant).

    A step moves the k entries of the largest gradient, all alike, by eta in the l1 norm; then delta goes to the nearest
    point of ball and box (`project_l1_box`). At first k is a fifth of the entries (of the mask, where there is one) and eta
    the radius. Every 4 % of the steps k becomes two thirds of the number of entries that differ at the best point; if that
    number has fallen by 5 % since, eta is the radius again and the example goes back to its best point; else eta is divided
    by 1.5, down to a tenth of the radius. There is no momentum.

    With `staged`, 30 % of the steps are taken in three times the radius, 30 % in two times, and 40 % in the ball, each stage
    from the projected best point of the one before; only the last one drops finished examples.

    Cost: `steps` forward and backward passes and one forward pass, as `APGD`.
    Differences from the paper: none known. The authors' code starts from normal noise projected into the ball.
    Checked by tests/attacks/test_apgd.py: the optimum of a linear model, with and without the box.
    """
    plan = STAGES if staged and steps >= 10 else ((1.0, 1.0),)
    taken, known = 0, False
    for number, (factor, share) in enumerate(plan):
        last = number == len(plan) - 1
        count = steps - taken if last else round(share * steps)
        ball = _scaled(within, factor)
        delta = _Limits(origin, ball).project(delta)
        walk = Walk(objective, origin, ball, delta, rows, record, judged=last)
        if not _climb(walk, count, first=number == 0, known=known):
            return
        if last:
            walk.finish()
            return
        delta, taken, known = walk.best_delta, taken + count, True


def _climb(walk: Walk, steps: int, *, first: bool, known: bool) -> bool:
    """One stage; False if nobody is left. The last point of one that is not the last is not looked at."""
    every = max(1, ceil(0.04 * steps))
    limits = _Limits(walk.origin, walk.within)
    entries = limits.room * FIRST
    before = limits.room
    if known:
        before = _changed(walk.delta)
        entries = before / 1.5
    eta = limits.radius[:, 0]
    for k in range(steps):
        left = walk.look(first=first and k == 0)
        if left is not None:
            if not len(left):
                return False
            entries, before, eta = entries[left], before[left], eta[left]
            limits = _Limits(walk.origin, walk.within)
        if k and k % every == 0:
            now, most = _changed(walk.best_delta), limits.radius[:, 0]
            sparser = now < 0.95 * before
            eta = torch.where(sparser, most, torch.maximum(eta / 1.5, most / 10))
            entries, before = now / 1.5, now
            walk.go_back(sparser)
        direction = _largest(limits.masked(finite(walk.gradient)), entries)  # pyright: ignore
        ahead = walk.delta + (eta[:, None] * direction).reshape_as(walk.delta)  # pyright: ignore
        walk.go(limits.project(ahead))
    return True


class _Limits:
    """A ball as rows, one an example: their radii, their bounds, and how many entries may change."""

    def __init__(self, origin: Any, within: Constraint) -> None:
        assert isinstance(within, Ball)
        rows = as_groups(origin, "example")
        reach = within.reach(origin)
        self.radius: Tensor = rows.new_zeros(len(rows), 1) + (
            reach.reshape(-1, 1) if isinstance(reach, Tensor) else reach
        )
        box = (-torch.inf, torch.inf) if within.box is None else within.box
        self.low: Tensor = (box[0] - rows).clamp(max=0.0)
        self.high: Tensor = (box[1] - rows).clamp(min=0.0)
        self.mask: Tensor | None = None
        if within.mask is not None:
            self.mask = within.mask.expand_as(origin).reshape(len(rows), -1)  # pyright: ignore
            self.low, self.high = (torch.where(self.mask, t, 0.0) for t in (self.low, self.high))
        whole = rows.new_full((len(rows),), float(rows.shape[1]))
        self.room: Tensor = whole if self.mask is None else self.mask.sum(1).to(rows)

    def masked(self, gradient: Tensor) -> Tensor:
        rows = as_groups(gradient, "example")
        return rows if self.mask is None else torch.where(self.mask, rows, 0.0)

    def project(self, delta: Tensor) -> Tensor:
        rows = as_groups(delta, "example")
        return project_l1_box(rows, self.low, self.high, self.radius).reshape_as(delta)


def project_l1_box(delta: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
    """The nearest points of the intersections of l1 balls and boxes (Croce & Hein 2021, proposition 2.1).

    Entry by entry it is |delta| - t, not below 0 nor above its bound, where t >= 0 is such that the sizes sum to the radius.
    That sum is piecewise linear in t, so Newton's method, kept between bounds, ends exactly; in float64.

    Args:
        delta: (n, m).
        low, high: (n, m), low <= 0 <= high.
        radius: (n, 1).

    Checked by tests/attacks/test_apgd.py: nearer than any of many feasible points; bisection; feasible and idempotent.
    """
    size = delta.abs().double()
    most = torch.where(delta > 0, high, -low).double()
    kept = torch.minimum(size, most)
    left, right = torch.zeros_like(size[:, :1]), size.amax(1, keepdim=True) if size.shape[1] else size[:, :1]
    inside = kept.sum(1, keepdim=True) <= radius
    t = left.clone()
    for _ in range(200):
        shrunk = size - t
        kept = torch.minimum(shrunk.clamp(min=0.0), most)
        excess = kept.sum(1, keepdim=True) - radius
        done = inside | (excess.abs() <= 1e-12 * radius) | (right - left <= 1e-15 * right)
        if bool(done.all()):
            break
        left, right = torch.where(excess > 0, t, left), torch.where(excess > 0, right, t)
        step = t + excess / ((shrunk > 0) & (shrunk < most)).sum(1, keepdim=True)
        step = torch.where((step > left) & (step < right), step, (left + right) / 2)
        t = torch.where(done, t, step)
    kept = torch.where(inside, torch.minimum(size, most), kept)
    return (delta.sign() * kept * (radius > 0)).to(delta)


def _largest(gradient: Tensor, entries: Tensor) -> Tensor:
    """The signs of each row's largest entries, as many as `entries` says (at least one), of l1 norm 1."""
    counts = entries.round().long().clamp(1, gradient.shape[1])
    sizes = gradient.abs()
    least = sizes.topk(int(counts.max()), 1).values.gather(1, counts[:, None] - 1)
    signs = torch.where(sizes >= least, gradient.sign(), 0.0)
    return signs / signs.abs().sum(1, keepdim=True).clamp(min=1.0)


def _changed(delta: Any) -> Tensor:
    """How many entries of each example differ."""
    return (as_groups(delta, "example") != 0).sum(1).to(delta)


def _scaled(within: Constraint, factor: float) -> Constraint:
    assert isinstance(within, Ball)
    return within if factor == 1.0 else replace(within, radius=within.radius * factor)
