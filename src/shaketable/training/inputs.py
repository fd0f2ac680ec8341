"""The first part of a step: adversarial points for a batch, worked on whole or in parts."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core import PGD, Calls, GradientError, InputError, LogitObjective, Perturbation, Tree, at, perturb
from ..core import weights as weights_of
from ..core.perturb import drawn_start
from ..core.seeds import own_random_state
from ..core.tree import take
from .awp import WeightPerturbation
from .labels import Labels
from .losses import RobustLoss
from .processes import Processes
from .update import Update, in_mode


@dataclass(frozen=True)
class Part:
    """Examples that go through the model together, with what the optimiser is to lower the loss at.

    Args:
        x, adversarial: clean and adversarial images.
        target: labels, or class probabilities.
        share: of the whole batch's examples, over all processes.
    """

    x: Tensor
    adversarial: Tensor
    target: Tensor
    share: float


@dataclass(frozen=True)
class Attacked:
    """A batch, or this process' share of it, after the attack.

    Args:
        parts: none if the batch has fewer examples than there are processes, and this one has none.
        calls: passes of the attack, in examples, without those at a loss's reference.
        silent: no example of the whole batch, over all parts and processes, had a gradient.
        slopes: the gradient of the attack's objective by the weights, summed over the examples; only if it was asked for.
    """

    parts: list[Part]
    calls: Calls
    silent: bool
    slopes: dict[str, Tensor] | None


@dataclass(frozen=True)
class _Aim:
    """What stays the same for all parts of a batch."""

    model: nn.Module
    loss: RobustLoss
    by: Any
    generator: torch.Generator
    live: bool
    whole: bool
    shared: WeightPerturbation | None

    @property
    def target(self) -> Any:
        """The model as the attack calls it: as it is, or so that its passes move BatchNorm's statistics."""
        return (lambda *inputs: self.model(*inputs)) if self.live else self.model


def attack_inputs(
    model: nn.Module,
    loss: RobustLoss,
    x: Tensor,
    y: Tensor,
    *,
    within: Any,
    by: Any,
    generator: torch.Generator,
    update: Update,
    labels: Labels,
    processes: Processes,
    weights: WeightPerturbation | None,
) -> Attacked:
    """Attack this process' examples of a batch, in micro-batches.

    Whatever is drawn is drawn for the whole batch, so that parts start where the whole would; and a part without a gradient
    stays there, as its examples would among others that have one. With ``weights.shared`` the last step's pass gives the
    gradient by the weights as well: one backward pass to the weights (Bw) and no forward pass.
    """
    n = len(x)
    rows = list(torch.arange(n).tensor_split(processes.count)[processes.rank].tensor_split(update.accumulate))
    rows = [r.to(x.device) for r in rows if len(r)]
    target = _targets(model, x, y, labels, generator)
    shared = weights if weights is not None and weights.shared else None
    if shared is not None:
        _require_shareable(by)
    whole = len(rows) == 1 and len(rows[0]) == n and processes.count == 1
    live = update.batch_norm == "authors" and loss.attack_mode == "train"
    aim = _Aim(model, loss, by, generator, live, whole, shared)
    parts: list[Part] = []
    calls, missed = Calls(), list[bool]()
    slopes: dict[str, Tensor] | None = None
    with in_mode(model, loss.attack_mode):
        start = loss.start if whole else _start(aim, x, y, within)
        for r in rows:
            some = (x, y, target, within) if whole else (x[r], y[r], target[r], within.rows(r))
            attacked = labels.for_attack(model, some[0], some[1])
            found = _attack(aim, some[0], attacked, some[3], start if whole else take(start, r))
            parts.append(Part(some[0], found.point, some[2], 1.0 if whole else len(r) / n))
            calls, missed = calls + found.calls, [*missed, found.missed]
            if found.slopes is not None:
                known = slopes or {}
                slopes = {name: g if name not in known else known[name] + g for name, g in found.slopes.items()}
        silent = not processes.any(not all(missed))
        for k, (r, part) in enumerate(zip(rows, parts, strict=True)):
            point = labels.keep(model, part.x, y if whole else y[r], part.x if silent else part.adversarial)
            parts[k] = replace(part, adversarial=point)
    return Attacked(parts, calls, silent, None if silent else slopes)


