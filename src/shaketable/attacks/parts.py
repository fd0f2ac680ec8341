"""The evaluation of one batch, how processes pass it on, how it is kept, and the whole made of all of them."""

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.record import Calls
from .evaluation import Counts, Evaluation, Member, findings_of, summed

_LOSSES = ("clean_loss", "adversarial_loss", "size")


@dataclass(frozen=True, eq=False)
class Part:
    """What was found of one batch."""

    clean: Bool[Tensor, " n"]
    robust: Bool[Tensor, " n"]
    clean_loss: Float[Tensor, " n"]
    adversarial_loss: Float[Tensor, " n"]
    size: Float[Tensor, " n"]
    calls: Calls
    counts: Counts
    points: Tensor | None
    members: tuple[Member, ...] = ()

    @property
    def table(self) -> Float[Tensor, "n 5"]:
        """What is known of each image, in float64."""
        columns = (self.clean, self.robust, self.clean_loss, self.adversarial_loss, self.size)
        return torch.stack([column.cpu().double() for column in columns], 1)

    @property
    def notes(self) -> list[int]:
        """Passes and counts."""
        return [self.calls.forward, self.calls.backward, *vars(self.counts).values()]

    @staticmethod
    def of_table(table: Tensor, notes: list[int]) -> "Part":
        """The inverse of `table` and `notes`, which know nothing of the members of an ensemble."""
        clean, robust, loss, worst, size = table.unbind(1)
        return Part(clean.bool(), robust.bool(), loss, worst, size, Calls(*notes[:2]), Counts(*notes[2:]), None)

    def to_json(self) -> dict[str, Any]:
        """All but the points, as JSON values; floats to the bit."""
        members = [[m.name, m.attacked, m.broken, m.calls.forward, m.calls.backward] for m in self.members]
        kinds = [str(getattr(self, name).dtype).removeprefix("torch.") for name in _LOSSES]
        return {"table": self.table.tolist(), "notes": self.notes, "members": members, "dtypes": kinds}

    @staticmethod
    def of_json(value: dict[str, Any]) -> "Part":
        """The inverse of `to_json`."""
        part = Part.of_table(torch.tensor(value["table"], dtype=torch.float64).reshape(-1, 5), value["notes"])
        losses = {
            name: getattr(part, name).to(getattr(torch, kind))
            for name, kind in zip(_LOSSES, value["dtypes"], strict=True)
        }
        members = tuple(Member(name, of, hit, Calls(up, down)) for name, of, hit, up, down in value["members"])
        return replace(part, **losses, members=members)


class Parts(Protocol):
    """Where finished batches are kept, by their number."""

    def get(self, index: int) -> Part | None:
        """What was found of a batch; None if it is not there."""
        ...

    def put(self, index: int, part: Part) -> None:
        """Keep what was found of a batch."""
        ...


def joined(parts: list[Part], measure: Literal["accuracy", "loss"]) -> Evaluation:
    """The evaluation of all batches."""

    def join(name: str) -> Tensor:
        return torch.cat([getattr(part, name).cpu() for part in parts])

    kept = all(part.points is not None for part in parts)
    counts = sum((part.counts for part in parts), Counts())
    return Evaluation(
        join("clean"), join("robust"), join("clean_loss"), join("adversarial_loss"), join("size"),
        sum((part.calls for part in parts), Calls()), measure, findings_of(counts), join("points") if kept else None,
        summed(part.members for part in parts),
    )  # fmt: skip
