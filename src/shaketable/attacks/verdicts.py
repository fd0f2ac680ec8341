"""Which images a model gets wrong."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.errors import InputError
from ..core.places import at
from ..core.seeds import own_random_state

BATCH = 100


def wrong(model: Any, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """The images whose largest logit is not the true class, or whose logits are not all finite; one forward pass an image.

    Raises:
        InputError: logits of another shape than (n, classes).
    """
    if not len(x):
        return torch.zeros_like(y, dtype=torch.bool)
    logits = logits_of(model, x)
    return ~(torch.isfinite(logits).all(1) & (logits.argmax(1) == y))


def logits_of(model: Any, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
    """The logits of at least one image, in batches; the model is left as it is.

    Raises:
        InputError: logits of another shape than (n, classes).
    """
    found: list[Tensor] = []
    with torch.inference_mode(False), torch.no_grad(), own_random_state([x]):
        for part in x.split(BATCH):
            logits = at(model)(part)
            if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(part):
                shape = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
                raise InputError("model", f"logits of shape ({len(part)}, classes)", shape, "Return the logits alone.")
            found.append(logits)
    return torch.cat(found)
