"""Learning rates as values: a function of the share of the training that is done."""

import math
from dataclasses import dataclass
from typing import Protocol

from ..core import InputError


class Schedule(Protocol):
    """A factor of the learning rate at a share of the training in [0, 1)."""

    def __call__(self, done: float) -> float: ...


@dataclass(frozen=True)
class MultiStep:
    """Multiply by a factor at given shares of the training: /10 at 50 % and 75 %, as AT and AWP do (Rice et al. 2020)."""

    at: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1

    def __post_init__(self) -> None:
        if list(self.at) != sorted(self.at) or not all(0 <= share <= 1 for share in self.at):
            raise InputError("at", "rising shares of the training, in [0, 1]", str(self.at), "Use (0.5, 0.75).")
        if not 0 < self.factor < math.inf:
            raise InputError("factor", "a finite number > 0", str(self.factor), "Use 0.1, a tenth at each share.")

    def __call__(self, done: float) -> float:
        """The factor at this share."""
        return self.factor ** sum(done >= share for share in self.at)


@dataclass(frozen=True)
class Constant:
    """No change."""

    def __call__(self, done: float) -> float:
        """Always 1."""
        return 1.0
