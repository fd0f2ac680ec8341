"""Regions that were made elsewhere: a mask image, a segmentation."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from ..core.errors import DataError, InputError
from ..data.decoding import image_at
from .masks import Shape, as_mask, plane, some


def file(path: str | Path, shape: Shape) -> Bool[Tensor, "m ..."]:
    """A mask image: PNG, BMP, WebP or JPEG, of any size, whose light pixels (grey of 128 or more) are the region.

    Args:
        path: of the image; colour becomes grey, transparency is dropped.
        shape: of the inputs (n, c, h, w), to which it is brought by taking the nearest pixel.

    Raises:
        InputError: no such file, or no light pixel (a mask of 0 and 1 must be saved as 0 and 255).
        DataError: a file that is no image.

    Checked by tests/attacks/test_regions.py.
    """
    grey = image_at(path, channels=1)[0]
    if int(grey.max()) < 128:
        found = f"values up to {int(grey.max())}"
        raise DataError(str(path), "grey values of 128 or more in the region", found, "Save it as 0 and 255.")
    inside = F.interpolate((grey >= 128)[None, None].float(), plane(shape), mode="nearest-exact")[0, 0] > 0
    return as_mask(some(inside), shape)


def segmentation(labels: Int[Tensor, "..."], values: int | Sequence[int]) -> Bool[Tensor, "m 1 h w"]:
    """The pixels of some classes of a segmentation, for each image its own.

    Args:
        labels: a class for each pixel: (n, h, w), (n, 1, h, w), or (h, w) for all images; integers.
        values: the classes that make the region.

    An image without such a pixel has an empty region, and its attack does nothing.

    Raises:
        InputError: other shapes or types; no image has a pixel of these classes.

    Checked by tests/attacks/test_regions.py.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() not in (2, 3, 4):  # pyright: ignore
        found = (
            f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        )  # pyright: ignore
        raise InputError("labels", "integers of shape (n, h, w)", found, "Give the class of each pixel.")
    if labels.dim() == 4 and labels.shape[1] != 1:
        raise InputError(
            "labels", "shape (n, 1, h, w)", f"{tuple(labels.shape)}", "Give classes, not one-hot channels."
        )
    wanted = torch.as_tensor([values] if isinstance(values, int) else list(values), device=labels.device)
    inside = torch.isin(labels, wanted)
    if not bool(inside.any()):
        there = torch.unique(labels).tolist()[:10]
        raise InputError("values", f"classes of the segmentation, such as {there}", str(values), "Choose among them.")
    return inside.reshape(-1, 1, *labels.shape[-2:])
