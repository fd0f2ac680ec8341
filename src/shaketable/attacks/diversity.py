"""What transfer attacks do to the input inside the gradient: random resizing (DI), smoothing of the gradient (TI)."""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..core.errors import InputError


def resized(x: Float[Tensor, "n c h w"], probability: float, shrink: float) -> Float[Tensor, "n c h w"]:
    """With a probability, the images at a random smaller size, padded with 0 at a random place to their own.

    One draw for the batch, from torch's global generator. Each edge becomes r times as long, r uniform over whole
    pixels from `shrink` to 1; bilinear, where the authors' code takes the nearest pixel.
    """
    chance, size, top, left = torch.rand(4).tolist()
    if chance >= probability:
        return x
    height, width = x.shape[2:]
    low = round(shrink * height)
    new = min(low + int(size * (height - low + 1)), height)
    narrow = max(1, round(width * new / height))
    small = F.interpolate(x, (new, narrow), mode="bilinear", align_corners=False)
    above, before = int(top * (height - new + 1)), int(left * (width - narrow + 1))
    return F.pad(small, (before, width - narrow - before, above, height - new - above))


def gaussian_kernel(size: int) -> Float[Tensor, "s s"]:
    """A Gaussian on size x size pixels that sums to 1, whose edge is three standard deviations away, in float64.

    So does the authors' code; by the paper's formula the edge is sqrt(3) of them away.
    """
    if size < 1 or size % 2 == 0:
        raise InputError("smoothing", "an odd number of pixels", str(size), "The paper uses 15; 0 is none.")
    line = (
        torch.exp(-0.5 * torch.linspace(-3, 3, size, dtype=torch.float64) ** 2) if size > 1 else torch.ones(1).double()
    )
    kernel = torch.outer(line, line)
    return kernel / kernel.sum()


def smoothed(gradient: Float[Tensor, "n c h w"], kernel: Float[Tensor, "s s"]) -> Float[Tensor, "n c h w"]:
    """Each channel convolved with the kernel, beyond the edge 0."""
    channels = gradient.shape[1]
    weight = kernel.to(gradient).expand(channels, 1, *kernel.shape)
    return F.conv2d(gradient, weight, padding=kernel.shape[0] // 2, groups=channels)


class Smoothed(torch.autograd.Function):
    """The identity, whose gradient is smoothed."""

    @staticmethod
    def forward(x: Tensor, kernel: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return smoothed(gradients[0], ctx.saved_tensors[0]), None


# Function.apply binds arguments by the signature at each call; made once, it need not be worked out a thousand times.
Smoothed.forward.__signature__ = inspect.signature(Smoothed.forward)  # pyright: ignore
