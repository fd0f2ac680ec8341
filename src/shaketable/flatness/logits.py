"""What can be done to logits before a loss is taken of them, so that it does not see their scale."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

LogitScale = Literal["deviation", "length", "plain"]


def by_deviation(logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Centred and divided by their standard deviation over the k classes (Andriushchenko et al. 2023, section 3).

    Equal logits give zeros. The mean that is taken off changes no softmax.
    """
    return by_length(logits) * logits.shape[1] ** 0.5


def by_length(logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Centred and divided by their length, as the authors' code does: sqrt(k) smaller than by their deviation."""
    centred = logits - logits.mean(1, keepdim=True)
    return centred / torch.linalg.vector_norm(centred, dim=1, keepdim=True).clamp(min=1e-10)


LOGITS: dict[LogitScale, Callable[[Tensor], Tensor] | None] = {
    "deviation": by_deviation,
    "length": by_length,
    "plain": None,
}
