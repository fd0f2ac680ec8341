"""Ascents: how the worst point of a ball is looked for. An ascent is a frozen value with `__call__`."""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from .constraint import Constraint
from .errors import GradientError, InputError
from .tree import Tree, add, leaves, map_leaves, rebuild, take


class Start(Protocol):
    """Draws (or returns) the delta that an ascent starts from."""

    def __call__(self) -> Tree: ...


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
class _Look:
    """An objective at a point: values (k,), which are finished, the gradient by the point."""

    value: Tensor
    done: Tensor | None
    gradient: Tree


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
        best = _Record(origin, within.rowwise)
        for _ in range(self.restarts):
            rows = best.open_rows()
            if rows is not None and len(rows) == 0:
                break
            delta = start()
            part = (origin, within) if rows is None else (take(origin, rows), within.rows(rows))
            self._climb(objective, *part, delta if rows is None else take(delta, rows), rows, best)
        return best.result()

    def _climb(
        self, objective: Any, origin: Tree, within: Constraint, delta: Tree, rows: Tensor | None, record: "_Record"
    ) -> None:
        reach, momentum = within.reach(origin), None
        valued = self.keep == "best" or self.restarts > 1 or getattr(objective, "stops", False)
        for k in range(self.steps + 1):
            if k == self.steps and not valued:
                record.keep_last(delta)
                return
            count = (record.count if rows is None else len(rows)) if record.rowwise else None
            look = _look(objective, within.clip(add(origin, delta)), rows, count, gradient=k < self.steps)
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
            gradient = map_leaves(_finite, gradient)
            if self.momentum:
                gradient = _per_entry(gradient, record.rowwise)
                if momentum is not None:
                    gradient = map_leaves(lambda m, g: self.momentum * m + g, momentum, gradient)
                momentum = gradient
            direction = within.steepest(gradient, origin, delta)
            moved = map_leaves(lambda d, s, r: d + self.step * r * s, delta, direction, reach)
            delta = within.project(moved, origin)


class _Record:
    """The best delta and value of each example (or of the whole, without examples) over all that was looked at."""

    def __init__(self, origin: Tree, rowwise: bool) -> None:
        self.rowwise, self.origin = rowwise, origin
        self.delta: Tree | None = None
        self.value: Tensor | None = None
        self.calls = Calls()
        first = leaves(origin)[0]
        self.count = len(first) if rowwise else 1
        none = torch.zeros(self.count, dtype=torch.bool, device=first.device)
        self.vanishing, self.nonfinite, self.stopped = none, none.clone(), none.clone()
        self.best: Tensor | None = None  # what restarts compare: the value of a row, or the sum of all
        self.begun = False

    def open_rows(self) -> Tensor | None:
        """The rows that a further restart is for; None for all."""
        return torch.nonzero(~self.stopped)[:, 0] if bool(self.stopped.any()) else None

    def keep_last(self, delta: Tree) -> None:
        """Take the last point without knowing its value."""
        self.delta = delta

    def note(
        self, look: _Look, delta: Tree, rows: Tensor | None, *, first: bool, end: bool, every: bool
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

    def _take(self, look: _Look, delta: Tree, rows: Tensor | None, done: Tensor | None, *, all_of_them: bool) -> None:
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

    def _flag(self, look: _Look, rows: Tensor | None) -> None:
        index = slice(None) if rows is None else rows
        peak = torch.zeros(self.count if rows is None else len(rows), device=self.vanishing.device)
        finite = torch.ones_like(peak, dtype=torch.bool)
        for leaf in leaves(look.gradient):
            if leaf.numel():
                size = leaf.detach().abs().reshape(len(peak), -1).amax(1)
                finite &= torch.isfinite(size)
                peak = torch.maximum(peak, size.to(peak))
        values = look.value.detach() if self.rowwise else look.value.detach().sum().reshape(1)
        vanishing, nonfinite = peak < 1e-12, ~finite | ~torch.isfinite(values)
        self.vanishing[index] = vanishing & self.vanishing[index] if self.begun else vanishing
        self.nonfinite[index] = nonfinite | self.nonfinite[index]
        usable = finite & ((peak > 0) if look.done is None or not self.rowwise else (peak > 0) | look.done)
        if not self.begun and len(peak) and not bool(usable.any()):
            raise GradientError(
                "objective", "a gradient by the perturbed point", "zero or non-finite gradients for every example",
                "Look for a detached, quantised or saturated output; use a margin loss, or an attack without gradients.",
            )  # fmt: skip
        self.begun = True

    def result(self) -> Ascent:
        delta = self.delta if self.delta is not None else map_leaves(torch.zeros_like, self.origin)
        value = self.best if self.rowwise else self.value
        return Ascent(delta, value, self.calls, Flags(self.vanishing, self.nonfinite, self.stopped))


def _look(objective: Any, point: Tree, rows: Tensor | None, count: int | None, *, gradient: bool) -> _Look:
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
            return _Look(value, done, point)
        if not value.requires_grad:
            raise GradientError(
                "objective", "a function that can be differentiated by the perturbed point", "a detached value",
                "Remove detach(), no_grad() or numpy() on the way, or use an attack without gradients.",
            )  # fmt: skip
        slopes: list[Tensor | None] = list(torch.autograd.grad(value.sum(), parts, allow_unused=True))
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(slopes, parts, strict=True)]
    return _Look(value.detach(), done, rebuild(point, filled))


def _finite(gradient: Tensor) -> Tensor:
    return gradient.nan_to_num(0.0, 0.0, 0.0)


def _per_entry(gradient: Tree, rowwise: bool) -> Tree:
    """A gradient divided by its mean absolute value: of each example, or of all entries of the place at once."""
    if rowwise:
        return map_leaves(
            lambda g: g / _floored(g.abs().mean(tuple(range(1, g.dim())), True) if g.dim() > 1 else g), gradient
        )
    parts = [g for g in leaves(gradient) if g.numel()]
    mean = torch.stack([g.abs().sum().to(parts[0]) for g in parts]).sum() / sum(g.numel() for g in parts)
    return map_leaves(lambda g: g / _floored(mean.to(g)), gradient)


def _floored(size: Tensor) -> Tensor:
    return size.abs().clamp(min=torch.finfo(size.dtype).tiny)
