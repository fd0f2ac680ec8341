"""Bringing images to one size and one number of channels."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Shaped
from torch import Tensor

from ..core.errors import DataError, InputError

MAX_PIXELS = 1 << 26  # 8192 x 8192: beyond it a file is taken for a decompression bomb


@final
@dataclass(frozen=True)
class Fit:
    """What size and how many channels images are given when a data set is opened.

    Args:
        size: height and width in pixels; None leaves images as they are. The shorter side is resized to
            ``round(size / crop)`` pixels (bicubic, antialiased), then the centre ``size x size`` is cut out.
        channels: 1 (grey) or 3 (RGB); None leaves them as they are. Colour becomes grey by ITU-R 601 luma with Pillow's
            integer weights; grey becomes colour by repetition.
        crop: the share of the shorter side that the crop keeps, in (0, 1]; 0.875 with size 224 is the usual ImageNet
            evaluation ("resize 256, crop 224").

    The interpolation is torch's ``bicubic`` with ``antialias=True`` (coefficient -0.5, as Pillow's), first across, then
    down, each pass clipped (and uint8 rounded), as Pillow does: within 1/255 of Pillow's. No gradient, no randomness.

    Raises:
        InputError: a size, channel count or crop that cannot be.

    Checked by tests/data/test_fit.py.
    """

    size: int | None = None
    channels: int | None = None
    crop: float = 1.0

    def __post_init__(self) -> None:
        if self.size is not None and (type(self.size) is not int or not 1 <= self.size <= 8192):
            raise InputError("size", "a whole number of pixels in 1..8192, or None", repr(self.size), "Pass size=32.")
        if self.channels not in (None, 1, 3) or type(self.channels) is bool:
            raise InputError("channels", "1, 3 or None", repr(self.channels), "Pass channels=1 or channels=3.")
        if isinstance(self.crop, bool) or not isinstance(self.crop, (int, float)) or not 0 < self.crop <= 1:
            raise InputError("crop", "a share in (0, 1]", repr(self.crop), "Pass crop=0.875, or 1.0 for none.")
        if self.crop != 1 and self.size is None:
            raise InputError("crop", "a size to go with it", "size=None", "Pass size= as well, or leave crop out.")

    @property
    def label(self) -> str:
        """How the fit is written after a data set's name, for example ``" 224 px, crop 0.875, 3 channels"``."""
        said = []
        if self.size is not None:
            said.append(f"{self.size} px")
            if self.crop != 1:
                said.append(f"crop {self.crop:g}")
        if self.channels is not None:
            said.append("1 channel" if self.channels == 1 else f"{self.channels} channels")
        return f" {', '.join(said)}" if said else ""

    def shape_of(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """The (channels, height, width) that an image of this shape is given."""
        side = (height, width) if self.size is None else (self.size, self.size)
        return (self.channels or channels, *side)

    def apply(self, images: Shaped[Tensor, "n c h w"]) -> Shaped[Tensor, "m d i j"]:
        """Fit images, uint8 or float in [0, 1], and keep their dtype; 256 at a time, to bound memory."""
        if self.shape_of(*images.shape[1:]) == tuple(images.shape[1:]) and self.crop == 1:
            return images
        return torch.cat([self._apply(part) for part in images.split(256)])

    def _apply(self, images: Tensor) -> Tensor:
        if self.channels == 1 and images.shape[1] == 3:
            images = _grey(images)
        if self.size is not None:
            images = _resized(images, self.size, self.crop)
        if self.channels == 3 and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        return images.contiguous()


AS_IS = Fit()


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    if images.dtype == torch.uint8:
        luma = (red.int() * 19595 + green.int() * 38470 + blue.int() * 7471 + 0x8000) >> 16
        return luma.to(torch.uint8).unsqueeze(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).clamp(0, 1).unsqueeze(1)


def _resized(images: Tensor, size: int, crop: float) -> Tensor:
    height, width = images.shape[-2:]
    shorter, target = min(height, width), round(size / crop)
    scaled = max(target, round(height * target / shorter)), max(target, round(width * target / shorter))
    if scaled[0] * scaled[1] > MAX_PIXELS:
        found = f"{width} x {height} pixels, which become {scaled[1]} x {scaled[0]}"
        raise DataError("size", f"images of at most {MAX_PIXELS} pixels", found, "Remove the image or lower size=.")
    if scaled != (height, width):
        images = _interpolated(_interpolated(images, (height, scaled[1])), scaled)
    down, across = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    return images[..., down : down + size, across : across + size]


def _interpolated(images: Tensor, size: tuple[int, int]) -> Tensor:
    smooth = torch.nn.functional.interpolate(
        images.float(), size=size, mode="bicubic", antialias=True, align_corners=False
    )
    if images.is_floating_point():
        return smooth.clamp_(0, 1).to(images.dtype)
    return smooth.clamp_(0, 255).round_().to(torch.uint8)
