"""An evaluation that several processes share: each has every count-th batch, and all end with the whole."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")


class Share(Protocol):
    """The processes of `evaluate`: `shaketable.training.Processes` are such."""

    @property
    def rank(self) -> int: ...

    @property
    def count(self) -> int: ...

    def gather(self, value: Any) -> list[Any]:
        """A tensor, or JSON values, of all processes in order of rank."""
        ...


def gathered(
    share: Share, tables: list[Tensor], notes: list[list[int]], make: Callable[[Tensor, list[int]], Part]
) -> list[Part]:
    """The parts of all processes in the order of the batches.

    Args:
        tables: of each own batch, (images, columns) in float64.
        notes: of each own batch, whole numbers.
        make: a part of its table and its notes.
    """
    everybody = share.gather([[len(table) for table in tables], notes])
    width = max((len(table[0]) for table in tables if len(table)), default=0)
    widths = share.gather(width)
    own = torch.cat(tables) if tables else torch.zeros(0, max(widths), dtype=torch.float64)
    columns = share.gather(own)
    cut = [list(rows.split(sizes)) for rows, (sizes, _) in zip(columns, everybody, strict=True)]
    parts: list[Part] = []
    for k in range(sum(len(tables) for tables in cut)):
        rank, place = k % share.count, k // share.count
        parts.append(make(cut[rank][place], everybody[rank][1][place]))
    return parts
