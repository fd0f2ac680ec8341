"""The second part of a step: the worst weights near w for the adversarial points, over all parts and processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core import PGD, Calls, GradientError, scalar
from ..core import weights as weights_of
from ..core.perturb import search
from .awp import WeightPerturbation
from .inputs import Attacked
from .losses import RobustLoss
from .processes import Processes


@dataclass(frozen=True)
class Shaken:
    """A perturbation of the weights; None where there was no gradient to follow. `calls` counts its passes in examples."""

    delta: Mapping[str, Tensor] | None
    calls: Calls


def shake(
    model: nn.Module,
    loss: RobustLoss,
    batch: Attacked,
    weights: WeightPerturbation,
    *,
    processes: Processes,
    generator: torch.Generator,
) -> Shaken:
    """Find v for the batch of all processes, or with ``weights.sync == "local"`` for this process' share of it.

    Cost: with direction="gradient" one forward-backward by the weights for each step of ``weights.by``; with shared=True
    no pass (the attack paid Bw); with direction="random" none.
    """
    together = weights.sync == "global" and processes.count > 1
    examples = sum(len(part.x) for part in batch.parts)
    origin = weights_of(model, weights.select)
    by, start = weights.by, None
    if weights.direction == "random":
        objective: Any = scalar(lambda w: next(iter(w.values())).sum())
        by, start = PGD(0), "sample"
    elif weights.shared:
        slopes = batch.slopes or {name: torch.zeros_like(t) for name, t in origin.items()}
        if together:
            processes.add(list(slopes.values()))
        objective = _Linear([slopes[name] for name in origin])
    else:
        values = [(loss.weights(model, p.x, p.adversarial, p.target), p.share) for p in batch.parts]
        alone = len(values) == 1 and not together
        objective = values[0][0] if alone else _Combined(values, processes if together else None)
    try:
        found = search(objective, origin, weights.within, by=by, start=start, generator=generator)
    except GradientError:
        return Shaken(None, Calls())
    spent = Calls() if weights.shared else found.calls
    delta: Any = found.delta
    return Shaken(delta, Calls(spent.forward * examples, spent.backward * examples))


@dataclass(frozen=True)
class _Linear:
    """An objective of the weights of which the gradient alone is known; its value is 0."""

    slopes: list[Tensor]

    def __call__(self, point: dict[str, Tensor], rows: Tensor | None = None) -> Tensor:
        leaves = list(point.values())
        return _Known.apply(leaves[0].new_zeros(1), self.slopes, *leaves)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class _Combined:
    """The mean of an objective over the parts of a batch, one part after the other, so that only one is in memory."""

    parts: list[tuple[Any, float]]
    processes: Processes | None

    def __call__(self, point: dict[str, Tensor], rows: Tensor | None = None) -> Tensor:
        leaves = list(point.values())
        total = leaves[0].new_zeros(1)
        slopes = [torch.zeros_like(leaf) for leaf in leaves]
        for objective, share in self.parts:
            here = {name: leaf.detach().requires_grad_() for name, leaf in point.items()}
            with torch.enable_grad():
                value = objective(here, None).sum() * share
                found = torch.autograd.grad(value, list(here.values()), allow_unused=True)
            total += value.detach()
            for slope, g in zip(slopes, found, strict=True):
                if g is not None:
                    slope += g
        if self.processes is not None:
            self.processes.add([total, *slopes])
        return _Known.apply(total, slopes, *leaves)  # pyright: ignore[reportReturnType]


class _Known(torch.autograd.Function):
    """A value whose gradient has been computed already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, slopes: list[Tensor], *_leaves: Tensor) -> Tensor:  # pyright: ignore
        ctx.slopes = slopes
        return value.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:  # pyright: ignore
        return (None, None, *(ctx.slopes if bool(slope == 1) else [slope * g for g in ctx.slopes]))
