"""Objectives that lead to a class drawn at random, each image's own and never the true one."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import InputError
from ..core.losses import LogitObjective, cross_entropy, logit_margin
from ..core.seeds import generator

TargetLoss = Literal["precise", "ce", "margin"]


def precise_cross_entropy(logits: Float[Tensor, "n k"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Cross-entropy whose log-softmax is computed in float64.

    Once a model is certain of the target, float32 gives a loss of exactly 0 and gradients whose signs are rounding noise:
    on ImageNet models after 40 to 60 steps. In float64 that happens when the logits are some 37 apart, instead of 17.
    """
    return F.cross_entropy(logits.double(), y, reduction="none")


TARGET_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "precise": precise_cross_entropy,
    "ce": cross_entropy,
    "margin": logit_margin,
}


def other_class(draws: Float[Tensor, " n"], y: Int[Tensor, " n"], classes: int) -> Int[Tensor, " n"]:
    """A class other than y for each number in [0, 1): uniform if the numbers are."""
    if classes < 2:
        raise InputError("model", "two classes or more", f"{classes}", "There is no class to lead to.")
    chosen = (draws * (classes - 1)).floor().long().clamp(max=classes - 2)
    return chosen + (chosen >= y)


def target_classes(classes: int, y: Int[Tensor, " n"], seed: int) -> Int[Tensor, " n"]:
    """The classes that images are led to by a seed: of each image the same in every region and on every model."""
    draws = torch.rand(len(y), generator=generator(seed, "regional"), dtype=torch.float64).to(y.device)
    return other_class(draws, y, classes)


class Towards:
    """The loss of the target class, to be lowered: an `Objective` that remembers the logits of its latest look.

    Args:
        model: from inputs to logits; left as it is.
        y: true labels (n,).
        draws: a number in [0, 1) for each image, which chooses its target once the number of classes is seen.
        loss: see `TARGET_LOSSES`.
        target: the targets themselves, instead of draws.
        stops: examples are finished when the model no longer gives the true class.
    """

    def __init__(
        self,
        model: Any,
        y: Tensor,
        draws: Tensor,
        loss: TargetLoss,
        *,
        target: Tensor | None = None,
        stops: bool = False,
    ) -> None:
        if loss not in TARGET_LOSSES:
            raise InputError("loss", f"one of {', '.join(TARGET_LOSSES)}", repr(loss), "Choose one of them.")
        self.y, self.draws, self.stops, self.chosen = y, draws, stops, target
        self.logits: Tensor = draws.new_zeros(0, 0)
        self._lower = TARGET_LOSSES[loss]
        named = y if target is None else torch.stack([y, target])
        self._inner = LogitObjective(model, y, self._remember, classes=int(named.max()) + 1 if len(y) else 0)

    @property
    def classes(self) -> int:
        """How many the model has; known after the first look."""
        return self.logits.shape[1]

    def target(self, rows: Tensor | None = None) -> Int[Tensor, " k"]:
        """The targets of some rows."""
        index = slice(None) if rows is None else rows
        if self.chosen is not None:
            return self.chosen[index]
        return other_class(self.draws[index], self.y[index], self.classes)

    def _remember(self, logits: Tensor, y: Tensor) -> Tensor:
        self.logits = logits
        return logits.new_zeros(len(y))

    def judge(self, point: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Minus the loss of the target, and which examples are no longer given their true class; one forward pass."""
        self._inner.judge(point, rows)  # looks, with its checks
        logits, target = self.logits, self.target(rows)
        self.logits = logits.detach()
        y = self.y if rows is None else self.y[rows]
        return -self._lower(logits, target), self.logits.argmax(1) != y

    def __call__(self, point: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.judge(point, rows)[0]
