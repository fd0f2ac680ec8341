"""What happens to images along an attack's path: when first, and how far they had been changed."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NEVER = -1


@dataclass(frozen=True, eq=False)
class Norms:
    """How far images were changed, each of shape (n,), float64.

    Args:
        l0: the share of pixel positions that differ, in any channel.
        l0_inside: the same, of the region's positions.
        l2: Euclidean, over all channels and pixels; that inside the region is the same, since nothing outside changes.
        linf: the largest change of an entry; that inside is the same.
    """

    l0: Float[Tensor, " n"]
    l0_inside: Float[Tensor, " n"]
    l2: Float[Tensor, " n"]
    linf: Float[Tensor, " n"]


def norms(point: Float[Tensor, "n ..."], x: Float[Tensor, "n ..."], mask: Tensor | None = None) -> Norms:
    """The norms of point - x, in float64. Checked by tests/attacks/test_regional.py."""
    n, change = len(x), point.double() - x.double()
    changed = (change != 0).flatten(2).any(1) if x.dim() > 2 else change != 0
    inside = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.expand_as(x)
    region = inside.flatten(2).any(1) if x.dim() > 2 else inside
    flat, count = change.flatten(1), changed.sum(1).double()
    largest = flat.abs().amax(1) if flat.shape[1] else flat.new_zeros(n)
    return Norms(
        count / max(1, changed.shape[1]),
        count / region.sum(1).clamp(min=1),
        torch.linalg.vector_norm(flat, dim=1),
        largest,
    )


@dataclass(frozen=True, eq=False)
class Event:
    """When something first happened along the path, and where the image was then.

    Args:
        first: the iterate, 0 for the clean image, -1 if it never did; (n,).
        norms: at that iterate; infinite where it never happened.
        points: the images at that iterate, the last ones where it never happened; None unless they were asked for.
    """

    first: Int[Tensor, " n"]
    norms: Norms
    points: Float[Tensor, "n ..."] | None

    @property
    def happened(self) -> Bool[Tensor, " n"]:
        """Where it did."""
        return self.first != NEVER


class Sighting:
    """An `Event` while it is being looked for."""

    def __init__(self, x: Tensor, mask: Tensor | None, keep: bool) -> None:
        self.x, self.mask = x, mask
        self.first = torch.full((len(x),), NEVER, dtype=torch.int64, device=x.device)
        never = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
        self.norms = Norms(never, never.clone(), never.clone(), never.clone())
        self.points = x.clone() if keep else None

    def note(self, rows: Tensor, hit: Tensor, k: Tensor | int, point: Tensor) -> None:
        """Write down that some of the rows were hit at iterate k, those that were not before."""
        new = hit & (self.first[rows] == NEVER)
        if not bool(new.any()):
            return
        where, there = rows[new], point[new]
        self.first[where] = k[new] if isinstance(k, Tensor) else k
        found = norms(there, self.x[where], None if self.mask is None else part_of(self.mask, where))
        for name, values in vars(found).items():
            getattr(self.norms, name)[where] = values
        if self.points is not None:
            self.points[where] = there

    def open(self, rows: Tensor) -> Tensor:
        """Which of the rows it has not happened to."""
        return self.first[rows] == NEVER

    def done(self, rows: Tensor, last: Tensor) -> None:
        """Where it never happened, the kept points are the last ones."""
        if self.points is not None:
            never = self.open(rows)
            self.points[rows[never]] = last[never]

    def event(self) -> Event:
        """What was seen."""
        return Event(self.first, self.norms, self.points)


def part_of(mask: Tensor, rows: Tensor) -> Tensor:
    """The masks of some of the images; the one mask that all share."""
    return mask if len(mask) == 1 else mask[rows]
