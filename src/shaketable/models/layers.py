"""What comes before a network: the image's resizing and its normalisation, as layers, so that attacks see through them.

Everything in the package gives images in [0, 1]; what the network was trained on is the model's own affair.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shaketable.core.errors import InputError


class Normalise(nn.Module):
    """(x - mean) / std for every channel.

    Args:
        mean, std: one number a channel, in units of the [0, 1] range; std > 0. Statistics quoted for 0..255 are divided
            by 255 first.

    The numbers are buffers, so they follow the model's device, but not part of its state dict: a checkpoint keeps them in
    its specification. They are cast to the image's dtype. Cost: two passes over the pixels.

    Raises:
        InputError: mean and std that do not fit each other, or an image with another number of channels. (Broadcasting
            would turn a grey image into a colour one without a word.)

    Checked by tests/models/test_contract.py.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        means, stds = check_statistics(mean, std)
        self.register_buffer("mean", torch.tensor(means).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(stds).view(-1, 1, 1), persistent=False)
        self.statistics = (means, stds)

    def forward(self, x: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
        channels = len(self.statistics[0])
        if x.ndim < 3 or x.shape[-3] != channels:
            raise InputError(
                "x",
                f"images of {channels} channel{'s' * (channels > 1)}, (n, {channels}, h, w)",
                f"shape {tuple(x.shape)}",
                "Convert the images, or give a mean and a std for every channel that they have.",
            )
        return (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)

    def extra_repr(self) -> str:
        return "mean={}, std={}".format(*self.statistics)


class Resize(nn.Module):
    """Bilinear resizing with antialiasing to (h, w), differentiable; images of that size pass unchanged.

    Args:
        size: (h, w) in pixels.

    For a model that is attacked on images of another size than its own: the perturbation lives on the images given, and
    the gradient flows through the resizing. Checked by tests/models/test_contract.py.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = (int(size[0]), int(size[1]))
        if min(self.size) < 1:
            raise InputError("size", "(h, w) of at least 1 pixel", str(size), "Give the model's image size.")

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c i j"]:
        if tuple(x.shape[-2:]) == self.size:
            return x
        return nn.functional.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=True)

    def extra_repr(self) -> str:
        return f"size={self.size}"


class Wrapped(nn.Module):
    """A network with its resizing and normalisation before it: `network(normalise(resize(x)))`, each where given.

    Args:
        network: maps normalised images to logits; its parameters are named `network.…`.
        mean, std: of `Normalise`; both empty: none.
        resize: the size of `Resize`; None: none.

    The wrapper is in training mode exactly if the network is. Checked by tests/models/test_contract.py.
    """

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        *,
        resize: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.resize = Resize(resize) if resize is not None else None
        self.normalise = Normalise(mean, std) if len(mean) or len(std) else None
        self.network = network
        self.training = network.training
        for layer in (self.resize, self.normalise):
            if layer is not None:
                layer.training = network.training

    def forward(self, x: Float[Tensor, "n c h w"]) -> Tensor:
        if self.resize is not None:
            x = self.resize(x)
        if self.normalise is not None:
            x = self.normalise(x)
        return self.network(x)


def normalised(
    network: nn.Module, mean: Sequence[float], std: Sequence[float], *, resize: tuple[int, int] | None = None
) -> Wrapped:
    """The network with normalisation as its first layer; the network itself is shared, not copied.

    Args:
        network: takes normalised images.
        mean, std: one number a channel for images in [0, 1]; both empty: no normalisation.
        resize: (h, w) to which images are resized first; None: they come in the right size.

    Raises:
        InputError: mean and std of different lengths, not finite, or a std that is not positive.
    """
    return Wrapped(network, mean, std, resize=resize)


def check_statistics(mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The two as tuples of floats; raises InputError where they cannot be a normalisation of images in [0, 1]."""
    try:
        means, stds = tuple(float(v) for v in mean), tuple(float(v) for v in std)
    except (TypeError, ValueError) as error:
        raise InputError("mean, std", "numbers, one a channel", f"{mean}, {std}", "Give numbers.") from error
    if len(means) != len(stds) or not means:
        found = f"{len(means)} and {len(stds)} numbers"
        raise InputError("mean, std", "one number a channel in each", found, "Give both, for the same channels.")
    if not all(math.isfinite(v) for v in means + stds) or min(stds) <= 0:
        raise InputError("mean, std", "finite numbers, std > 0", f"{means}, {stds}", "Correct them.")
    return means, stds
