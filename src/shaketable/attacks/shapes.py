"""Regions by their shape: masks of squares, frames, random pixels, grid cells, boxes, circles and polygons."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool
from torch import Tensor

from ..core.errors import InputError
from .masks import Shape, as_mask, plane, share, some

Number = int | float


def whole(shape: Shape) -> Bool[Tensor, "m ..."]:
    """Everything: the mask of an attack that is not regional."""
    return as_mask(torch.ones(plane(shape), dtype=torch.bool), shape)


def centre(shape: Shape, *, area: float | None = None, edge: int | None = None) -> Bool[Tensor, "m ..."]:
    """The middle of the image. Ozbulak et al. 2020: squares of edge 90, 120, 150 at 224 x 224.

    Args:
        shape: of the inputs: (n, c, h, w), or (n, d), where it is the middle of each row.
        area: the share of pixels: a rectangle of the image's own proportions, to the pixel, whose count is the nearest
            to it that such a rectangle has: within half a pixel row. Its complement is ``frame(area=1 - area)``.
        edge: of a square, in pixels.

    Where it cannot be centred exactly it lies half a pixel to the top and left.
    Checked by tests/attacks/test_regions.py.
    """
    height, width = plane(shape)
    _one_of("area, edge", area, edge)
    if area is not None:
        sides = _sides(height, width, share(area) * height * width)
    else:
        sides = (1 if len(tuple(shape)) == 2 else _length("edge", edge, height), _length("edge", edge, width))
    return as_mask(some(_middle(height, width, *sides)), shape)


def frame(
    shape: Shape,
    *,
    area: float | None = None,
    inner: int | tuple[int, int] | None = None,
    width: int | None = None,
) -> Bool[Tensor, "m ..."]:
    """What lies around the middle. Ozbulak et al. 2020: inner edges of 204, 190, 166 at 224 x 224.

    Args:
        shape: as for `centre`; of (n, d) it is both ends of each row.
        area: the share of pixels; what is left is a rectangle of the image's proportions, see `centre`.
        inner: what is left out, in pixels: the edge of a square, or (height, width).
        width: of the frame, in pixels, on every side.

    Checked by tests/attacks/test_regions.py.
    """
    high, wide = plane(shape)
    flat = len(tuple(shape)) == 2
    _one_of("area, inner, width", area, inner, width)
    if area is not None:
        sides = _sides(high, wide, (1 - share(area)) * high * wide)
    elif inner is not None:
        rows, columns = inner if isinstance(inner, tuple) else (1 if flat else inner, inner)
        sides = (_length("inner", rows, high), _length("inner", columns, wide))
    else:
        limit = wide if flat else min(high, wide)
        border = _length("width", width, (limit - 1) // 2)
        sides = (1 if flat else high - 2 * border, wide - 2 * border)
    return as_mask(some(~_middle(high, wide, *sides)), shape)


def random(shape: Shape, area: float, generator: torch.Generator, *, per_image: bool = False) -> Bool[Tensor, "m ..."]:
    """Pixels drawn at random, one mask for all channels, as in Ozbulak et al. 2020 (17, 28, 45 % of the pixels).

    Args:
        area: the share of pixels; exactly the nearest whole number of them is drawn, without replacement.
        generator: of the draw.
        per_image: a mask for each image, instead of one for all.

    Checked by tests/attacks/test_regions.py.
    """
    height, width = plane(shape)
    count = round(share(area) * height * width)
    masks = int(shape[0]) if per_image else 1
    drawn = torch.rand(masks, height * width, generator=generator, dtype=torch.float64, device=generator.device).cpu()
    inside = torch.zeros(masks, height * width, dtype=torch.bool)
    inside.scatter_(1, drawn.argsort(dim=1, stable=True)[:, :count], True)
    return as_mask(some(inside).reshape(masks, height, width), shape)


def grid(shape: Shape, rows: int, columns: int) -> Bool[Tensor, "cells m ..."]:
    """All cells of a grid, row by row: ``grid(...)[k]`` is the mask of cell k. They partition the image.

    Cells differ by one pixel row or column at most. Inputs of shape (n, d) have one row.
    """
    height, width = plane(shape)
    down, across = _cuts("rows", rows, height), _cuts("columns", columns, width)
    inside = (down[:, None, :, None] & across[None, :, None, :]).flatten(0, 1)
    return torch.stack([as_mask(cell, shape) for cell in inside])


def cell(shape: Shape, rows: int, columns: int, index: int) -> Bool[Tensor, "m ..."]:
    """One cell of a grid, counted from 0 at the top left, row by row."""
    cells = grid(shape, rows, columns)
    if type(index) is not int or not 0 <= index < len(cells):
        raise InputError("index", f"a whole number in 0..{len(cells) - 1}", str(index), "Count row by row from 0.")
    return cells[index]


def box(shape: Shape, corners: tuple[Number, Number, Number, Number]) -> Bool[Tensor, "m ..."]:
    """A rectangle with sides along the image's.

    Args:
        corners: (top, left, bottom, right). Whole numbers are pixels, bottom and right excluded: (8, 8, 20, 20) holds 12
            by 12. Floats are fractions of the height and width. A pixel belongs to it if its centre does.

    Checked by tests/attacks/test_regions.py.
    """
    _images(shape, "box")
    _count("corners", corners, 4)
    (height, width), ends = plane(shape), list(corners)
    top, bottom = (_place("corners", end, height) for end in ends[::2])
    left, right = (_place("corners", end, width) for end in ends[1::2])
    if top >= bottom or left >= right:
        raise InputError("corners", "top < bottom and left < right", str(corners), "Give top, left, bottom, right.")
    down, across = _centres(height), _centres(width)
    inside = ((down >= top) & (down < bottom))[:, None] & ((across >= left) & (across < right))
    return as_mask(some(inside), shape)


def circle(shape: Shape, middle: tuple[Number, Number], radius: Number) -> Bool[Tensor, "m ..."]:
    """A disc: the pixels whose centres are no farther than the radius.

    Args:
        middle: (down, across), in pixels if whole numbers, else fractions of the height and width; (14, 14) is the
            exact centre of 28 x 28 pixels.
        radius: in pixels, or a fraction of the smaller side.

    Checked by tests/attacks/test_regions.py.
    """
    _images(shape, "circle")
    _count("middle", middle, 2)
    height, width = plane(shape)
    down, across = _place("middle", middle[0], height), _place("middle", middle[1], width)
    reach = _place("radius", radius, min(height, width))
    distance = (_centres(height) - down)[:, None] ** 2 + (_centres(width) - across) ** 2
    return as_mask(some(distance <= reach * reach), shape)


def polygon(shape: Shape, points: Sequence[tuple[Number, Number]]) -> Bool[Tensor, "m ..."]:
    """A polygon: the pixels whose centres lie inside, by the even-odd rule; closed by itself.

    Args:
        points: three or more (down, across), in pixels if whole numbers, else fractions of the height and width.

    Checked by tests/attacks/test_regions.py.
    """
    _images(shape, "polygon")
    height, width = plane(shape)
    if len(points) < 3:
        raise InputError("points", "three points or more", f"{len(points)}", "Give (down, across) of each corner.")
    for point in points:
        _count("points", point, 2)
    corners = [(_place("points", down, height), _place("points", across, width)) for down, across in points]
    inside = torch.zeros(height, width, dtype=torch.bool)
    down, across = _centres(height)[:, None], _centres(width)
    for (y0, x0), (y1, x1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if y0 != y1:  # a ray to the right crosses this side
            meets = x0 + (down - y0) * (x1 - x0) / (y1 - y0)
            inside ^= (down >= min(y0, y1)) & (down < max(y0, y1)) & (across < meets)
    return as_mask(some(inside), shape)


def _sides(height: int, width: int, target: float) -> tuple[int, int]:
    """The sides of a rectangle of the image's proportions with about this many pixels."""
    if target < 0.5:
        return 0, 0
    tall = height * math.sqrt(target / (height * width))
    options = []
    for rows in {min(height, max(1, math.floor(tall + 1e-9))), min(height, max(1, math.ceil(tall - 1e-9)))}:
        columns = min(width, max(1, round(target / rows)))
        options.append((abs(rows * columns - target), abs(rows * width - columns * height), rows, columns))
    return min(options)[2:]


