"""The worst point of each example over several attacks, of which each is run on what the ones before it have left."""

from typing import Any

import torch
from torch import Tensor

from ..core.ball import Ball
from ..core.perturb import Perturbation
from ..core.record import Calls, Flags


class Worst:
    """What runs on some of the examples add up to.

    Args:
        x: all examples.
        within: their ball.
        compares: whether of two points of which neither is finished the one of higher value is kept; else the first.

    Checked by tests/attacks/test_apgd.py and tests/attacks/test_autoattack.py.
    """

    def __init__(self, x: Tensor, within: Ball, *, compares: bool) -> None:
        self.x, self.within, self.compares = x, within, compares
        none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.delta: Tensor = torch.zeros_like(x)
        self.value: Tensor = x.new_full((len(x),), -torch.inf)
        self.stopped: Tensor = none
        self.calls: Calls = Calls()
        self.touched, self.asked, self.seen, self.nonfinite = none.clone(), none.clone(), none.clone(), none.clone()

    def left(self) -> Tensor:
        """The indices of the examples that are not finished."""
        return torch.nonzero(~self.stopped)[:, 0]

    def take(self, rows: Tensor, found: Perturbation, stopped: Tensor) -> None:
        """Write down what a run on these examples found, and which of them it finished.

        An example counts as one of a vanishing gradient if every run that asked for its gradient says so.
        """
        value = self.value[rows] if found.value is None else found.value.to(self.value)
        better = ~self.touched[rows]
        if self.compares:
            better = better | (value > self.value[rows])
        better = (better & ~self.stopped[rows]) | stopped
        column = better.reshape(-1, *[1] * (self.x.dim() - 1))
        self.delta[rows] = torch.where(column, found.delta, self.delta[rows])
        self.value[rows] = torch.where(better, value, self.value[rows])
        self.stopped = self.stopped.index_put((rows,), self.stopped[rows] | stopped)
        self.touched[rows] = True
        self.calls += found.calls
        self.nonfinite[rows] |= found.flags.nonfinite
        if found.calls.backward:
            self.asked[rows] = True
            self.seen[rows] |= ~found.flags.vanishing

    def refuse(self, rows: Tensor, calls: Calls) -> None:
        """Write down that a run found no gradient on these examples at all."""
        self.asked[rows] = True
        self.calls += calls

    def flags(self) -> Flags:
        """What was suspicious over all runs."""
        return Flags(self.asked & ~self.seen, self.nonfinite, self.stopped)

    def placed(self) -> tuple[Tensor, Any]:
        """The points, exactly inside the box, and the sizes of their perturbations."""
        with torch.inference_mode(False), torch.no_grad():
            limits = self.within.on(self.x)
            return limits.clip(self.x + self.delta), limits.size(self.delta, self.x)  # pyright: ignore

    def perturbation(self, valued: bool) -> Perturbation:
        """All of it; without values if they cannot be compared."""
        point, size = self.placed()
        value = self.value if valued else None
        return Perturbation(self.x, self.delta, point, value, size, self.calls, self.flags())
