"""What the lints of an evaluation look at and return: images that a model gets right, attacks on them, a check."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..core.ball import Ball
from ..core.places import at
from ..core.record import Calls
from .attack import Attack
from .evaluate import evaluate
from .evaluation import Evaluation, Finding

SHARE, LEAST = 0.05, 2


@dataclass(frozen=True)
class Check:
    """What a lint measured.

    Args:
        code: its name in `LINTS`.
        passed: whether nothing is suspicious.
        measured: a sentence with the numbers.
        remedy: what to do if it did not pass.
        count: how many images it is about.
    """

    code: str
    passed: bool
    measured: str
    remedy: str
    count: int = 0

    @property
    def finding(self) -> Finding | None:
        """What the evaluation's reader must know; None if it passed."""
        return None if self.passed else Finding("finding", self.code, self.measured, self.remedy, self.count)


@dataclass(eq=False)
class Probe:
    """What the lints look at: a model, images that it gets right, and attacks on them, each made once."""

    model: Any
    x: Tensor
    y: Tensor
    within: Ball
    attack: Attack
    seed: int
    surrogates: Mapping[str, Any]
    calls: Calls = Calls()

    @property
    def n(self) -> int:
        """How many images."""
        return len(self.x)

    def logits(self, x: Tensor) -> Tensor:
        """A forward pass."""
        self.calls += Calls(len(x), 0)
        with torch.no_grad():
            return at(self.model)(x)

    def run(
        self, attack: Attack, *, scale: float = 1.0, seed: int | None = None, rows: Tensor | None = None
    ) -> Evaluation:
        """An evaluation of some images, at a multiple of the radius."""
        x, y = (self.x, self.y) if rows is None else (self.x[rows], self.y[rows])
        ball = replace(self.within, radius=float(self.within.radius) * scale)
        found = evaluate(
            self.model, x, y, within=ball, attack=attack, seed=self.seed if seed is None else seed, points=True
        )
        self.calls += found.calls
        return found

    @cached_property
    def main(self) -> Evaluation:
        """The evaluation's own attack."""
        return self.run(self.attack)

    @cached_property
    def standing(self) -> Int[Tensor, " k"]:
        """The images that survive it."""
        return torch.nonzero(self.main.robust_correct.to(self.y.device))[:, 0]

    def fallen(self, attack: Attack, **options: Any) -> int:
        """How many of the survivors another attack fools."""
        rows = self.standing
        return len(rows) - int(self.run(attack, rows=rows, **options).robust_correct.sum()) if len(rows) else 0


def many(count: int, of: int) -> bool:
    """Whether so many are suspicious."""
    return count >= LEAST and count > SHARE * of
