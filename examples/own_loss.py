"""Adversarial logit pairing, ALP (Kannan, Kurakin & Goodfellow 2018), as a loss of one's own; docs/tutorial-own-loss.md."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shaketable as st


@dataclass(frozen=True)
class ALP:
    """Mean CE over clean and adversarial images, plus beta times the mean squared difference of their logits.

    beta = .5 is the example of the authors' code; attack_mode, and both halves in one pass (so that a BatchNorm sees them
    mixed), are its too. Difference: it attacks towards a wrong class, the attack here leads away from the right one.
    """

    beta: float = 0.5
    start: Any = "sample"  # of the attack: uniform in the ball
    attack_mode: Literal["train", "eval"] = "eval"

    def inner(self, model: Any, x: Tensor, y: Tensor) -> st.core.LogitObjective:
        """What the attack raises: the cross-entropy of each example."""
        return st.ce(model, y)

    def outer(self, model: Any, x: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
        """What the optimiser lowers; y is labels, or class probabilities when labels are smoothed."""
        logits = model(torch.cat([x, adversarial]))
        clean, attacked = logits.chunk(2)
        pairing = (clean - attacked).square().mean()
        return F.cross_entropy(logits, torch.cat([y, y])) + self.beta * pairing

    def weights(self, model: nn.Module, x: Tensor, adversarial: Tensor, y: Tensor) -> st.scalar:
        """`outer` as a function of the weights: what AWP raises."""
        return st.scalar(lambda w: self.outer(st.at(model, w), x, adversarial, y))
