"""MART, misclassification aware adversarial training (Wang et al., ICLR 2020)."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import Gaussian, InputError, LogitObjective, ce, divergence
from ..core import scalar as Scalar
from .losses import of_weights


@dataclass(frozen=True)
class MART:
    """Wang et al. 2020: BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x)), means over the batch; the attack raises CE.

    BCE(p, y) = -log p_y - log(1 - max_{k != y} p_k), the boosted cross-entropy: the second term is a margin. The weight
    1 - p_y(x) makes examples that are misclassified without an attack count more. Facts of the code were read in it, those
    of the paper's text are recalled.

    Args:
        beta: lambda in the paper; 5, the paper's and that of the authors' script for ResNet-18. Their script for
            WRN-34-10, and the default of their function, has 6.
        offset: added to 1 - max p inside the margin's logarithm. 0 is the paper's; 1e-4 the authors' code, which so caps
            the term at 9.2 and lets its gradient vanish for examples that are misclassified with confidence.
        start: of the attack; .001 Gaussian noise, as the authors' code. The paper's random start is "sample".
        attack_mode: "eval", as the authors' code.

    The gradient flows through the clean and the adversarial pass, the weight 1 - p_y(x) included, as in the authors' code.
    Both passes of `outer` are in the model's mode, so a BatchNorm records two batches a step. 1 - p_m is taken as the sum
    of the other probabilities, in logarithms: exact, and with a gradient, however confident the model is. The authors
    add 1e-12 to probabilities inside logarithms and 1e-7 to 1 - p_y(x) instead, which with offset=1e-4 makes a relative
    difference of less than 1e-6 at ordinary logits.

    Class probabilities as y (smoothed labels): the first term is their expectation; the margin and the weight, which are
    about one class, take the most probable.

    With AWP the radius is .005. MART-AWP can collapse to a single class (MAIR's WRN-34-10 ended at 10 %): warm up. Cost of
    a step with PGD-N: N forward and N input-backward passes, two forward-backward for the weights. Checked by
    tests/training/test_mart.py.
    """

    beta: float = 5.0
    offset: float = 0.0
    start: Any = Gaussian(1e-3)
    attack_mode: Literal["train", "eval"] = "eval"

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise InputError("beta", "a finite number >= 0", str(self.beta), "The paper uses 5.")
        if not 0 <= self.offset < 1:
            raise InputError("offset", "a number in [0, 1)", str(self.offset), "Use 0, or the authors' 1e-4.")

    def inner(self, model: Any, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]) -> LogitObjective:
        """Cross-entropy, for each example."""
        return ce(model, y)

    def outer(self, model: Any, x: Tensor, adversarial: Tensor, y: Tensor) -> Float[Tensor, ""]:
        """The loss, a mean over the batch; y is labels (n,) or class probabilities (n, classes)."""
        clean, attacked = model(x), model(adversarial)
        if attacked.shape[1] < 2:
            raise InputError("model", "logits of two classes or more for MART", f"{attacked.shape[1]}", "Use AT.")
        label = y if y.dim() == 1 else y.argmax(1)
        boosted = F.cross_entropy(attacked, y) - self._log_room(attacked, label).mean()
        doubt = _log_without(clean, label).exp()
        return boosted + self.beta * (divergence(attacked, clean) * doubt).mean()

    def weights(self, model: nn.Module, x: Tensor, adversarial: Tensor, y: Tensor) -> Scalar:
        """`outer` as a function of the weights."""
        return of_weights(self.outer, model, x, adversarial, y)

    def _log_room(self, logits: Float[Tensor, "n k"], label: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """log(1 - max_{k != y} p_k + offset)."""
        rival = logits.detach().scatter(1, label[:, None], -torch.inf).argmax(1)
        room = _log_without(logits, rival)
        return room if self.offset == 0 else torch.logaddexp(room, room.new_tensor(math.log(self.offset)))


def _log_without(logits: Float[Tensor, "n k"], label: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """log(1 - p_label), as the logarithm of the sum of the other probabilities."""
    return logits.log_softmax(1).scatter(1, label[:, None], -torch.inf).logsumexp(1)


def mart(beta: float = 5.0) -> MART:
    """MART; see the class."""
    return MART(beta)
