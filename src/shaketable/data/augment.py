"""Augmentation for training: a random crop of the padded image, and a random flip."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.errors import InputError


@final
@dataclass(frozen=True)
class CropFlip:
    """Pad with zeros, cut out the old size at a random place, mirror half of the images left to right.

    The usual augmentation of CIFAR-10, and the one of the AWP paper's experiments: pad 4, flip. (For digits, whose
    mirror images are other signs, set ``flip=False``.)

    Args:
        pad: pixels of zeros on each side, 0 or more; 0 leaves the place as it is.
        flip: whether to mirror each image with probability 1/2.

    Called with images (n, c, h, w) in [0, 1] and a CPU generator, gives new images of the same shape, dtype and device;
    each image has its own place and flip. The input is not changed. Cost: one gather. For one n the number of draws is
    fixed, so the generator ends in the same state whatever the images are.

    Raises:
        InputError: a pad that is no whole number of at least 0; images that are not (n, c, h, w).

    Checked by tests/data/test_augment.py.
    """

    pad: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if type(self.pad) is not int or self.pad < 0:
            raise InputError("pad", "a whole number of pixels, 0 or more", repr(self.pad), "Pass pad=4, or 0 for none.")
        if type(self.flip) is not bool:
            raise InputError("flip", "True or False", repr(self.flip), "Pass flip=True or flip=False.")

    def __call__(self, x: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
        if x.ndim != 4:
            raise InputError("x", "images (n, c, h, w)", f"shape {tuple(x.shape)}", "Add the missing axes.")
        count, _, height, width = x.shape
        down = torch.randint(2 * self.pad + 1, (count, 1), generator=generator)
        across = torch.randint(2 * self.pad + 1, (count, 1), generator=generator)
        mirrored = torch.rand((count, 1), generator=generator) < (0.5 if self.flip else 0.0)
        rows = down + torch.arange(height)
        columns = torch.arange(width).expand(count, width)
        columns = across + torch.where(mirrored, columns.flip(1), columns)
        padded = torch.nn.functional.pad(x, (self.pad,) * 4).permute(0, 2, 3, 1)
        image = torch.arange(count).view(-1, 1, 1)
        chosen = (index.to(x.device) for index in (image, rows.unsqueeze(2), columns.unsqueeze(1)))
        return padded[tuple(chosen)].permute(0, 3, 1, 2).contiguous()