def _targets(model: nn.Module, x: Tensor, y: Tensor, labels: Labels, generator: torch.Generator) -> Tensor:
    """What the optimiser learns from: the labels, or noisy or smoothed ones."""
    if not (labels.smoothing or labels.noise):
        return y
    with torch.no_grad(), in_mode(model, "eval"), own_random_state([x], generator):
        logits = at(model)(x[:1])
    target = labels.for_update(y, logits.shape[1], generator)
    return target.to(logits.dtype) if target.is_floating_point() else target


def _start(aim: _Aim, x: Tensor, y: Tensor, within: Any) -> Tree:
    """The whole batch's start."""
    if getattr(aim.by, "restarts", 1) > 1:
        remedy = "Train with restarts=1, or with the whole batch at once in one process."
        raise InputError("attack", "one restart where a batch is worked on in parts", f"{aim.by.restarts}", remedy)
    start = aim.loss.start
    if start is None:
        start = getattr(aim.loss.inner(aim.model, x[:1], y[:1]), "start", None)
    return drawn_start("zero" if start is None else start, x, within, aim.generator)


@dataclass(frozen=True)
class _Climbed:
    """Points, passes, whether no example had a gradient, and the gradient by the weights if it is shared."""

    point: Tensor
    calls: Calls
    missed: bool
    slopes: dict[str, Tensor] | None = None


def _attack(aim: _Aim, x: Tensor, y: Tensor, within: Any, start: Any) -> _Climbed:
    """Attack some examples; without a gradient a part stays at its start, for the rest of the batch may have one."""
    inner = aim.loss.inner(aim.target, x, y)
    by = aim.by if aim.shared is None else replace(aim.by, steps=aim.by.steps - 1)
    try:
        found, missed = perturb(inner, x, within, by=by, start=start, generator=aim.generator), False
    except GradientError:
        if aim.whole:
            return _Climbed(x, Calls(), True)
        found, missed = perturb(inner, x, within, by=PGD(0), start=start, generator=aim.generator), True
    if aim.shared is None:
        return _Climbed(found.point, found.calls, missed)
    return _shared(aim, inner, x, y, within, found)


def _shared(aim: _Aim, inner: Any, x: Tensor, y: Tensor, within: Any, found: Perturbation) -> _Climbed:
    """The last step of an attack, whose pass gives the gradients by the images and by the weights."""
    assert aim.shared is not None
    point = found.point.detach().requires_grad_()
    w = {name: t.detach().requires_grad_() for name, t in weights_of(aim.model, aim.shared.select).items()}
    moved = at(aim.model, w)
    objective = replace(inner, model=moved) if isinstance(inner, LogitObjective) else aim.loss.inner(moved, x, y)
    with torch.enable_grad(), own_random_state([x], aim.generator):
        value = objective(point, None).sum()
        by_point, *by_weights = torch.autograd.grad(value, [point, *w.values()], allow_unused=True)
    slope = torch.zeros_like(point) if by_point is None else by_point
    here = point.detach()
    pairs = zip(w.items(), by_weights, strict=True)
    slopes = {name: torch.zeros_like(t) if g is None else g for (name, t), g in pairs}

    def linear(point: Tensor, rows: Tensor | None) -> Tensor:
        return ((point - here) * slope).flatten(1).sum(1)

    calls = found.calls + Calls(len(x), len(x))
    try:
        last = perturb(linear, x, within, by=replace(aim.by, steps=1), start=found.delta, generator=aim.generator)
    except GradientError:
        return _Climbed(x if aim.whole else here, calls, True, slopes)
    return _Climbed(last.point, calls, False, slopes)


def _require_shareable(by: Any) -> None:
    if not isinstance(by, PGD) or by.steps < 1 or by.momentum or by.restarts > 1 or by.keep != "last":
        remedy = "Use pgd(steps=10), or shared=False."
        raise InputError("attack", "plain PGD of one step or more, for AWP with shared=True", str(by), remedy)
