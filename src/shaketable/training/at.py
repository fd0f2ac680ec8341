"""Adversarial training, AT (Madry et al. 2018)."""

from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import LogitObjective, ce
from ..core import scalar as Scalar
from .losses import of_weights


@dataclass(frozen=True)
class AT:
    """Cross-entropy at the adversarial point: min_w mean max_{x'} CE(f_w(x'), y), eq. 2.1 of Madry et al. 2018.

    Args:
        start: of the attack; "sample", uniform in the ball, as the paper.
        attack_mode: "train", as the paper's and AWP's authors' loops; buffers are not touched.

    Difference from the authors' loops: the attack's passes do not move BatchNorm's running statistics; the training pass
    alone does. Cost of a step with PGD-N: N forward and N input-backward passes, and one forward-backward for the weights.
    Checked by tests/training/test_steps.py.
    """

    start: Any = "sample"
    attack_mode: Literal["train", "eval"] = "train"

    def inner(self, model: Any, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]) -> LogitObjective:
        """Cross-entropy, for each example."""
        return ce(model, y)

    def outer(self, model: Any, x: Tensor, adversarial: Tensor, y: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Mean cross-entropy at the adversarial points; x is not used."""
        return F.cross_entropy(model(adversarial), y)

    def weights(self, model: nn.Module, x: Tensor, adversarial: Tensor, y: Int[Tensor, " n"]) -> Scalar:
        """`outer` as a function of the weights."""
        return of_weights(self.outer, model, x, adversarial, y)


def at() -> AT:
    """Adversarial training; see `AT`."""
    return AT()
