"""What an ascent writes down while it climbs: values, gradients, the best points, passes, and what was suspicious."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import GradientError, InputError
from .tree import Tree, leaves, map_leaves, rebuild


@dataclass(frozen=True)
class Calls:
    """What was spent, in passes of one example: a batch of 64 run forward once counts 64; a place without examples 1."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: "Calls") -> "Calls":
        return Calls(self.forward + other.forward, self.backward + other.backward)


@dataclass(frozen=True)
class Flags:
    """What was suspicious, per example (shape (n,); (1,) for a place without examples).

    Args:
        vanishing: the largest entry of the first gradient is below 1e-12, at every start: an ascent by gradients sees
            (nearly) nothing.
        nonfinite: the first value or gradient is NaN or infinite, at some start; a step along such a gradient is 0.
        stopped: the objective said that the example is finished (fooled), and it was dropped.
    """

    vanishing: Tensor
    nonfinite: Tensor
    stopped: Tensor


@dataclass(frozen=True)
class Ascent:
    """What an ascent found; `perturb` makes a `Perturbation` of it."""

    delta: Tree
    value: Tensor | None
    calls: Calls
    flags: Flags


@dataclass(frozen=True)
class Look:
    """An objective at a point: values (k,), which are finished, the gradient by the point."""

    value: Tensor
    done: Tensor | None
    gradient: Tree


class Record:
    """The best delta and value of each example (or of the whole, without examples) over all that was looked at."""

    def __init__(self, origin: Tree, rowwise: bool) -> None:
        first = leaves(origin)[0]
        self.rowwise: bool = rowwise
        self.origin: Tree = origin
        self.delta: Tree | None = None
        self.value: Tensor | None = None
        self.calls: Calls = Calls()
        self.count: int = len(first) if rowwise else 1
        self.vanishing: Tensor = torch.zeros(self.count, dtype=torch.bool, device=first.device)
        self.nonfinite: Tensor = self.vanishing.clone()
        self.stopped: Tensor = self.vanishing.clone()
        self.best: Tensor | None = None  # what restarts compare: the value of a row, or the sum of all
        self.begun: bool = False

    def open_rows(self) -> Tensor | None:
        """The rows that a further restart is for; None for all."""
        return torch.nonzero(~self.stopped)[:, 0] if bool(self.stopped.any()) else None

    def keep_last(self, delta: Tree) -> None:
        """Take the last point without knowing its value."""
        self.delta = delta

    def note(
        self, look: Look, delta: Tree, rows: Tensor | None, *, first: bool, end: bool, every: bool
    ) -> Tensor | None:
        """Write down a look; returns the indices, among those looked at, of the rows to go on with (None: all)."""
        looked = len(look.value) if self.rowwise else 1
        self.calls += Calls(looked, 0 if end else looked)
        if first and not end:
            self._flag(look, rows)
        done = look.done if self.rowwise else None
        some = done is not None and bool(done.any())  # the one wait for the device in a step, if the objective stops
        if every or end or some:
            self._take(look, delta, rows, done, all_of_them=every or end)
        return torch.nonzero(~done)[:, 0] if some and done is not None else None

    def _take(self, look: Look, delta: Tree, rows: Tensor | None, done: Tensor | None, *, all_of_them: bool) -> None:
        """Keep what is better (of the finished examples alone, or of all of them) and every finished example."""
        full = look.value.detach()
        value = full if self.rowwise else full.sum().reshape(1)
        value = torch.where(value.isnan(), -torch.inf, value)
        if self.best is None or self.delta is None:
            self.best = value.new_full((self.count,), -torch.inf)
            self.delta = map_leaves(torch.zeros_like, self.origin)
        index = slice(None) if rows is None else rows
        before = self.best[index]
        if not self.rowwise:
            if bool((value > before) | torch.isneginf(before)):
                self.best, self.delta, self.value = value, delta, full
            return
        better = ((value > before) | torch.isneginf(before)) & all_of_them
        if done is not None:
            better = better | done
            self.stopped[index] = self.stopped[index] | done
        self.best[index] = torch.where(better, value, before)
        for kept, new in zip(leaves(self.delta), leaves(delta), strict=True):
            kept[index] = torch.where(better.reshape(-1, *[1] * (new.dim() - 1)), new, kept[index])

    def _flag(self, look: Look, rows: Tensor | None) -> None:
        index = slice(None) if rows is None else rows
        peak = torch.zeros(self.count if rows is None else len(rows), device=self.vanishing.device)
        sound = torch.ones_like(peak, dtype=torch.bool)
        for leaf in leaves(look.gradient):
            if leaf.numel():
                size = _peaks(leaf, len(peak))
                sound &= torch.isfinite(size)
                peak = torch.maximum(peak, size.to(peak))
        values = look.value.detach() if self.rowwise else look.value.detach().sum().reshape(1)
        vanishing, nonfinite = peak < 1e-12, ~sound | ~torch.isfinite(values)
        self.vanishing[index] = vanishing & self.vanishing[index] if self.begun else vanishing
        self.nonfinite[index] = nonfinite | self.nonfinite[index]
        usable = sound & ((peak > 0) if look.done is None or not self.rowwise else (peak > 0) | look.done)
        if not self.begun and len(peak) and not bool(usable.any()):
            raise GradientError(
                "objective", "a gradient by the perturbed point", "zero or non-finite gradients for every example",
                "Look for a detached, quantised or saturated output; use a margin loss, or an attack without gradients.",
            )  # fmt: skip
        self.begun = True

    def result(self) -> Ascent:
        """What was found, when all restarts are done."""
        delta = self.delta if self.delta is not None else map_leaves(torch.zeros_like, self.origin)
        value = self.best if self.rowwise else self.value
        return Ascent(delta, value, self.calls, Flags(self.vanishing, self.nonfinite, self.stopped))


def look_at(objective: Any, point: Tree, rows: Tensor | None, count: int | None, *, gradient: bool) -> Look:
    """The objective's values at a point (`count` of them), and with `gradient` that of their sum by the point alone."""
    stops = getattr(objective, "stops", False)
    parts = [leaf.detach().requires_grad_(gradient) for leaf in leaves(point)]
    point = rebuild(point, parts)
    with torch.set_grad_enabled(gradient):
        value, done = objective.judge(point, rows) if stops else (objective(point, rows), None)
        if not isinstance(value, Tensor) or value.dim() != 1 or (count is not None and len(value) != count):
            wanted = "values of shape (1,) or more" if count is None else f"one value for each of the {count} examples"
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            remedy = "Do not reduce the loss; for a place without examples use st.scalar, and a ball per tensor or all."
            raise InputError("objective", wanted, found, remedy)
        if not gradient:
            return Look(value, done, point)
        if not value.requires_grad:
            raise GradientError(
                "objective", "a function that can be differentiated by the perturbed point", "a detached value",
                "Remove detach(), no_grad() or numpy() on the way, or use an attack without gradients.",
            )  # fmt: skip
        slopes: list[Tensor | None] = list(torch.autograd.grad(value.sum(), parts, allow_unused=True))
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(slopes, parts, strict=True)]
    return Look(value.detach(), done, rebuild(point, filled))


def _peaks(leaf: Tensor, count: int) -> Tensor:
    """The largest absolute entry of each row, or of all entries where there is one row."""
    if count > 1:
        return leaf.detach().abs().reshape(count, -1).amax(1)
    return torch.stack(torch.aminmax(leaf.detach())).abs().amax().reshape(1)
