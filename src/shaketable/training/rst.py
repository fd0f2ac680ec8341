"""RST, robust self-training on labelled and pseudo-labelled images (Carmon et al., NeurIPS 2019)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import Gaussian, LogitObjective
from ..core import scalar as Scalar
from .trades import TRADES


@dataclass(frozen=True)
class RST:
    """TRADES' loss on labelled images plus that on pseudo-labelled ones, of weight 1 (RST_adv of Carmon et al. 2019).

    A batch holds both kinds; a pseudo-label, made before by a model trained without attacks, is treated as a label. Which
    images fill the batch, and in what share, is the training's business: `needs_unlabelled` asks for it. The share is half
    of each batch, as the authors' code; over a batch with as many of each kind, the weight 1 is a mean over all.

    Args:
        beta: 6, as the authors' code (recalled); see `TRADES`.
        start, attack_mode: of the attack; see `TRADES`, whose code the authors built on.

    Cost and BatchNorm as `TRADES`, on as many images as the whole batch has. Checked by tests/training/test_rst.py.
    """

    beta: float = 6.0
    start: Any = Gaussian(1e-3)
    attack_mode: Literal["train", "eval"] = "eval"
    needs_unlabelled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._trades()

    def inner(self, model: Any, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]) -> LogitObjective:
        """The divergence from the clean prediction, for each example; one forward pass to make. No label is used."""
        return self._trades().inner(model, x, y)

    def outer(self, model: Any, x: Tensor, adversarial: Tensor, y: Tensor) -> Float[Tensor, ""]:
        """TRADES' loss, a mean over labelled and pseudo-labelled examples alike."""
        return self._trades().outer(model, x, adversarial, y)

    def weights(self, model: nn.Module, x: Tensor, adversarial: Tensor, y: Tensor) -> Scalar:
        """`outer` as a function of the weights."""
        return self._trades().weights(model, x, adversarial, y)

    def _trades(self) -> TRADES:
        return TRADES(self.beta, self.start, self.attack_mode)


def rst(beta: float = 6.0) -> RST:
    """RST; see the class."""
    return RST(beta)
