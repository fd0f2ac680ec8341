"""Losses that lead to a class, and the attacks that try the likeliest ones in turn, as the AutoAttack ensemble does."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.ascent import PGD
from ..core.ball import Ball
from ..core.errors import InputError
from ..core.losses import ce, cross_entropy
from ..core.perturb import Perturbation, perturb
from ..core.places import at

TargetLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
TargetLossName = Literal["dlr-targeted", "ce-targeted"]


def targeted_difference_of_logits_ratio(
    logits: Float[Tensor, "n k"], y: Int[Tensor, " n"], target: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """-(z_y - z_t) / (z_1 - (z_3 + z_4) / 2), of the sorted logits z_1 >= z_2 >= ... (Croce & Hein 2020, eq. 7).

    Positive once the target's logit is above that of the true class, so it leads away from y as well as to t. `core.dlr`
    with targeted=True is another loss: it knows no true class, and lowers the untargeted ratio of the target.

    Needs four classes or more.
    """
    if logits.shape[1] < 4:
        remedy = "Use 'ce-targeted', or an untargeted loss: 'margin' suits any number of classes."
        raise InputError("loss", "four classes or more for the targeted DLR", f"{logits.shape[1]}", remedy)
    top = logits.topk(4, dim=1).values
    gap = logits.gather(1, target[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]
    return gap / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)


def targeted_cross_entropy(
    logits: Float[Tensor, "n k"], y: Int[Tensor, " n"], target: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """log softmax(logits)_t: the target's cross-entropy, to be lowered."""
    return -cross_entropy(logits, target)


TARGET_LOSSES: dict[str, TargetLoss] = {
    "dlr-targeted": targeted_difference_of_logits_ratio,
    "ce-targeted": targeted_cross_entropy,
}


@dataclass(frozen=True)
class Towards:
    """The objective of an attack that leads each example to a class of its own, and is content with any wrong one.

    Args:
        model: from inputs to logits; never changed.
        y, target: the true classes and those to lead to, (n,), which `rows` index.
        loss: (logits, y, target) -> (n,), to be raised.
        stops: whether misclassified examples are finished.
    """

    model: Any
    y: Tensor
    target: Tensor
    loss: TargetLoss
    stops: bool = False

    def __call__(self, point: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.judge(point, rows)[0]

    def judge(self, point: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The values, and which examples are finished; from one forward pass."""
        logits = at(self.model)(point)
        y, target = (self.y, self.target) if rows is None else (self.y[rows], self.target[rows])
        value = self.loss(logits, y, target)
        return value, logits.detach().argmax(1) != y if self.stops else None


def likeliest(logits: Float[Tensor, "n k"], y: Int[Tensor, " n"], count: int) -> Int[Tensor, "n c"]:
    """The classes other than y of the largest logits, first the largest; `count` of them, or all there are."""
    others = logits.scatter(1, y[:, None], -torch.inf).nan_to_num(nan=-torch.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def looked(
    model: Any, x: Tensor, y: Tensor, within: Ball, stop: bool, generator: torch.Generator
) -> tuple[Perturbation, Tensor | None]:
    """x as a perturbation by nothing, with all that `perturb` checks, and its logits: one forward pass."""
    seen: list[Tensor] = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(logits.detach())
        return cross_entropy(logits, labels)

    objective = replace(ce(model, y, stop=stop), loss=loss)
    found = perturb(objective, x, within, by=PGD(steps=0, keep="best"), generator=generator)
    return found, seen[0] if seen else None
