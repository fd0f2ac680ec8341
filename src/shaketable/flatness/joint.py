"""The joint place of the worst case: weights and the inputs of a batch, which climb with the gradients of one pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..core import GradientError, Tree, ce
from ..core.tree import leaves, map_leaves, rebuild
from .loss_at import LossAt


@dataclass(frozen=True)
class Paced:
    """A constraint set in which a step of an ascent is so many radii long, so that each part of a joint place has its own.

    Args:
        inner: the set.
        pace: multiplies the ascent's step.
    """

    inner: Any
    pace: float

    def on(self, origin: Tree) -> "Paced":
        """The same, with the set shaped for an origin."""
        return Paced(self.inner.on(origin), self.pace)

    def rows(self, index: Tensor) -> "Paced":
        """The same, with the set of some of the examples."""
        return Paced(self.inner.rows(index), self.pace)

    def reach(self, origin: Tree) -> Any:
        """How far a step of 1 goes."""
        return map_leaves(lambda reach: reach * self.pace, self.inner.reach(origin))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)


@dataclass(frozen=True)
class MeanLoss:
    """The mean loss as an objective of the joint place {"weights": ..., "inputs": ...}, or of the weights alone.

    Args:
        of: whose images and batches; with several, each batch's graph is freed before the next one's, so that memory is
            that of a batch.

    Cost of a call: one forward and one backward pass to weights and inputs. Returns shape (1,).
    """

    of: LossAt

    def __call__(self, point: dict[str, Any], rows: Tensor | None = None) -> Tensor:
        return _InParts.apply(self._shares, point, *leaves(point)).reshape(1)  # pyright: ignore[reportOptionalMemberAccess]

    def losses(self, point: dict[str, Any]) -> Iterator[Tensor]:
        """The losses of each batch's images at a point."""
        function, inputs, first = self.of.function(point["weights"]), point.get("inputs", self.of.x), 0
        for batch in self.of.batches():
            last = first + len(batch.x)
            yield ce(function, batch.y)(inputs[first:last])
            first = last

    def _shares(self, point: dict[str, Any]) -> Iterator[Tensor]:
        for losses in self.losses(point):
            yield losses.sum() / len(self.of.x)


class _InParts(torch.autograd.Function):
    """A sum of parts, whose gradient is taken part by part on the way forward."""

    @staticmethod
    def forward(ctx: Any, parts: Any, point: Any, *tensors: Tensor) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        own = [tensor.detach().requires_grad_(wanted) for tensor in tensors]
        slopes = [torch.zeros_like(tensor) for tensor in own] if wanted else []
        total = 0.0
        with torch.set_grad_enabled(wanted):
            for value in parts(rebuild(point, own)):
                total = total + value.detach()
                if wanted:
                    _require_differentiable(value)
                    found = torch.autograd.grad(value, own, allow_unused=True)
                    slopes = [s if f is None else s + f for s, f in zip(slopes, found, strict=True)]
        ctx.save_for_backward(*slopes)
        return torch.as_tensor(total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return None, None, *(upstream[0] * slope for slope in ctx.saved_tensors)


def _require_differentiable(value: Tensor) -> None:
    if not value.requires_grad:
        raise GradientError(
            "model", "a loss that can be differentiated by the weights", "a detached value",
            "Remove detach(), no_grad() or numpy() on the way.",
        )  # fmt: skip


def joint_ball(within: Any, step: float, ball: Any, weight_step: float, *, inputs: bool) -> dict[str, Any]:
    """The constraint of the joint place, whose parts take steps of their own (in units of their radii)."""
    weights = {"weights": Paced(ball, weight_step)}
    return weights | ({"inputs": Paced(within, step)} if inputs else {})
