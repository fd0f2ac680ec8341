"""Which lines and columns of a network's maps a window of its image may change."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reach:
    """Of the lines (or columns) of a map: the first that changes, by where the window begins, and how many may change."""

    first: Tensor
    part: int
    full: int

    @classmethod
    def window(cls, part: int, full: int) -> "Reach":
        """Of the image itself."""
        return cls(torch.arange(full - part + 1), part, full)

    def through(self, kernel: int, stride: int, padding: int) -> "Reach":
        """What of the output of a convolution reads what changes."""
        full = (self.full + 2 * padding - kernel) // stride + 1
        part = min((self.part + kernel - 2) // stride + 1, full)
        first = -(-(self.first + padding - kernel + 1) // stride)
        return Reach(first.clamp(0, full - part), part, full)

    def joined(self, other: "Reach") -> "Reach":
        """What changes in a sum."""
        first = torch.minimum(self.first, other.first)
        part = int((torch.maximum(self.first + self.part, other.first + other.part) - first).max())
        return Reach(first.clamp(max=self.full - part), part, self.full)

    def same(self, other: "Reach") -> bool:
        return self.part == other.part and torch.equal(self.first, other.first)


@dataclass(frozen=True)
class Area:
    """What changes in a map: its lines and columns."""

    lines: Reach
    columns: Reach

    @property
    def size(self) -> tuple[int, int]:
        return self.lines.part, self.columns.part

    @property
    def share(self) -> float:
        """At most so much of the map."""
        return self.lines.part * self.columns.part / (self.lines.full * self.columns.full)

    def joined(self, other: "Area") -> "Area":
        return Area(self.lines.joined(other.lines), self.columns.joined(other.columns))

    def same(self, other: "Area") -> bool:
        return self.lines.same(other.lines) and self.columns.same(other.columns)
