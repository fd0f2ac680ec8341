"""APGD: an ascent whose step adapts by itself to what it finds (Croce & Hein 2020)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .apgd_l1 import ascend_sparsely
from .ascent import Start
from .ball import Ball
from .constraint import Constraint
from .errors import InputError
from .moves import finite
from .record import Ascent, Record
from .tree import Tree, leaves, map_leaves, take
from .walk import Walk


@dataclass(frozen=True)
class APGD:
    """Auto-PGD, in any ball but l0, from any start; "Reliable evaluation ...", Croce & Hein 2020, algorithm 1.

    z <- project(delta + eta * radius * steepest(gradient)); delta <- project(delta + momentum (z - delta)
    + (1 - momentum) (delta - the one before)). At the checkpoints (see `checkpoints`) an example's eta is halved, and
    it goes back to its best point, if it rose in fewer than rho of the steps since the last one, or if since then neither
    eta changed nor a better point was found. The best point seen is what is returned.

    Args:
        steps: 100, the paper's.
        step: the first eta, in units of the ball's radius; 2, the paper's.
        momentum: alpha of the paper; .75. The first step has none.
        rho: .75, the paper's.
        restarts: runs from new starts; only examples that the objective has not called finished are run again.
        staged: in an l1 ball per example, whether to come down to it from three and two times its radius; see
            `shaketable.core.apgd_l1`, which says what is different there. `step`, `momentum` and `rho` mean nothing there.

    Cost: `steps` forward and as many backward passes to the place, and one more forward pass a restart. Examples that the
    objective calls finished are dropped and cost nothing more. Memory: seven copies of the place.

    Differences from the paper: none. The authors' code halves also at exactly rho of the steps, and evaluates
    the last gradient, which nothing uses.

    Raises:
        InputError: an l0 ball; numbers out of range.

    Checked by tests/attacks/test_apgd.py: known optima, published checkpoints, the algorithm written down step by step.
    """

    steps: int = 100
    step: float = 2.0
    momentum: float = 0.75
    rho: float = 0.75
    restarts: int = 1
    staged: bool = True

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("restarts", 1)):
            number = getattr(self, name)
            if not isinstance(number, int) or number < least:
                raise InputError(name, f"a whole number >= {least}", str(number), "Give the number of them.")
        if not 0 < self.step < math.inf:
            raise InputError("step", "a number > 0, in units of the radius", str(self.step), "The paper's is 2.")
        for name in ("momentum", "rho"):
            if not 0 < getattr(self, name) <= 1:
                found = str(getattr(self, name))
                raise InputError(name, "a number in (0, 1]", found, "The paper's is .75.")

    def __call__(self, objective: Any, origin: Tree, within: Constraint, start: Start) -> Ascent:
        """Run the ascent; see `perturb`, which checks its arguments first."""
        norm = within.norm if isinstance(within, Ball) else ""
        if norm == "l0":
            raise InputError("within", "an linf, l2 or l1 ball for APGD", "norm='l0'", "Use PGD in an l0 ball.")
        sparsely = norm == "l1" and within.rowwise and not isinstance(origin, dict)
        record = Record(origin, within.rowwise)
        for _ in range(self.restarts):
            rows = record.open_rows()
            if rows is not None and len(rows) == 0:
                break
            delta, part, ball = start(), origin, within
            if rows is not None:
                delta, part, ball = take(delta, rows), take(origin, rows), within.rows(rows)
            if sparsely:
                ascend_sparsely(objective, part, ball, delta, rows, record, self.steps, staged=self.staged)
            else:
                self._climb(Walk(objective, part, ball, delta, rows, record))
        return record.result()

    def _climb(self, walk: Walk) -> None:
        marks = checkpoints(self.steps)
        pace = _Pace(leaves(walk.delta)[0].new_full((walk.count,), self.step))
        move, last = _mover(walk), 0
        for k in range(self.steps):
            left = walk.look(first=k == 0)
            if left is not None:
                if not len(left):
                    return
                pace.keep(left)
                move = _mover(walk)
            if k:
                pace.rises += walk.rose
            if k in marks:
                walk.go_back(pace.check(walk.best_value, self.rho * (k - last)))
                last = k
            walk.go(move(walk, pace.eta, self.momentum if k else 1.0))
        walk.finish()


def checkpoints(steps: int) -> tuple[int, ...]:
    """After how many steps eta is looked at: ceil(p_j steps), p_1 = .22, p_(j+1) = p_j + max(p_j - p_(j-1) - .03, .06)."""
    marks, before, after = [], 0, 22  # in hundredths, so that nothing is rounded
    while after < 100:
        marks.append(-(-after * steps // 100))
        before, after = after, after + max(after - before - 3, 6)
    return tuple(sorted(set(marks)))


class _Pace:
    """The step of each example (or of the place), and what its next check needs."""

    def __init__(self, eta: Tensor) -> None:
        self.eta = eta
        self.rises = torch.zeros_like(eta)
        self.halved = torch.ones_like(eta, dtype=torch.bool)
        self.best: Tensor | None = None  # at the last check

    def keep(self, left: Tensor) -> None:
        self.eta, self.rises, self.halved = self.eta[left], self.rises[left], self.halved[left]
        self.best = None if self.best is None else self.best[left]

    def check(self, best: Tensor, least: float) -> Tensor:
        """Halve where it is due, and say where."""
        slow = self.rises < least
        stuck = torch.zeros_like(slow) if self.best is None else ~self.halved & (best <= self.best)
        halve = slow | stuck
        self.eta = torch.where(halve, self.eta / 2, self.eta)
        self.halved, self.best, self.rises = halve, best, torch.zeros_like(self.eta)
        return halve


def _mover(walk: Walk) -> Any:
    """(walk, eta, momentum) -> the next delta; what stays the same from step to step is worked out once."""
    reach = walk.within.reach(walk.origin)
    if type(walk.within) is Ball and walk.within.norm == "linf":
        low = map_leaves(lambda o, r: _bound(o, -r, walk.within.box, 0), walk.origin, reach)  # pyright: ignore
        high = map_leaves(lambda o, r: _bound(o, r, walk.within.box, 1), walk.origin, reach)  # pyright: ignore
        if walk.within.mask is not None:
            low, high = (map_leaves(lambda t, m: torch.where(m, t, 0.0), t, walk.within.mask) for t in (low, high))
        return lambda walk, eta, momentum: _along_signs(walk, eta, momentum, reach, low, high)
    return lambda walk, eta, momentum: _along_steepest(walk, eta, momentum, reach)


def _bound(origin: Tensor, reach: Any, box: tuple[float, float] | None, end: int) -> Tensor:
    if box is None:
        return torch.zeros_like(origin) + reach
    room = box[end] - origin
    return room.clamp(max=reach) if end else room.clamp(min=reach)


def _along_signs(walk: Walk, eta: Tensor, momentum: float, reach: Any, low: Tree, high: Tree) -> Tree:
    """In an linf ball with a box and a mask: between bounds, with few temporaries."""

    def leaf(delta: Tensor, before: Tensor, gradient: Tensor, r: Any, least: Tensor, most: Tensor) -> Tensor:
        new = finite(gradient).sign_().mul_(walk.column(eta, delta) * r).add_(delta).clamp_(least, most)
        if momentum == 1.0:
            return new
        rest = (2 * delta).sub_(before).mul_(1 - momentum)
        return new.mul_(momentum).add_(rest).clamp_(least, most)

    return map_leaves(leaf, walk.delta, walk.before, walk.gradient, reach, low, high)


def _along_steepest(walk: Walk, eta: Tensor, momentum: float, reach: Any) -> Tree:
    within, origin = walk.within, walk.origin
    direction = within.steepest(map_leaves(finite, walk.gradient), origin, walk.delta)
    ahead = map_leaves(lambda d, s, r: d + walk.column(eta, d) * r * s, walk.delta, direction, reach)
    ahead = within.project(ahead, origin)
    if momentum == 1.0:
        return ahead
    mixed = map_leaves(lambda z, d, b: z * momentum + (2 * d - b) * (1 - momentum), ahead, walk.delta, walk.before)
    return within.project(mixed, origin)
