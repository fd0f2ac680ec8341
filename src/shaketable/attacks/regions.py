"""Regions: where an image may be changed. A region is a mask: a bool tensor that serves as `Ball(mask=...)`.

Builders take the inputs' shape and give a mask that broadcasts over (n, c, h, w), one for all images or one for each:
`centre`, `frame`, `random`, `grid`, `cell`, `box`, `circle`, `polygon`, `whole`; `file` and `segmentation` bring one from
elsewhere; `by_gradient` and `by_trial` ask the model. Masks are joined by ``|``, ``&`` and ``~``.

`region_of` reads the form in which the command line names them: ``centre:0.16``, ``frame:0.28 & !box:0,0,8,8``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.errors import InputError
from ..plugins import load, names_code, nearest
from .masks import area, checked, intersection, inverse, matched, pixels, union
from .region_files import file, segmentation
from .saliency_regions import by_gradient, by_trial
from .shapes import box, cell, centre, circle, frame, grid, polygon, random, whole

Maker = Callable[[Any, Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Kind:
    """A kind of region on the command line.

    Args:
        forms: how it is written, for errors.
        read: from the texts between the colons to what makes the mask; raises ValueError for what it cannot read.
    """

    forms: str
    read: Callable[[list[str]], Maker]


def _number(text: str) -> int | float:
    """A whole number of pixels, or a fraction if there is a point in it."""
    return int(text) if re.fullmatch(r"\d+", text.strip()) else float(text)


def _numbers(text: str) -> tuple[Any, ...]:
    return tuple(_number(part) for part in text.split(","))


def _pair(text: str) -> tuple[int, int]:
    rows, columns = text.split("x")
    return int(rows), int(columns)


def _read_whole(words: list[str]) -> Maker:
    if words:
        raise ValueError("nothing after it")
    return lambda model, x, y, generator: whole(x.shape)


def _read_centre(words: list[str]) -> Maker:
    (size,) = map(_number, words)
    how: dict[str, Any] = {"edge": size} if isinstance(size, int) else {"area": size}
    return lambda model, x, y, generator: centre(x.shape, **how)


def _read_frame(words: list[str]) -> Maker:
    (size,) = map(_number, words)
    how: dict[str, Any] = {"width": size} if isinstance(size, int) else {"area": size}
    return lambda model, x, y, generator: frame(x.shape, **how)


def _read_random(words: list[str]) -> Maker:
    share, *rest = words
    if rest not in ([], ["each"]):
        raise ValueError("'each' or nothing after the area")
    size = float(share)
    return lambda model, x, y, generator: random(x.shape, size, generator, per_image=bool(rest))


def _read_grid(words: list[str]) -> Maker:
    (rows, columns), index = _pair(words[0]), int(words[1])
    if len(words) > 2:
        raise ValueError("one cell")
    return lambda model, x, y, generator: cell(x.shape, rows, columns, index)


def _read_box(words: list[str]) -> Maker:
    (corners,) = map(_numbers, words)
    return lambda model, x, y, generator: box(x.shape, corners)


def _read_circle(words: list[str]) -> Maker:
    ((down, across, radius),) = map(_numbers, words)
    return lambda model, x, y, generator: circle(x.shape, (down, across), radius)


def _read_polygon(words: list[str]) -> Maker:
    (text,) = words
    points = [_numbers(point) for point in text.split(";")]
    return lambda model, x, y, generator: polygon(x.shape, points)


def _read_file(words: list[str]) -> Maker:
    path = ":".join(words)
    if not path:
        raise ValueError("a path")
    return lambda model, x, y, generator: file(path, x.shape)


def _read_gradient(words: list[str]) -> Maker:
    share, *rest = words
    size, cells = float(share), [_pair(text) for text in rest] or [None]
    (cut,) = cells
    return lambda model, x, y, generator: by_gradient(model, x, y, size, cells=cut)


def _read_trial(words: list[str]) -> Maker:
    share, *rest = words
    size, (given,) = float(share), [_pair(text) for text in rest] or [None]

    def make(model: Any, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        height, width = x.shape[-2:]
        return by_trial(model, x, y, size, cells=given or (min(8, height), min(8, width)))

    return make


REGIONS: dict[str, Kind] = {
    "whole": Kind("whole", _read_whole),
    "centre": Kind("centre:AREA or centre:EDGE", _read_centre),
    "frame": Kind("frame:AREA or frame:WIDTH", _read_frame),
    "random": Kind("random:AREA or random:AREA:each", _read_random),
    "grid": Kind("grid:ROWSxCOLUMNS:CELL", _read_grid),
    "box": Kind("box:TOP,LEFT,BOTTOM,RIGHT", _read_box),
    "circle": Kind("circle:DOWN,ACROSS,RADIUS", _read_circle),
    "polygon": Kind("polygon:DOWN,ACROSS;DOWN,ACROSS;...", _read_polygon),
    "file": Kind("file:MASK.png", _read_file),
    "gradient": Kind("gradient:AREA or gradient:AREA:ROWSxCOLUMNS", _read_gradient),
    "trial": Kind("trial:AREA or trial:AREA:ROWSxCOLUMNS", _read_trial),
}


@dataclass(frozen=True)
class Region:
    """A region by its text, to be built for inputs when they are there: ``region(model, x, y, generator)``.

    Args:
        text: as it was written.
        terms: what is united: of each, the parts whose intersection it is, each with whether it is inverted.
    """

    text: str
    terms: tuple[tuple[tuple[bool, Maker], ...], ...]

    def __call__(
        self, model: Any, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], generator: torch.Generator
    ) -> Bool[Tensor, "m ..."]:
        """The mask for these inputs. The generator is read by the kinds that draw, in the order of the text."""
        united = []
        for term in self.terms:
            parts = [(~made if inverted else made) for inverted, made in self._made(term, model, x, y, generator)]
            united.append(intersection(*parts))
        mask = union(*united)
        if not bool(mask.any()):
            raise InputError("region", "at least one pixel", f"none in {self.text!r}", "Look at what it is joined of.")
        return mask

    def _made(self, term: Any, *inputs: Any) -> list[tuple[bool, Tensor]]:
        x = inputs[1]
        return [(inverted, checked(maker(*inputs), x.shape, "region").to(x.device)) for inverted, maker in term]


def region_of(text: str) -> Region:
    """A region from its text.

    Kinds are those of `REGIONS`; ``file.py:name`` and ``module:name`` name a function (model, x, y, generator) -> mask of the
    user's own, and run its code. They are joined by ``+`` (union) and ``&`` (intersection, which binds more closely), and
    ``!`` or ``~`` before a kind inverts it: ``centre:0.3 & !circle:0.5,0.5,0.1 + box:0,0,8,8``. Whole numbers are pixels,
    numbers with a point are fractions. A path in it cannot hold ``+`` or ``&``.

    Raises:
        InputError: an unknown kind (with the nearest name), or one that is written otherwise; sizes that do not fit the
            images are found when it is called.

    Checked by tests/attacks/test_regions.py.
    """
    if not isinstance(text, str) or not text.strip():  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError("region", "a text such as centre:0.16", repr(text), f"Kinds are {', '.join(REGIONS)}.")
    terms = tuple(tuple(_factor(part, text) for part in term.split("&")) for term in text.split("+"))
    return Region(text, terms)


def mask_of(
    region: Any, model: Any, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], generator: torch.Generator
) -> Bool[Tensor, "m ..."] | None:
    """The mask that was meant: None (everything), a mask, a text for `region_of`, or a function that makes one."""
    if region is None:
        return None
    if isinstance(region, str):
        region = region_of(region)
    made = region if isinstance(region, Tensor) or not callable(region) else region(model, x, y, generator)
    return checked(made, x.shape, "region").to(x.device)  # pyright: ignore[reportArgumentType]


def _factor(part: str, text: str) -> tuple[bool, Maker]:
    part, inverted = part.strip(), False
    while part[:1] in ("!", "~") and part:
        part, inverted = part[1:].strip(), not inverted
    name, *words = part.split(":")
    kind = REGIONS.get(name.strip())
    if kind is None:
        remedy = nearest(name, REGIONS)
        if names_code(part) and not remedy.startswith("Did"):
            return inverted, load(part, "region", error=InputError)
        raise InputError("region", "a kind of region", f"{name!r} in {text!r}", remedy)
    try:
        return inverted, kind.read([word.strip() for word in words])
    except (ValueError, IndexError) as error:
        found = f"{part!r}"
        raise InputError("region", kind.forms, found, "Whole numbers are pixels, 0.16 is a fraction.") from error


__all__ = [
    "REGIONS", "Kind", "Region", "area", "box", "by_gradient", "by_trial", "cell", "centre", "checked", "circle", "file",
    "frame", "grid", "intersection", "inverse", "mask_of", "matched", "pixels", "polygon", "random", "region_of",
    "segmentation", "union", "whole",
]  # fmt: skip
