"""Several models as one, for examples that transfer (Liu et al. 2017; Dong et al. 2018, section 3.3)."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.errors import InputError
from ..core.losses import cross_entropy
from ..core.places import at
from .minimal import require_labels

Fuse = Literal["logits", "probabilities", "loss"]


class Ensemble(nn.Module):
    """Several models as one; see `ensemble`."""

    def __init__(self, models: Sequence[Any], weights: Sequence[float], fuse: Fuse) -> None:
        super().__init__()
        modules = [model for model in models if isinstance(model, nn.Module)]
        self.modules_of = nn.ModuleList(modules)  # so that they move and are copied with the ensemble
        self.models: list[Any] = list(models) if len(modules) < len(models) else []
        self.weights, self.fuse = tuple(weights), fuse
        self.training = self.modules_of.training = any(module.training for module in modules)

    def members(self) -> list[Any]:
        """The models, in their order."""
        modules = iter(self.modules_of)
        if not self.models:
            return list(modules)
        return [next(modules) if isinstance(model, nn.Module) else model for model in self.models]

    def all_logits(self, x: Tensor) -> list[Tensor]:
        """The logits of each model."""
        found = [at(model)(x) for model in self.members()]
        shapes = {tuple(logits.shape) for logits in found}
        if len(shapes) > 1:
            remedy = "Leave out those with other classes, or map their logits to the same ones."
            raise InputError("models", "logits of one shape from all models", f"{sorted(shapes)}", remedy)
        return found

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n k"]:
        """The fused logits."""
        found = self.all_logits(x)
        if self.fuse == "logits":
            return sum(w * logits for w, logits in zip(self.weights, found, strict=True))  # pyright: ignore
        logs = [logits.log_softmax(1) for logits in found]
        if self.fuse == "loss":
            return sum(w * log for w, log in zip(self.weights, logs, strict=True))  # pyright: ignore
        weights = torch.tensor(self.weights, dtype=logs[0].dtype, device=logs[0].device)
        return (torch.stack(logs) + weights.log()[:, None, None]).logsumexp(0)


def ensemble(models: Sequence[Any], weights: Sequence[float] | None = None, fuse: Fuse = "logits") -> Ensemble:
    """Several models of the same classes as one, against which an attack is made that is to fool yet another.

    Args:
        models: from inputs to logits; left as they are.
        weights: of the models, positive; scaled to sum to 1. None: equal.
        fuse: what is averaged: "logits" (Dong et al. 2018, the best of the three there); "probabilities", whose logarithm is
            returned (Liu et al. 2017); "loss": `TransferableAttack` then raises the weighted sum of the models'
            cross-entropies, exactly; as a model for any other attack it is the weighted mean of the log-probabilities, whose
            cross-entropy is that sum less a term that does not depend on the label.

    Cost: a pass is one of each model, and counted once.

    Raises:
        InputError: no models, as many weights as models not given, weights that are not positive; when it is called, models
            with different numbers of classes.

    Checked by tests/attacks/test_transferable.py: each fusion against the formula.
    """
    models = list(models)
    if not models or not all(callable(model) for model in models):
        found = "none" if not models else str([type(model).__name__ for model in models][:4])
        raise InputError("models", "one model or more", found, "Give a list of models.")
    if fuse not in get_args(Fuse):
        raise InputError("fuse", f"one of {', '.join(get_args(Fuse))}", repr(fuse), "Choose one of them.")
    given = [1.0] * len(models) if weights is None else [float(w) for w in weights]
    if len(given) != len(models) or not all(0 < w < float("inf") for w in given):
        found = str(given[:6])
        raise InputError("weights", f"{len(models)} positive numbers", found, "Give one for each model, or none.")
    return Ensemble(models, [w / sum(given) for w in given], fuse)


class SummedLoss:
    """The weighted sum of the cross-entropies of an ensemble's models, as an objective.

    Args:
        inputs: what the models see instead of a point (its smoothed or resized version).
    """

    def __init__(
        self, models: Ensemble, y: Tensor, inputs: Callable[[Tensor], Tensor], *, targeted: bool, stops: bool
    ) -> None:
        self.models, self.y, self.inputs, self.targeted, self.stops = models, y, inputs, targeted, stops

    def __call__(self, point: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.judge(point, rows)[0]

    def judge(self, point: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The values, and which examples the mean of the log-probabilities takes as wanted."""
        y, found = self.y if rows is None else self.y[rows], self.models.all_logits(self.inputs(point))
        require_labels(y, found[0])
        losses = [w * cross_entropy(logits, y) for w, logits in zip(self.models.weights, found, strict=True)]
        value = torch.stack(losses).sum(0)
        if not self.stops:
            return -value if self.targeted else value, None
        with torch.no_grad():
            logs = [w * logits.log_softmax(1) for w, logits in zip(self.models.weights, found, strict=True)]
            hit = torch.stack(logs).sum(0).argmax(1) == y
        return (-value, hit) if self.targeted else (value, ~hit)
