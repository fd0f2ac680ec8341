"""Survival curves: how many withstand up to a size, where for some it is known only that they withstood what was tried."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import InputError


@dataclass(frozen=True)
class Curve:
    """The share that has not fallen, as a step function of a size.

    Args:
        sizes: where some fell, rising.
        shares: what is left from there on; 1 before the first.
        fallen, censored: how many fell, and how many had not when the trial ended.
    """

    sizes: tuple[float, ...]
    shares: tuple[float, ...]
    fallen: int
    censored: int

    def __call__(self, size: float) -> float:
        """The share that withstands this size."""
        left = 1.0
        for at, share in zip(self.sizes, self.shares, strict=True):
            if at > size:
                break
            left = share
        return left

    @property
    def median(self) -> float:
        """The smallest size at which no more than half are left; infinite if more than half withstand everything."""
        return next((at for at, share in zip(self.sizes, self.shares, strict=True) if share <= 0.5), math.inf)


def survival(sizes: Sequence[float], fell: Sequence[bool]) -> Curve:
    """The Kaplan-Meier estimate (Kaplan & Meier 1958).

    Args:
        sizes: at which each fell, or up to which it was tried if it did not; finite, >= 0.
        fell: whether it did.

    A failed attack is a censored size: leaving it out would favour the attack that fails more often. One that was still
    standing at a size counts as tried there. The estimate takes what censors to be independent of what makes fall; with one
    budget of iterations that holds for iterations, and for norms as far as the budget's norms are alike.

    Checked by tests/attacks/test_transfer.py against SciPy's ecdf.
    """
    if len(sizes) != len(fell):
        raise InputError("fell", f"one entry for each of the {len(sizes)} sizes", f"{len(fell)}", "Pair them first.")
    if not all(math.isfinite(size) and size >= 0 for size in sizes):
        raise InputError("sizes", "finite numbers >= 0", "others", "Give the budget where the attack failed.")
    events = sorted({size for size, down in zip(sizes, fell, strict=True) if down})
    shares, left = [], 1.0
    for at in events:
        risk = sum(size >= at for size in sizes)
        left *= 1 - sum(down and size == at for size, down in zip(sizes, fell, strict=True)) / risk
        shares.append(left)
    down = sum(map(bool, fell))
    return Curve(tuple(events), tuple(shares), down, len(fell) - down)
