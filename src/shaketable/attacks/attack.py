"""What an attack is: anything that can be asked for points of a ball at which a model errs."""

from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.ball import Ball
from ..core.perturb import Perturbation


class Attack(Protocol):
    """What evaluation, flatness and training ask of an attack: a call that returns a `Perturbation`.

    Any callable with this signature serves; those of this package are frozen values, so that a config can hold them.

    Args:
        model: from inputs to logits. It must be left as it is.
        x: inputs (n, ...), within the ball's box.
        y: labels (n,), int64.
        within: the perturbations that are allowed, a ball per example.
        generator: the only source of randomness.

    The points that are returned must lie in the ball and its box; `evaluate` checks them and discards those that do not.

    One further method is optional: ``until_fooled()``, the same attack as a value that drops images once they are
    misclassified. An evaluation of accuracy uses it, because it then does no work on images that are already lost. Without
    it an attack simply runs to its end.
    """

    def __call__(
        self,
        model: object,
        x: Float[Tensor, "n ..."],
        y: Int[Tensor, " n"],
        within: Ball,
        *,
        generator: torch.Generator,
    ) -> Perturbation: ...
