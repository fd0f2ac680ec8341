"""What Square tries next in l2 and l1 balls: the mass of a perturbation is moved from window to window."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.apgd_l1 import project_l1_box
from ..core.ball import Ball
from .square_moves import Draws, Region

TILES = 5  # along each side, of a start
FALL = {"l2": 2, "l1": 4}  # how fast the pyramids of a window fall off


class Masses:
    """l2, l1: a window gets a double pyramid, and the mass of another window besides what is unused (algorithm 3).

    Perturbations are kept in the images' dtype, so that what the model sees is what is returned; masses and projections are
    computed in float32 at least, since float16 has no number near the squares of small entries.
    """

    def __init__(self, origin: Tensor, within: Ball, generator: torch.Generator) -> None:
        self.origin, self.within, self.generator = origin, within, generator
        self.power = 2 if within.norm == "l2" else 1
        self.region = Region(origin, within.mask)  # pyright: ignore[reportArgumentType]
        self.draws = Draws(len(origin), 5 + origin.shape[1], generator)
        self.shapes: dict[int, Tensor] = {}
        self._prepare()
        self.current = self.candidate = torch.zeros_like(origin)

    def _prepare(self) -> None:
        n, c = self.origin.shape[:2]
        self.wide: Tensor = self.origin.to(torch.promote_types(self.origin.dtype, torch.float32))
        reach: Any = self.within.reach(self.wide)
        self.radius: Tensor = (self.wide.new_zeros(n, 1, 1, 1) + reach).reshape(n, 1)
        mask: Any = self.within.mask
        self.mask: Tensor | None = None if mask is None else mask.expand_as(self.origin)
        self.image = torch.arange(n, device=self.origin.device)[:, None, None, None]
        self.channel = torch.arange(c, device=self.origin.device)[:, None, None]

    def begin(self) -> Tensor:
        """A grid of windows that fills the region, of the ball's radius (section 3.4)."""
        delta, region = torch.zeros_like(self.wide), self.region
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
        self.current = self._inside(delta * (self.radius / size.clamp(min=1e-12))[:, :, None, None])
        return self._point(self.current)

    def tried(self, share: float, rows: Tensor) -> Tensor:
        """Two windows an image: one to take from, one to give to."""
        side = max(self.region.side(share), 3)
        side = min(side + 1 - side % 2, self.region.height, self.region.width)
        uniform = self.draws.next(rows)
        here, there = self._window(uniform[:, :2], side), self._window(uniform[:, 2:4], side)
        new = self.current.to(self.wide, copy=True)
        unused = (self.radius**self.power - self._mass(new).sum(1, keepdim=True)).clamp(min=0) / new.shape[1]
        given = new[here]
        new[here] = 0.0
        taken = new[there]
        new[there] = 0.0
        mass = self._mass(given) + self._mass(taken) + unused
        shape = self._shape(side).to(new)
        turned = torch.where((uniform[:, 4] < 0.5)[:, None, None, None], shape, shape.T)
        sign = (uniform[:, 5:] - 0.5).sign()[:, :, None, None].to(new)
        moved = sign * turned + given / self._length(given)
        if self.mask is not None:
            moved = torch.where(self.mask[here], moved, 0.0)
        new[here] = moved / self._length(moved) * (mass ** (1 / self.power))[:, :, None, None]
        self.candidate = self._inside(new)
        return self._point(self.candidate)

    def logits(self) -> None:
        """A candidate has two windows, and the projection may change more."""

    def settle(self, better: Tensor) -> None:
        self.current = torch.where(better[:, None, None, None], self.candidate, self.current)

    def delta(self) -> Tensor:
        return self.current

    def keep(self, left: Tensor) -> None:
        self.origin, self.within, self.current = self.origin[left], self.within.rows(left), self.current[left]
        self._prepare()

    def _point(self, delta: Tensor) -> Tensor:
        return self.within.clip(self.origin + delta)  # pyright: ignore[reportReturnType]

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
            return self.within.project(delta, self.wide).to(self.origin)  # pyright: ignore[reportAttributeAccessIssue]
        ends = (-torch.inf, torch.inf) if self.within.box is None else self.within.box
        low, high = ((end - self.wide).flatten(1) for end in ends)
        free = delta if self.mask is None else torch.where(self.mask, delta, 0.0)
        kept = project_l1_box(free.flatten(1), low.clamp(max=0), high.clamp(min=0), self.radius)
        return kept.reshape_as(delta).to(self.origin)


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
