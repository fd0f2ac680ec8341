"""What Square tries next: windows of an image at the edge of an linf ball, or the mass of an l2 or l1 ball moved about."""

import math
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.apgd_l1 import project_l1_box
from ..core.ball import Ball

HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10000 queries
BLOCK = 64  # queries whose random numbers are drawn at once
TILES = 5  # along each side, of an l2 or l1 start
FALL = {"l2": 2, "l1": 4}  # how fast the pyramids of a window fall off


def share_of(query: int, queries: int, p_init: float, *, rescale: bool) -> float:
    """The share of the pixels that a query's window has: halved after 10, 50, ... of 10000 queries.

    Args:
        query: how many windows have been tried before.
        rescale: the schedule is that of the number of queries; else that of 10000 queries, whatever their number.
    """
    place = int(query / queries * 10000) if rescale else query
    return p_init / 2 ** sum(place > mark for mark in HALVED)


class Draws:
    """Uniform numbers for every image of a batch, whoever is left, so that nobody's draws depend on who has gone."""

    def __init__(self, count: int, width: int, generator: torch.Generator) -> None:
        self.count, self.width, self.generator, self.used = count, width, generator, BLOCK
        self.block: Tensor = torch.zeros(0)

    def next(self, rows: Tensor) -> Float[Tensor, "k w"]:
        """Those of the next query, for some of the images."""
        if self.used == BLOCK:
            shape, device = (BLOCK, self.count, self.width), self.generator.device
            self.block = torch.rand(shape, generator=self.generator, device=device).to(rows.device)
            self.used = 0
        self.used += 1
        return self.block[self.used - 1][rows]


class Moves(Protocol):
    """The candidates of a norm, for the images that are left."""

    def first(self) -> Tensor: ...

    def propose(self, delta: Tensor, share: float, rows: Tensor) -> Tensor: ...

    def keep(self, left: Tensor) -> None: ...


class _Region:
    """The rectangle in which windows lie: of the mask, if there is one, else the image."""

    def __init__(self, origin: Tensor, mask: Tensor | None) -> None:
        self.top, self.left = 0, 0
        self.height, self.width = origin.shape[2:]
        self.places: dict[tuple[int, int], Tensor] = {}
        if mask is None:
            return
        free = mask.expand_as(origin).any(0).any(0)
        lines, columns = free.any(1).nonzero()[:, 0], free.any(0).nonzero()[:, 0]
        if len(lines):
            self.top, self.left = int(lines[0]), int(columns[0])
            self.height, self.width = int(lines[-1]) + 1 - self.top, int(columns[-1]) + 1 - self.left

    def side(self, share: float) -> int:
        return max(round(math.sqrt(share * self.height * self.width)), 1)

    def corner(self, uniform: Tensor, height: int, width: int) -> Tensor:
        """Where windows begin: (k, 2), downwards and across, of two columns of uniform numbers."""
        places = self.places.get((height, width))
        if places is None:
            room = (self.height - height + 1, self.width - width + 1)
            ends = (room, (self.top, self.left))
            places = self.places[height, width] = torch.tensor(ends, device=uniform.device)
        return (uniform * places[0]).long() + places[1]  # a product of floats stays below the room


class Windows:
    """linf: all pixels of a window go to one end of what is allowed, by a sign for each channel (algorithm 2)."""

    def __init__(self, origin: Tensor, within: Ball, generator: torch.Generator) -> None:
        reach: Any = within.reach(origin)
        low, high = torch.zeros_like(origin) - reach, torch.zeros_like(origin) + reach
        if within.box is not None:
            low, high = torch.maximum(low, within.box[0] - origin), torch.minimum(high, within.box[1] - origin)
        mask: Any = within.mask
        if mask is not None:
            low, high = torch.where(mask, low, 0.0), torch.where(mask, high, 0.0)
        self.low, self.high, self.generator = low, high, generator
        self.region = _Region(origin, mask)
        self.draws = Draws(len(origin), 2 + origin.shape[1], generator)
        self.lines = torch.arange(origin.shape[2], device=origin.device)[:, None]
        self.columns = torch.arange(origin.shape[3], device=origin.device)

    def first(self) -> Tensor:
        """Vertical stripes of width one (section 3.3)."""
        n, c, _, w = self.low.shape
        uniform = torch.rand(n, c, 1, w, generator=self.generator, device=self.generator.device)
        return torch.where(uniform.to(self.low.device) < 0.5, self.low, self.high)

    def propose(self, delta: Tensor, share: float, rows: Tensor) -> Tensor:
        """A window an image. Where it would change nothing, its signs are turned round."""
        uniform, side = self.draws.next(rows), self.region.side(share)
        height, width = min(side, self.region.height), min(side, self.region.width)
        top, left = self.region.corner(uniform[:, :2], height, width)[:, :, None, None, None].unbind(1)
        inside = (self.lines >= top) & (self.lines < top + height)
        inside = inside & (self.columns >= left) & (self.columns < left + width)
        down = (uniform[:, 2:] < 0.5)[:, :, None, None]
        tried = torch.where(inside, torch.where(down, self.low, self.high), delta)
        same = (tried == delta).flatten(1).all(1)
        if bool(same.any()):
            down = down ^ same[:, None, None, None]
            tried = torch.where(inside, torch.where(down, self.low, self.high), delta)
        return tried

    def keep(self, left: Tensor) -> None:
        self.low, self.high = self.low[left], self.high[left]


