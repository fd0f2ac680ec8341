"""Augmentation for training: crop and flip, cutout, and several of these one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.errors import InputError


class Augment(Protocol):
    """What an augmentation is: a function of images in [0, 1] and a CPU generator, the one source of its randomness.

    It gives new images of the same shape, dtype and device, in [0, 1]; it changes neither its input nor the global
    random state. `CropFlip`, `Cutout`, `AutoAugment` and `Chain` are such, and so may be a function of your own.
    """

    def __call__(self, x: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]: ...


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
        require_images(x)
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


@final
@dataclass(frozen=True)
class Cutout:
    """Cover a square at a random place of each image: DeVries and Taylor, arXiv:1708.04552, section 3.

    The square's centre is uniform over the image's pixels, and what lies beyond the border is cut off, so that an image
    may lose as little as a quarter of the square. The paper found that this matters: some images are to be seen nearly
    whole. An even side reaches one pixel further up and left of the centre than down and right.

    Args:
        size: the square's side in pixels. 8 is the paper's for CIFAR-100 with crops and flips; it has 16 for CIFAR-10
            and 20 for SVHN. AutoAugment's authors follow theirs with 16 on CIFAR-10.
        fill: what the square is filled with, one number or one a channel, in [0, 1]. The paper covers with 0 in images
            that are normalised about 0, which is the data's mean; give the channel means for exactly that. The default,
            mid-grey, needs to know no data, and is within .06 of CIFAR-10's means.

    Called with images (n, c, h, w) in [0, 1] and a CPU generator, gives new images of the same shape, dtype and device.
    The input is not changed. Cost: one pass over the pixels. For one n the number of draws is fixed.

    Raises:
        InputError: a size below 1, a fill out of [0, 1] or for another number of channels; images that are not
            (n, c, h, w) of floats.

    Checked by tests/data/test_augment.py (against a loop over images, and the law of the covered share).
    """

    size: int = 8
    fill: float | tuple[float, ...] = 0.5

    def __post_init__(self) -> None:
        if type(self.size) is not int or self.size < 1:
            raise InputError("size", "a whole number of pixels, 1 or more", repr(self.size), "Pass size=8 or size=16.")
        fills = tuple(self.fill) if isinstance(self.fill, list | tuple) else (self.fill,)
        good = all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= 1 for v in fills)
        if not fills or not good:
            raise InputError("fill", "one number in [0, 1], or one a channel", repr(self.fill), "Pass fill=0.5.")
        object.__setattr__(self, "fill", fills if isinstance(self.fill, list | tuple) else float(self.fill))

    def __call__(self, x: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
        require_images(x, floats=True)
        count, channels, height, width = x.shape
        fill = torch.tensor(self.fill, dtype=x.dtype, device=x.device).view(1, -1, 1, 1)
        if fill.shape[1] not in (1, channels):
            found = f"{fill.shape[1]} numbers for {channels} channels"
            raise InputError("fill", "one number, or one a channel", found, "Pass one number.")
        covered = [self._within(side, count, generator).to(x.device) for side in (height, width)]
        square = covered[0].view(count, 1, height, 1) & covered[1].view(count, 1, 1, width)
        return torch.where(square, fill, x)

    def _within(self, side: int, count: int, generator: torch.Generator) -> Tensor:
        """(count, side): which rows or columns lie in the squares."""
        start = torch.randint(max(side, 1), (count, 1), generator=generator) - self.size // 2
        place = torch.arange(side)
        return (start <= place) & (place < start + self.size)


@final
@dataclass(frozen=True)
class Chain:
    """Several augmentations, one after the other: ``Chain([CropFlip(), Cutout()])``.

    Args:
        parts: one or more `Augment`; each draws from the generator where the one before it ended.

    Raises:
        InputError: no parts, or one that cannot be called.

    Checked by tests/data/test_augment.py.
    """

    parts: Sequence[Augment]

    def __post_init__(self) -> None:
        given = self.parts
        parts = tuple(given) if isinstance(given, list | tuple) else ()
        if not parts or not all(callable(part) and not isinstance(part, type) for part in parts):
            remedy = "Pass a list such as [CropFlip(), Cutout()]."
            raise InputError("parts", "one or more augmentations", repr(given)[:80], remedy)
        object.__setattr__(self, "parts", parts)

    def __call__(self, x: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
        for part in self.parts:
            x = part(x, generator)
        return x


def require_images(x: Tensor, *, floats: bool = False) -> None:
    """Raises InputError unless x is (n, c, h, w), and if asked for of floats."""
    if x.ndim != 4:
        raise InputError("x", "images (n, c, h, w)", f"shape {tuple(x.shape)}", "Add the missing axes.")
    if floats and not x.is_floating_point():
        found = str(x.dtype).removeprefix("torch.")
        raise InputError("x", "floating images in [0, 1]", found, "Divide uint8 images by 255 first.")