def _middle(height: int, width: int, rows: int, columns: int) -> Tensor:
    inside = torch.zeros(height, width, dtype=torch.bool)
    top, left = (height - rows) // 2, (width - columns) // 2
    inside[top : top + rows, left : left + columns] = True
    return inside


def _cuts(name: str, parts: int, length: int) -> Tensor:
    count = _length(name, parts, length)
    ends = [k * length // count for k in range(count + 1)]
    places = torch.arange(length)
    return torch.stack([(places >= a) & (places < b) for a, b in pairwise(ends)])


def _centres(length: int) -> Tensor:
    return torch.arange(length, dtype=torch.float64) + 0.5


def _place(name: str, value: Number, length: int) -> float:
    """A coordinate in pixels: a whole number as it is, a float as a fraction of the length."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(name, "numbers", repr(value), "Whole numbers are pixels, floats fractions.")
    if isinstance(value, int):
        if not 0 <= value <= length:
            raise InputError(name, f"pixels in 0..{length}", str(value), "Count pixels from the top left.")
        return float(value)
    if not 0 <= value <= 1:
        remedy = "Whole numbers are pixels; a float is a fraction of the side."
        raise InputError(name, "a fraction in [0, 1]", str(value), remedy)
    return value * length


def _length(name: str, value: object, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise InputError(name, f"a whole number of pixels in 1..{most}", repr(value), "Fit it into the image.")
    return value


def _one_of(names: str, *values: object) -> None:
    if (given := sum(value is not None for value in values)) != 1:
        raise InputError(names, "one of them", f"{given}", "Say how large the region is in one way.")


def _count(name: str, values: Sequence[Number], wanted: int) -> None:
    if not isinstance(values, Sequence) or len(values) != wanted:
        raise InputError(name, f"{wanted} numbers", repr(values), "Whole numbers are pixels, floats fractions.")


def _images(shape: Shape, kind: str) -> None:
    if len(tuple(shape)) == 2:
        remedy = "Use centre, frame, random or grid."
        raise InputError("shape", f"images (n, c, h, w) for a {kind}", f"{tuple(shape)}", remedy)
