"""What Square tries next, and in linf balls: windows of an image that go to the edge of the ball."""

import math
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.ball import Ball
from .window_passes import WindowPasses

HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10000 queries
BLOCK = 64  # queries whose random numbers are drawn at once


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
        self.count, self.width, self.generator, self.place = count, width, generator, BLOCK - 1
        self.rows: Tensor | None = None
        self.block = self.ahead = torch.zeros(0)

    def step(self, rows: Tensor) -> bool:
        """Go on to the next query: `ahead[place]`, (k, w), of a block for these images; returns whether it is a new one."""
        self.place = (self.place + 1) % BLOCK
        if self.place and rows is self.rows:
            return False
        if not self.place:
            shape, device = (BLOCK, self.count, self.width), self.generator.device
            self.block = torch.rand(shape, generator=self.generator, device=device).to(rows.device)
        self.rows, self.ahead = rows, self.block[:, rows]
        return True

    def next(self, rows: Tensor) -> Float[Tensor, "k w"]:
        """Those of the next query, for some of the images."""
        self.step(rows)
        return self.ahead[self.place]


class Moves(Protocol):
    """The candidates of a norm, for the images that are left, and the points that have been taken so far."""

    def begin(self) -> Tensor:
        """The first points."""
        ...

    def tried(self, share: float, rows: Tensor) -> Tensor:
        """The next candidates, to be looked at before anything else is asked."""
        ...

    def logits(self) -> Tensor | None:
        """Of the candidates, where that takes less than a pass of the model; else None."""
        ...

    def settle(self, better: Tensor) -> None:
        """Which of them, (k,), are taken."""
        ...

    def delta(self) -> Tensor:
        """The perturbations of the points that have been taken."""
        ...

    def keep(self, left: Tensor) -> None:
        """Let the other images go."""
        ...


class Region:
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
        """Where windows begin: (..., 2), downwards and across, of two columns of uniform numbers."""
        places = self.places.get((height, width))
        if places is None:
            room = (self.height - height + 1, self.width - width + 1)
            ends = (room, (self.top, self.left))
            places = self.places[height, width] = torch.tensor(ends, device=uniform.device)
        return (uniform * places[0]).long() + places[1]  # a product of floats stays below the room


class Windows:
    """linf: all pixels of a window go to one end of what is allowed, by a sign for each channel (algorithm 2).

    Every pixel is always at one of its ends, so a candidate is written into the points in place, and taken back where it is no
    better: what is done in a query grows with the window, not with the image. Where `passes` are given, so do the passes.
    """

    def __init__(
        self, origin: Tensor, within: Ball, generator: torch.Generator, passes: WindowPasses | None = None
    ) -> None:
        reach: Any = within.reach(origin)
        low, high = torch.zeros_like(origin) - reach, torch.zeros_like(origin) + reach
        if within.box is not None:
            low, high = torch.maximum(low, within.box[0] - origin), torch.minimum(high, within.box[1] - origin)
        mask: Any = within.mask
        if mask is not None:
            low, high = torch.where(mask, low, 0.0), torch.where(mask, high, 0.0)
        self.shape, self.generator, self.passes, self.follows = origin.shape[1:], generator, passes, False
        self.ends = [end.flatten(1) for end in (low, high)]
        self.points = [within.clip(origin + end).flatten(1) for end in (low, high)]  # pyright: ignore
        self.region = Region(origin, mask)
        self.draws = Draws(len(origin), 2 + origin.shape[1], generator)
        self.offsets: dict[tuple[int, int], Tensor] = {}
        self.size = (0, 0)

    def begin(self) -> Tensor:
        """Vertical stripes of width one (section 3.3)."""
        n, (c, h, w) = len(self.ends[0]), self.shape
        uniform = torch.rand(n, c, 1, w, generator=self.generator, device=self.generator.device)
        down = (uniform < 0.5).expand(n, c, h, w).reshape(n, -1).to(self.ends[0].device)
        self.point: Tensor = torch.where(down, *self.points)
        return self.point.unflatten(1, self.shape).clone()

    def tried(self, share: float, rows: Tensor) -> Tensor:
        """A window an image. Where it would change nothing, its signs are turned round."""
        side = self.region.side(share)
        size = min(side, self.region.height), min(side, self.region.width)
        if self.draws.step(rows) or size != self.size:
            self._look_ahead(size)
        self.place = self.corners[self.draws.place] + self._offsets(*size)
        down = self.down[self.draws.place]
        if self.shape[0] > 1:
            down = down.repeat_interleave(size[0] * size[1], 1)
        low, high = (end.gather(1, self.place) for end in self.points)
        self.old = self.point.gather(1, self.place)
        new = torch.where(down, low, high)
        same = (new == self.old).all(1, keepdim=True)
        self.new = torch.where(down ^ same, low, high)
        self.point.scatter_(1, self.place, self.new)
        point = self.point.unflatten(1, self.shape)
        return point if self.follows else point.clone()  # a model may write into what it is given

    def logits(self) -> Tensor | None:
        if self.passes is None or not self.follows:
            return None
        return self.passes.logits(self.draws.place, self.new.unflatten(1, (self.shape[0], *self.size)))

    def settle(self, better: Tensor) -> None:
        if self.passes is not None and self.follows:
            self.passes.settle(better)
        self.point.scatter_(1, self.place, torch.where(better[:, None], self.new, self.old))

    def delta(self) -> Tensor:
        return torch.where(self.point == self.points[0], *self.ends).unflatten(1, self.shape)

    def keep(self, left: Tensor) -> None:
        self.ends, self.points = [end[left] for end in self.ends], [end[left] for end in self.points]
        self.point = self.point[left]
        if self.passes is not None and self.follows:
            self.passes.keep(left)

    def _look_ahead(self, size: tuple[int, int]) -> None:
        """Where the windows of all queries of a block begin in a flat image, and their signs."""
        uniform = self.draws.ahead
        corner = self.region.corner(uniform[..., :2], *size)
        if self.passes is not None:
            if size != self.size:
                self.follows = self.passes.begin(self.point.unflatten(1, self.shape), size)
            if self.follows:
                self.passes.aim(corner)
        self.size = size
        self.corners: Tensor = corner[..., :1] * self.shape[2] + corner[..., 1:]
        self.down: Tensor = uniform[..., 2:] < 0.5

    def _offsets(self, height: int, width: int) -> Tensor:
        """Of the pixels of a window from its corner, in all channels, in a flat image."""
        if (height, width) not in self.offsets:
            c, h, w = self.shape
            parts = [torch.arange(size, device=self.point.device) * step for size, step in ((c, h * w), (height, w))]
            columns = torch.arange(width, device=self.point.device)
            self.offsets[height, width] = (parts[0][:, None, None] + parts[1][:, None] + columns).flatten()
        return self.offsets[height, width]
