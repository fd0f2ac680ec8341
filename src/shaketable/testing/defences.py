"""Deliberately broken defences: each looks robust to a careless evaluation, and none is. Lints must catch them.

`DEFENCES` maps a name to a function that wraps a model, and `CAUGHT_BY` to the lints of which at least one must speak. They
are for those who write lints, attacks or evaluations; never put one before anything that matters.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Wrapped(nn.Module):
    """A model with something done to its inputs, its outputs, or both."""

    def __init__(
        self, model: nn.Module, before: Callable[[Tensor], Tensor] = nn.Identity(), after: Any = nn.Identity()
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.before, self.after = model, before, after
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits, or what the defence makes of them."""
        return self.after(self.model(self.before(x)))


class _Reversed(torch.autograd.Function):
    """Forward nothing, backward the opposite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class _Masked(torch.autograd.Function):
    """Forward nothing, backward noise that has nothing to do with the loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        source = torch.Generator().manual_seed(0)
        noise = torch.randn(gradients[0].shape, generator=source, dtype=torch.float32)
        return noise.to(gradients[0]) * gradients[0].abs().mean()


def softmax_output(model: nn.Module) -> nn.Module:
    """Probabilities for logits: the cross-entropy takes a second softmax of them, whose gradient is small."""
    return Wrapped(model, after=lambda z: z.softmax(1))


def quantised_input(model: nn.Module) -> nn.Module:
    """Inputs rounded to 8 levels: the gradient is 0 everywhere (Guo et al. 2018, broken by Athalye et al. 2018)."""
    return Wrapped(model, before=lambda x: (x * 7).round() / 7)


def zero_gradients(model: nn.Module) -> nn.Module:
    """Logits rounded to whole numbers: the gradient is 0, although autograd has one."""
    return Wrapped(model, after=torch.round)


def masked_gradients(model: nn.Module) -> nn.Module:
    """A backward pass that returns noise."""
    return Wrapped(model, before=_Masked.apply)


def randomised(model: nn.Module) -> nn.Module:
    """Noise on the inputs at every pass (Xie et al. 2018 and others, broken by Athalye et al. 2018)."""
    return Wrapped(model, before=lambda x: x + 0.1 * torch.randn_like(x))


def argmax_output(model: nn.Module) -> nn.Module:
    """The class alone, as a one-hot vector."""
    return Wrapped(model, after=lambda z: 10.0 * nn.functional.one_hot(z.argmax(1), z.shape[1]).to(z))


def detached(model: nn.Module) -> nn.Module:
    """Logits cut from the graph; what is left is connected and 0."""
    return Wrapped(model, before=lambda x: x.detach() + 0.0 * x)


def scaled_logits(model: nn.Module) -> nn.Module:
    """Logits times 1000: the softmax saturates in float32, and the gradient of the cross-entropy underflows (Carlini & Wagner
    2017 of defensive distillation)."""
    return Wrapped(model, after=lambda z: 1000.0 * z)


def inverted_targets(model: nn.Module) -> nn.Module:
    """A gradient of the wrong sign, as of an attack that takes labels for targets: it makes the model surer."""
    return Wrapped(model, before=_Reversed.apply)


DEFENCES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "softmax output": softmax_output,
    "quantised input": quantised_input,
    "zero gradients": zero_gradients,
    "masked gradients": masked_gradients,
    "randomised": randomised,
    "argmax output": argmax_output,
    "detached": detached,
    "scaled logits": scaled_logits,
    "inverted targets": inverted_targets,
}

CAUGHT_BY: Mapping[str, frozenset[str]] = {
    "softmax output": frozenset({"probabilities"}),
    "quantised input": frozenset({"gradients", "search"}),
    "zero gradients": frozenset({"gradients", "search"}),
    "masked gradients": frozenset({"search", "rising", "unbounded"}),
    "randomised": frozenset({"random"}),
    "argmax output": frozenset({"gradients", "search"}),
    "detached": frozenset({"gradients", "search"}),
    "scaled logits": frozenset({"saturated", "restarts", "search"}),
    "inverted targets": frozenset({"rising", "search", "unbounded"}),
}
