"""AutoAugment: policies of image operations that were found by search, over Kornia's operations."""

from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.errors import InputError
from ..core.seeds import own_random_state
from ..plugins import extra, nearest
from .augment import require_images

Policy = Literal["cifar10", "imagenet", "svhn"]


@final
@dataclass(frozen=True)
class AutoAugment:
    """AutoAugment's published policies: Cubuk et al., CVPR 2019. Needs Kornia: ``pip install 'shaketable[augment]'``.

    A policy has 25 sub-policies of two operations, each with a probability and a strength. As in the paper, every image
    draws its own sub-policy uniformly. (Kornia's own container draws one for the whole batch.)

    Args:
        policy: "cifar10", "imagenet" or "svhn": what it was searched on. The paper uses CIFAR-10's for CIFAR-100 too, and
            puts it after crop and flip and before cutout: ``Chain([CropFlip(), AutoAugment(), Cutout(16)])``.

    The operations are Kornia's, and differ from the authors', which are Pillow's: a strength is drawn within a step of its
    scale; for shears, translations and rotations the scale runs from one direction to the other, so that 5 is nearly
    nothing (the authors' is a size, and its sign is drawn); brightness adds up to +-.9 and does not scale, contrast
    scales about black and not about the mean grey, colour scales HSV's saturation and does not blend with grey;
    solarize's threshold rises with its strength (the authors': falls). Pixels from beyond the border are black.

    Called with images (n, c, h, w) in [0, 1], c being 1 or 3, and a CPU generator, gives new images of the same shape,
    dtype and device, clamped to [0, 1]. Grey images are repeated to three channels, and the mean of the channels is
    taken back. Everything is drawn from the generator; two draws are taken from it, whatever the images are. What an
    image becomes depends on the batch it is in. Not differentiable, computed in float32. Cost: 30 ms for 128 images of
    32 x 32 on one CPU thread.

    Raises:
        ConfigError: Kornia is not installed (when the value is made, so before a training begins).
        InputError: an unknown policy; images that are not (n, 1 or 3, h, w) of floats.

    Checked by tests/data/test_autoaugment.py.
    """

    policy: Policy = "cifar10"

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            known = " or ".join(map(repr, get_args(Policy)))
            raise InputError("policy", known, repr(self.policy), nearest(self.policy, get_args(Policy)))
        _subpolicies(self.policy)

    def __call__(self, x: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
        require_images(x, floats=True)
        channels = x.shape[1]
        if channels not in (1, 3):
            raise InputError("x", "images of 1 or 3 channels", f"{channels} channels", "Convert them to RGB or grey.")
        operations = _subpolicies(self.policy)
        chosen = torch.randint(len(operations), (len(x),), generator=generator)
        own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
        out = x.detach().float().expand(-1, 3, -1, -1).clone(memory_format=torch.contiguous_format)
        with own_random_state([x], own), torch.no_grad():  # Kornia draws from the global state
            for index in chosen.unique().tolist():
                rows = (chosen == index).nonzero()[:, 0].to(x.device)
                out[rows] = operations[index](out[rows])
        out = out.clamp_(0, 1)
        return (out if channels == 3 else out.mean(1, keepdim=True)).to(x.dtype)


def _subpolicies(policy: str) -> list[torch.nn.Module]:
    """The sub-policies, made anew: Kornia's modules remember what they last drew."""
    kornia = extra("kornia.augmentation.auto", "augment", "autoaugment")
    return list(kornia.AutoAugment(policy).children())