class Masses:
    """l2, l1: a window gets a double pyramid, and the mass of another window besides what is unused (algorithm 3)."""

    def __init__(self, origin: Tensor, within: Ball, generator: torch.Generator) -> None:
        self.origin, self.within, self.generator = origin, within, generator
        self.power = 2 if within.norm == "l2" else 1
        self.region = _Region(origin, within.mask)  # pyright: ignore[reportArgumentType]
        self.draws = Draws(len(origin), 5 + origin.shape[1], generator)
        self.shapes: dict[int, Tensor] = {}
        self._prepare()

    def _prepare(self) -> None:
        n, c = self.origin.shape[:2]
        reach: Any = self.within.reach(self.origin)
        self.radius: Tensor = (self.origin.new_zeros(n, 1, 1, 1) + reach).reshape(n, 1)
        mask: Any = self.within.mask
        self.mask: Tensor | None = None if mask is None else mask.expand_as(self.origin)
        self.image = torch.arange(n, device=self.origin.device)[:, None, None, None]
        self.channel = torch.arange(c, device=self.origin.device)[:, None, None]

    def first(self) -> Tensor:
        """A grid of windows that fills the region, of the ball's radius (section 3.4)."""
        delta, region = torch.zeros_like(self.origin), self.region
        n, c = delta.shape[:2]
        height, width = max(region.height // TILES, 1), max(region.width // TILES, 1)
        shape, source = window(height, width, FALL[self.within.norm]), self.generator
        for top in range(region.top, region.top + region.height - height + 1, height):
            for left in range(region.left, region.left + region.width - width + 1, width):
                sign = torch.rand(n, c, 1, 1, generator=source, device=source.device).sub_(0.5).sign_().to(delta)
                delta[:, :, top : top + height, left : left + width] = sign * shape.to(delta)
        if self.mask is not None:
            delta = torch.where(self.mask, delta, 0.0)
        size = self._mass(delta).sum(1, keepdim=True) ** (1 / self.power)
        return self._inside(delta * (self.radius / size.clamp(min=1e-12))[:, :, None, None])

    def propose(self, delta: Tensor, share: float, rows: Tensor) -> Tensor:
        """Two windows an image: one to take from, one to give to."""
        side = max(self.region.side(share), 3)
        side = min(side + 1 - side % 2, self.region.height, self.region.width)
        uniform = self.draws.next(rows)
        here, there = self._window(uniform[:, :2], side), self._window(uniform[:, 2:4], side)
        new = delta.clone()
        unused = (self.radius**self.power - self._mass(delta).sum(1, keepdim=True)).clamp(min=0) / delta.shape[1]
        given = new[here]
        new[here] = 0.0
        taken = new[there]
        new[there] = 0.0
        mass = self._mass(given) + self._mass(taken) + unused
        shape = self._shape(side).to(delta)
        turned = torch.where((uniform[:, 4] < 0.5)[:, None, None, None], shape, shape.T)
        sign = (uniform[:, 5:] - 0.5).sign()[:, :, None, None].to(delta)
        moved = sign * turned + given / self._length(given)
        if self.mask is not None:
            moved = torch.where(self.mask[here], moved, 0.0)
        new[here] = moved / self._length(moved) * (mass ** (1 / self.power))[:, :, None, None]
        return self._inside(new)

    def keep(self, left: Tensor) -> None:
        self.origin, self.within = self.origin[left], self.within.rows(left)
        self._prepare()

    def _window(self, uniform: Tensor, side: int) -> tuple[Tensor, ...]:
        top, left = self.region.corner(uniform, side, side).unbind(1)
        steps = torch.arange(side, device=top.device)
        return (
            self.image,
            self.channel,
            (top[:, None] + steps)[:, None, :, None],
            (left[:, None] + steps)[:, None, None],
        )

    def _shape(self, side: int) -> Tensor:
        if side not in self.shapes:
            self.shapes[side] = window(side, side, FALL[self.within.norm]).to(self.origin.device)
        return self.shapes[side]

    def _mass(self, tensor: Tensor) -> Tensor:
        """The power of the norm, of each channel: (k, c)."""
        return (tensor.square() if self.power == 2 else tensor.abs()).sum((2, 3))

    def _length(self, tensor: Tensor) -> Tensor:
        return (self._mass(tensor) ** (1 / self.power)).clamp(min=1e-12)[:, :, None, None]

    def _inside(self, delta: Tensor) -> Tensor:
        if self.power == 2:
            return self.within.project(delta, self.origin)  # pyright: ignore[reportReturnType]
        ends = (-torch.inf, torch.inf) if self.within.box is None else self.within.box
        low, high = ((end - self.origin).flatten(1) for end in ends)
        free = delta if self.mask is None else torch.where(self.mask, delta, 0.0)
        return project_l1_box(free.flatten(1), low.clamp(max=0), high.clamp(min=0), self.radius).reshape_as(delta)


def window(height: int, width: int, fall: int) -> Float[Tensor, "h w"]:
    """Two pyramids above each other, the lower one negative: their largest entries 1 + 2^-fall + 3^-fall + ..."""
    half = height // 2
    return torch.cat([_pyramid(half, width, fall), -_pyramid(height - half, width, fall)])


def _pyramid(height: int, width: int, fall: int) -> Tensor:
    """At a distance of d from the centre, the sum of j^-fall over j > d."""
    rings = max(height, width) // 2 + 1
    heights = torch.arange(1, rings + 1).float().pow(-fall).flip(0).cumsum(0).flip(0)
    lines, columns = (torch.arange(height) - height // 2).abs(), (torch.arange(width) - width // 2).abs()
    return heights[torch.maximum(lines[:, None], columns[None])]
