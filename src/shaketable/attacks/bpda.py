"""Backward pass differentiable approximation: attacks through what has no useful gradient (Athalye et al. 2018b)."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.errors import InputError


class BPDA(nn.Module):
    """A transform whose gradient is that of another function; see `bpda`."""

    def __init__(self, transform: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.transform: Any = transform
        self.substitute: Any = backward
        self.training = any(getattr(part, "training", False) for part in (transform, backward))

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The transform's value, bit for bit."""
        with torch.no_grad():
            value = self.transform(x.detach())
        if not x.requires_grad or not torch.is_grad_enabled():
            return value
        stand_in = x if self.substitute is None else self.substitute(x)
        if not isinstance(value, Tensor) or value.shape != stand_in.shape:
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            name = "inputs" if self.substitute is None else "substitute's values"
            remedy = "Give `backward` a function that maps inputs to the transform's shape."
            raise InputError("transform", f"the shape of the {name}, {tuple(stand_in.shape)}", found, remedy)
        return _Swap.apply(stand_in, value)  # pyright: ignore


def bpda(transform: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor] | None = None) -> BPDA:
    """A transform (rounding, JPEG, thresholds, a projection by a generator) through which gradients pass.

    Forward it is the transform, backward the substitute: ``nn.Sequential(bpda(quantise), net)`` is a model that gradient
    attacks break although `quantise` has no gradient (Athalye et al. 2018b, section 4.1; with the identity, 4.1.1).

    Args:
        transform: of inputs; called without gradient, so it may leave torch.
        backward: a differentiable function near the transform; None is the identity, for transforms that hardly change their
            input, as defences do: t(x) is near x.

    Cost: one call of the transform a pass, and one of the substitute where a gradient is asked for.

    Raises:
        InputError: when it is called, a value of another shape than the substitute's.

    Checked by tests/attacks/test_eot_and_bpda.py: values bit for bit, gradients those of the substitute, PGD through
    rounding.
    """
    return BPDA(transform, backward)


class _Swap(torch.autograd.Function):
    """The second argument, with the gradient of the first."""

    generate_vmap_rule = True

    @staticmethod
    def forward(stand_in: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].to(ctx.dtype), None


# Function.apply binds arguments by the signature at each call; made once, it need not be worked out a thousand times.
_Swap.forward.__signature__ = inspect.signature(_Swap.forward)  # pyright: ignore
