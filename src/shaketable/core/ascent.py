"""Ascents: how the worst point of a ball is looked for. An ascent is a frozen value with `__call__`."""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from .constraint import Constraint
from .errors import InputError
from .moves import finite, moved, per_entry
from .record import Ascent, Record, look_at
from .tree import Tree, add, map_leaves, take


class Start(Protocol):
    """Draws (or returns) the delta that an ascent starts from. The attribute `zero` says that it is 0."""

    def __call__(self) -> Tree: ...


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent (Madry et al. 2018), in any ball, from any start.

    delta <- project(delta + step * radius * steepest(gradient)), `steps` times.

    Args:
        steps: how many; 10, as in adversarial training (evaluate with 20 or more).
        step: in units of the ball's radius, so that it means the same in every place; .25 is Madry's 2/255 for 8/255.
        momentum: of the gradients, each divided by its mean absolute value, of an example or of the whole place (MI-FGSM,
            Dong et al. 2018); 0 is none.
        restarts: runs from new starts, of which each example keeps the highest value; only examples that the objective
            has not called finished are run again.
        keep: the "last" point, as the papers do, or the "best" one seen, start and end included.

    Cost: `steps` forward passes and as many backward passes to the place, none to anything else. With keep="last", one
    restart and an objective that does not stop, the value of the last point is not known and is None; otherwise one more
    forward pass a restart finds it. Examples that the objective calls finished are dropped and cost nothing more (with a
    BatchNorm in train mode the rest then sees other batch statistics: where verdicts count, models are in eval mode).

    Differences from the paper: none with the defaults. Entries of a gradient that are not finite count as 0.
    Checked by tests/core/test_pgd.py: a hand-written loop bit for bit, counted passes; test_optima.py: known optima;
    test_stop.py: the verdicts of the plain loop; test_flags.py: gradients that vanish or are not finite.
    """

    steps: int = 10
    step: float = 0.25
    momentum: float = 0.0
    restarts: int = 1
    keep: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("restarts", 1)):
            number = getattr(self, name)
            if not isinstance(number, int) or number < least:
                raise InputError(name, f"a whole number >= {least}", str(number), "Give the number of them.")
        if not 0 <= self.step < math.inf:
            raise InputError("step", "a number >= 0, in units of the radius", str(self.step), "2.5 / steps is usual.")
        if not 0 <= self.momentum < math.inf:
            raise InputError("momentum", "a number >= 0", str(self.momentum), "MI-FGSM uses 1; 0 is none.")
        if self.keep not in ("last", "best"):
            raise InputError("keep", "'last' or 'best'", repr(self.keep), "Choose one of them.")

    def __call__(self, objective: Any, origin: Tree, within: Constraint, start: Start) -> Ascent:
        """Run the ascent; see `perturb`, which checks its arguments first."""
        best = Record(origin, within.rowwise)
        for _ in range(self.restarts):
            rows = best.open_rows()
            if rows is not None and len(rows) == 0:
                break
            zero = self.steps > 0 and getattr(start, "zero", False)
            delta = map_leaves(_nought, origin) if zero and not self._valued(objective) else start()
            part = (origin, within) if rows is None else (take(origin, rows), within.rows(rows))
            self._climb(objective, *part, delta if rows is None else take(delta, rows), rows, best, zero=zero)
        return best.result()

    def _valued(self, objective: Any) -> bool:
        """Whether the value of the last point is asked for."""
        return self.keep == "best" or self.restarts > 1 or getattr(objective, "stops", False)

    def _climb(
        self, objective: Any, origin: Tree, within: Constraint, delta: Tree, rows: Tensor | None, record: "Record",
        *, zero: bool,
    ) -> None:  # fmt: skip
        reach, momentum, valued = within.reach(origin), None, self._valued(objective)
        for k in range(self.steps + 1):
            if k == self.steps and not valued:
                record.keep_last(delta)
                return
            count = (record.count if rows is None else len(rows)) if record.rowwise else None
            begins = zero and k == 0  # at the origin, which lies in the box
            point = origin if begins else within.clip(add(origin, delta))
            look = look_at(objective, point, rows, count, gradient=k < self.steps)
            left = record.note(look, delta, rows, first=k == 0, end=k == self.steps, every=self.keep == "best")
            if k == self.steps:
                return
            gradient = look.gradient
            if left is not None:
                if not len(left):
                    return
                rows = left if rows is None else rows[left]
                origin, delta, within, gradient = (
                    take(origin, left),
                    take(delta, left),
                    within.rows(left),
                    take(gradient, left),
                )
                momentum = None if momentum is None else take(momentum, left)
                reach = within.reach(origin)
            if self.momentum:
                gradient = per_entry(map_leaves(finite, gradient), record.rowwise)
                if momentum is not None:
                    gradient = map_leaves(lambda m, g: self.momentum * m + g, momentum, gradient)
                momentum = gradient
            first = begins and self.step <= 1.0
            delta = moved(within, origin, delta, gradient, self.step, reach, first=first)


def _nought(leaf: Tensor) -> Tensor:
    """Zeros that take no memory, to be read only."""
    return leaf.new_zeros(()).expand(leaf.shape)
