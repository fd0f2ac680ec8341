"""Masks: bool tensors that broadcast over inputs, and serve as `Ball(mask=...)`; their areas, unions and checks."""

import math
from collections.abc import Callable, Sequence
from functools import reduce

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..core.errors import InputError

Shape = Sequence[int]


def plane(shape: Shape) -> tuple[int, int]:
    """The height and width of images of shape (n, c, h, w); 1 and d of inputs of shape (n, d)."""
    sizes = tuple(shape)
    if len(sizes) not in (2, 4) or any(not isinstance(s, int) or s < 0 for s in sizes) or 0 in sizes[1:]:
        remedy = "Give x.shape: (n, c, h, w) for images, (n, d) for other inputs."
        raise InputError("shape", "2 or 4 whole numbers, none but the first 0", f"{sizes}", remedy)
    return (1, sizes[1]) if len(sizes) == 2 else (sizes[2], sizes[3])


def as_mask(inside: Bool[Tensor, "... h w"], shape: Shape) -> Bool[Tensor, "m ..."]:
    """Planes (h, w) or (m, h, w) of pixels as a mask that broadcasts over the shape: (m, 1, h, w), or (m, d)."""
    inside = inside.reshape(-1, *inside.shape[-2:])
    return inside[:, None] if len(tuple(shape)) == 4 else inside.flatten(1)


def checked(mask: Tensor, shape: Shape, argument: str = "mask") -> Bool[Tensor, "m ..."]:
    """The mask, if it is a bool tensor that broadcasts over the shape; with as many dimensions."""
    wanted = f"a bool tensor that broadcasts to {tuple(shape)}"
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:  # pyright: ignore[reportUnnecessaryIsInstance]
        found = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__  # pyright: ignore
        raise InputError(argument, wanted, found, "Make one with st.attacks.regions, or compare: values > 0.")
    try:
        mask.expand(tuple(shape))
    except RuntimeError:
        raise InputError(argument, wanted, f"shape {tuple(mask.shape)}", "Build it for x.shape.") from None
    return mask.reshape(*[1] * (len(tuple(shape)) - mask.dim()), *mask.shape)


def pixels(mask: Tensor, shape: Shape) -> Int[Tensor, " m"]:
    """How many pixel positions of each image a mask holds, whatever its channel; one number if all share the mask."""
    mask = checked(mask, shape)
    if len(tuple(shape)) == 4:
        mask = mask.amax(1)
    whole = mask.expand(len(mask), *(plane(shape) if len(tuple(shape)) == 4 else tuple(shape)[1:]))
    return whole.flatten(1).sum(1)


def area(mask: Tensor, shape: Shape) -> float:
    """The share of pixel positions that a mask holds, of the mean image.

    Args:
        mask: bool, broadcasts over the shape; one for all images or one for each.
        shape: of the inputs.

    Checked by tests/attacks/test_regions.py.
    """
    height, width = plane(shape)
    return float(pixels(mask, shape).double().mean()) / (height * width)


def union(first: Tensor, *others: Tensor) -> Bool[Tensor, "m ..."]:
    """What any of the masks holds: ``|``, checked."""
    return reduce(torch.logical_or, _alike(first, *others))


def intersection(first: Tensor, *others: Tensor) -> Bool[Tensor, "m ..."]:
    """What all of the masks hold: ``&``, checked."""
    return reduce(torch.logical_and, _alike(first, *others))


def inverse(mask: Tensor) -> Bool[Tensor, "m ..."]:
    """What the mask does not hold: ``~``, checked."""
    return ~_alike(mask)[0]


def matched(builder: Callable[[float], Tensor], shape: Shape, area: float | Tensor) -> Bool[Tensor, "m ..."]:
    """A region of any kind with the area of another: what makes a comparison of kinds fair.

    Args:
        builder: from a size in (0, 1] to a mask that grows with it, for instance
            ``lambda size: regions.circle(shape, (0.5, 0.5), size)``. A size for which it raises is too small.
        shape: of the inputs.
        area: the share of pixels, or a mask that has it.

    Returns the mask whose count of pixels is the nearest that bisection finds. Checked by tests/attacks/test_regions.py.
    """
    height, width = plane(shape)
    wanted = float(pixels(area, shape).double().mean()) / (height * width) if isinstance(area, Tensor) else share(area)
    low, high, best, miss = 0.0, 1.0, None, math.inf
    for size in (1.0, *[0.0] * 40):
        size = size or (low + high) / 2
        try:
            mask = checked(builder(size), shape, "builder")
            held = float(pixels(mask, shape).double().mean()) / (height * width)
        except InputError as error:
            if size == 1.0:
                raise error
            low = size
            continue
        if abs(held - wanted) < miss:
            best, miss = mask, abs(held - wanted)
        low, high = (size, high) if held < wanted else (low, size)
    assert best is not None
    return best


def share(area: float) -> float:
    """The share of an area that was asked for, checked."""
    if isinstance(area, bool) or not isinstance(area, int | float) or not 0 < area <= 1:
        raise InputError("area", "a share of the pixels in (0, 1]", repr(area), "For example .16; 1 is everything.")
    return float(area)


def some(inside: Tensor) -> Tensor:
    """The pixels, if there are any."""
    if not bool(inside.any()):
        raise InputError("region", "at least one pixel", "none", "Make it larger.")
    return inside


def _alike(*masks: Tensor) -> tuple[Tensor, ...]:
    for mask in masks:
        if mask.dtype != torch.bool:
            raise InputError("mask", "bool tensors", str(mask.dtype), "Compare: values > 0.")
    try:
        torch.broadcast_tensors(*masks)
    except RuntimeError:
        found = f"shapes {[tuple(mask.shape) for mask in masks]}"
        raise InputError("mask", "masks of one shape of inputs", found, "Build them for the same x.shape.") from None
    return masks
