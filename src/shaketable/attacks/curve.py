"""Robust accuracy over radii: each image is attacked at ever larger balls until it falls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.ball import Ball
from ..core.errors import InputError
from ..core.record import Calls
from ..data.dataset import Dataset
from ..stats import Rate
from .attack import Attack
from .evaluate import evaluate
from .evaluation import Evaluation, Finding
from .parts import Parts


@dataclass(frozen=True, eq=False, repr=False)
class Curve:
    """What `curve` found.

    Args:
        radii: ascending.
        robust: of each radius, which images are right as they are and at every point found up to it.
        evaluations: of each radius, that of the images that stood before; the first is of all images.
        rows: which images each of them is about.
    """

    radii: tuple[float, ...]
    robust: Bool[Tensor, "radii n"]
    evaluations: tuple[Evaluation, ...]
    rows: tuple[Int[Tensor, " k"], ...]

    @property
    def clean(self) -> Rate:
        """Clean accuracy."""
        return self.evaluations[0].clean

    @property
    def rates(self) -> tuple[Rate, ...]:
        """Robust accuracy at each radius, over all images."""
        return tuple(Rate(int(row.sum()), len(row)) for row in self.robust)

    @property
    def calls(self) -> Calls:
        """All passes, in images."""
        return sum((e.calls for e in self.evaluations), Calls())

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of all radii; of each code the one that is about most images."""
        most: dict[str, Finding] = {}
        for f in (f for e in self.evaluations for f in e.findings):
            if f.code not in most or f.count > most[f.code].count:
                most[f.code] = f
        return tuple(most.values())

    def __repr__(self) -> str:
        last = f"robust={self.rates[-1]} at {self.radii[-1]:.4g}"
        return f"Curve({len(self.radii)} radii, clean={self.clean}, {last}, {len(self.findings)} findings)"


def curve(
    model: Any,
    x: Float[Tensor, "n ..."] | Dataset,
    y: Int[Tensor, " n"] | None = None,
    *,
    within: Ball,
    radii: Sequence[float],
    seed: int,
    attack: Attack | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
    kept: Callable[[tuple[float, ...]], Parts] | None = None,
) -> Curve:
    """Robust accuracy at several radii.

    A smaller ball lies in a larger one, so an image that fell need not be attacked again: the curve never rises, and is at
    every radius the worst case over the attacks at all smaller ones. It is therefore at most what an evaluation at that
    radius alone gives.

    Args:
        model, x, y, attack, batch_size, progress: see `evaluate`; x is a tensor or a Dataset.
        within: the ball, whose radius is replaced.
        radii: in any order; 0 is the clean accuracy.
        seed: the same at every radius.
        kept: makes what `evaluate` takes of this name, of the radii up to each one, on which what still stands depends.

    Cost: see `evaluate`, for each radius on the images that still stand (a radius of 0: one forward pass an image).
    Raises: InputError: no radii, and what `evaluate` raises. Checked by tests/attacks/test_curve.py.
    """
    wanted = sorted({float(r) for r in radii})
    if not wanted:
        raise InputError("radii", "at least one radius", "none", "Give 0, 2/255, 4/255, for example.")
    n = len(x)
    standing, done = torch.arange(n), list[Evaluation]()
    robust, rows = torch.zeros(len(wanted), n, dtype=torch.bool), list[Tensor]()
    for k, radius in enumerate(wanted):
        if k and not len(standing):
            break
        some = x if not k else x.take(standing) if isinstance(x, Dataset) else x[standing.to(x.device)]
        labels = None if y is None else y[standing.to(y.device)]
        found = evaluate(
            model, some, labels, within=replace(within, radius=radius), attack=attack, seed=seed, batch_size=batch_size,
            progress=progress, kept=None if kept is None else kept(tuple(wanted[: k + 1])),
        )  # fmt: skip
        done.append(found)
        rows.append(standing)
        if k and progress is not None and len(standing) < n:
            progress(n - len(standing))
        standing = standing[found.robust_correct.cpu()]
        robust[k, standing] = True
    return Curve(tuple(wanted), robust, tuple(done), tuple(rows))
