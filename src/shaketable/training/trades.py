"""TRADES (Zhang et al. 2019)."""

from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import Gaussian, InputError, LogitObjective, divergence, kl
from ..core import scalar as Scalar
from .losses import of_weights


@dataclass(frozen=True)
class TRADES:
    """Clean cross-entropy plus beta times the divergence: CE(f(x), y) + beta KL(p(x) || p(x')), eq. 5 of Zhang et al. 2019.

    Args:
        beta: 6, the paper's choice for CIFAR-10 (1 / lambda there).
        start: of the attack; .001 Gaussian noise (the authors' code: the divergence has no gradient at x itself).
        attack_mode: "eval", as the authors' code.

    Both passes of `outer` are in the model's mode, so a BatchNorm records two batches a step, as in the authors' code. The
    divergence is averaged over the batch ("batchmean"). Cost of a step with PGD-N: N + 1 forward and N input-backward
    passes, two forward-backward for the weights. Checked by tests/training/test_steps.py.
    """

    beta: float = 6.0
    start: Any = Gaussian(1e-3)
    attack_mode: Literal["train", "eval"] = "eval"

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise InputError("beta", "a number >= 0", str(self.beta), "The paper uses 6 (1 for MNIST).")

    def inner(self, model: Any, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]) -> LogitObjective:
        """The divergence from the clean prediction, for each example; one forward pass to make."""
        return kl(model, x)

    def outer(self, model: Any, x: Tensor, adversarial: Tensor, y: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """CE(f(x), y) + beta KL(p(x) || p(x')), means over the batch; the gradient flows through both."""
        clean = model(x)
        return F.cross_entropy(clean, y) + self.beta * divergence(model(adversarial), clean).mean()

    def weights(self, model: nn.Module, x: Tensor, adversarial: Tensor, y: Int[Tensor, " n"]) -> Scalar:
        """`outer` as a function of the weights."""
        return of_weights(self.outer, model, x, adversarial, y)


def trades(beta: float = 6.0) -> TRADES:
    """TRADES; see the class."""
    return TRADES(beta)
