"""What adversarial training minimises: a loss of clean and adversarial inputs, and the inner objective that made them.

A robust loss is a frozen value with three functions. `inner` is what the attack raises, `outer` what the optimiser
lowers, `weights` is `outer` as an objective of the weights (what AWP raises). To add one: a file like `at.py`, and a line
in `LOSSES`; or a file of your own, named as ``my_loss.py:MyLoss``.

Two more things are optional. ``prepare(model, x, seed)`` gives what is trained instead of the model, such as a module with
a second head, whose attribute `plain` is the model; `needs_unlabelled` says that it is for batches of labelled and
pseudo-labelled images.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol

from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import LogitObjective, Objective, at, scalar


class RobustLoss(Protocol):
    """What the training step asks of a loss."""

    @property
    def start(self) -> Any:
        """What the attack starts from: "sample", "zero" or a `Gaussian`."""
        ...

    @property
    def attack_mode(self) -> Literal["train", "eval"]:
        """The model's mode while it is attacked. Buffers are not touched in either."""
        ...

    def inner(self, model: Any, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]) -> LogitObjective:
        """What the attack raises, for each example."""
        ...

    def outer(self, model: Any, x: Tensor, adversarial: Tensor, y: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """What the optimiser lowers: one number, a mean over the examples; y is labels, or (n, classes) probabilities."""
        ...

    def weights(self, model: nn.Module, x: Tensor, adversarial: Tensor, y: Int[Tensor, " n"]) -> Objective:
        """`outer` as a function of the weights."""
        ...


def of_weights(outer: Callable[..., Tensor], model: nn.Module, x: Tensor, adversarial: Tensor, y: Tensor) -> scalar:
    """A robust loss at fixed inputs, as an objective of the weights; the model's buffers stay as they are."""
    return scalar(lambda w: outer(at(model, w), x, adversarial, y))
