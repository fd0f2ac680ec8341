"""Where a run of a long ascent is: the examples still in it, their points, and the best ones they have seen."""

from typing import Any

import torch
from torch import Tensor

from .constraint import Constraint
from .record import Look, Record, look_at
from .tree import Tree, add, leaves, map_leaves, take


class Walk:
    """The points of a run, the best seen so far with its gradient, and what happens when examples are finished.

    Args:
        objective, origin, within, rows: as an ascent has them, of the examples that the run is for.
        delta: where it starts.
        record: what is written down for good; it counts the passes.
        judged: whether finished examples leave; without, the objective is only asked for its values.

    Checked by tests/attacks/test_apgd.py.
    """

    def __init__(
        self, objective: Any, origin: Tree, within: Constraint, delta: Tree, rows: Tensor | None, record: Record,
        *, judged: bool = True,
    ) -> None:  # fmt: skip
        self.objective: Any = objective if judged else lambda point, index: objective(point, index)
        self.origin: Tree = origin
        self.within: Constraint = within
        self.delta: Tree = delta
        self.before: Tree = delta  # the point before this one
        self.rows: Tensor | None = rows
        self.record: Record = record
        self.count: int = (record.count if rows is None else len(rows)) if record.rowwise else 1
        self.gradient: Tree = delta
        self.value: Tensor = leaves(delta)[0].new_zeros(self.count)
        self.rose: Tensor = torch.zeros_like(self.value, dtype=torch.bool)
        self.best: tuple[Tensor, Tensor, Tree, Tree] | None = None  # value, as it was returned, delta, gradient

    @property
    def best_value(self) -> Tensor:
        """The highest value of each example, or of the place."""
        assert self.best is not None
        return self.best[0]

    @property
    def best_delta(self) -> Tree:
        """The point that has it."""
        assert self.best is not None
        return self.best[2]

    def look(self, *, first: bool) -> Tensor | None:
        """Evaluate the point and its gradient; returns the indices of the examples that stay, or None: all."""
        seen = self._look(gradient=True)
        left = self.record.note(seen, self.delta, self.rows, first=first, end=False, every=False)
        if left is not None:
            self._keep(left)
            seen = Look(seen.value[left], None, take(seen.gradient, left))
            if not len(left):
                return left
        self._see(seen)
        return left

    def finish(self) -> None:
        """Evaluate the last point, without a gradient, and write down the best one of all."""
        seen = self._look(gradient=False)
        self._see(seen)
        assert self.best is not None
        _, full, delta, _ = self.best
        if seen.done is not None and self.record.rowwise:
            delta, full = self._where(seen.done, self.delta, delta), torch.where(seen.done, seen.value, full)
        best = Look(full, seen.done, seen.gradient)
        self.record.note(best, delta, self.rows, first=False, end=True, every=True)

    def go_back(self, chosen: Tensor) -> None:
        """Put the chosen examples (k,), or the place (1,), on their best point; what came before stays."""
        assert self.best is not None
        value, _, delta, gradient = self.best
        self.delta = self._where(chosen, delta, self.delta)
        self.gradient = self._where(chosen, gradient, self.gradient)
        self.value = torch.where(chosen, value, self.value)

    def go(self, delta: Tree) -> None:
        """Move on."""
        self.before, self.delta = self.delta, delta

    def column(self, values: Tensor, leaf: Tensor) -> Tensor:
        """One value an example, or one for the place, in a shape that multiplies a leaf."""
        return values.reshape(-1, *[1] * (leaf.dim() - 1)) if self.record.rowwise else values.reshape(())

    def _look(self, *, gradient: bool) -> Look:
        point = self.within.clip(add(self.origin, self.delta))
        count = self.count if self.record.rowwise else None
        return look_at(self.objective, point, self.rows, count, gradient=gradient)

    def _see(self, seen: Look) -> None:
        full = seen.value.detach()
        value = full if self.record.rowwise else full.sum().reshape(1)
        value = torch.where(value.isnan(), -torch.inf, value)
        self.rose, self.value, self.gradient = value > self.value, value, seen.gradient
        if self.best is None:
            self.best = (value, full, self.delta, self.gradient)
            return
        top, whole, delta, gradient = self.best
        better = value > top
        self.best = (
            torch.where(better, value, top), torch.where(better, full, whole),
            self._where(better, self.delta, delta), self._where(better, self.gradient, gradient),
        )  # fmt: skip

    def _where(self, chosen: Tensor, these: Tree, those: Tree) -> Tree:
        return map_leaves(lambda a, b: torch.where(self.column(chosen, a), a, b), these, those)

    def _keep(self, left: Tensor) -> None:
        """Let the others go."""
        self.rows = left if self.rows is None else self.rows[left]
        self.count = len(left)
        self.origin, self.delta = take(self.origin, left), take(self.delta, left)
        self.before, self.within = take(self.before, left), self.within.rows(left)
        self.value = self.value[left]
        if self.best is not None:
            value, full, delta, gradient = self.best
            self.best = (value[left], full[left], take(delta, left), take(gradient, left))
