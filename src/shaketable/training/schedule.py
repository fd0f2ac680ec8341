"""Learning rates as values: a function of the share of the training that is done."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

from ..core import InputError


class Schedule(Protocol):
    """A factor of the learning rate at a share of the training in [0, 1)."""

    def __call__(self, done: float) -> float: ...


@dataclass(frozen=True)
class MultiStep:
    """Multiply by a factor at given shares of the training: /10 at 50 % and 75 %, as AT and AWP do (Rice et al. 2020).

    Args:
        at: rising shares; Stutz et al. 2021 use (.4, .6, .8), epochs 60, 90 and 120 of 150.
        factor: of the rate at each of them.
    """

    at: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1

    def __post_init__(self) -> None:
        _require_steps(self.at, self.factor)

    def __call__(self, done: float) -> float:
        """The factor at this share."""
        return self.factor ** sum(done >= share for share in self.at)


@dataclass(frozen=True)
class Late:
    """Multi-step with steps that come late: /10 at 14/15 and at 29/30 of the training.

    Args:
        at: the shares. Stutz et al. 2021 study a "late multi-step"; their released code takes epochs 140 and 145 of 150,
            which are these. We keep the shares when the number of epochs is another, which is our choice.
        factor: of the rate at each of them.
    """

    at: tuple[float, ...] = (140 / 150, 145 / 150)
    factor: float = 0.1

    def __post_init__(self) -> None:
        _require_steps(self.at, self.factor)

    def __call__(self, done: float) -> float:
        """The factor at this share."""
        return MultiStep(self.at, self.factor)(done)


@dataclass(frozen=True)
class Constant:
    """No change."""

    def __call__(self, done: float) -> float:
        """Always 1."""
        return 1.0


@dataclass(frozen=True)
class Cyclic:
    """Linearly up and down again in each cycle, from `low` to 1 and back (Smith 2017, the triangular policy).

    Args:
        cycles: of equal length over the whole training; Stutz et al. 2021 take 1 to 4. Their cycle has 30 epochs and a rate
            of 0 to .2, so n cycles are `epochs=30 n, rate=.2`.
        low: the factor at both ends of a cycle; 0, as Wong et al. 2020 and Stutz et al. 2021.
        peak: the share of a cycle at which the rate is highest; .5, as in the code of both.

    At low 0 the first step of the training has rate 0: it moves BatchNorm's statistics and the momentum, no weight.
    """

    cycles: int = 1
    low: float = 0.0
    peak: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.cycles, int) or self.cycles < 1:
            raise InputError("cycles", "a whole number >= 1", repr(self.cycles), "Use 1, one rise and one fall.")
        _require_low(self.low)
        if not (_is_number(self.peak) and 0 < self.peak < 1):
            raise InputError("peak", "a share of the cycle in (0, 1)", repr(self.peak), "Use 0.5, its middle.")

    def __call__(self, done: float) -> float:
        """The factor at this share; at 1 the end of the last cycle."""
        phase = (done * self.cycles) % 1.0
        height = phase / self.peak if phase < self.peak else (1.0 - phase) / (1.0 - self.peak)
        return self.low + (1.0 - self.low) * height


@dataclass(frozen=True)
class Cosine:
    """Down along half a cosine from 1 to `low` (Loshchilov & Hutter 2017, eq. 5, without restarts).

    Args:
        low: the factor at the end; 0.
        warmup: the share of the training over which the rate first rises linearly from `low` to 1; none by default. The
            paper has none; it is Goyal et al.'s (2017) gradual warm-up.
    """

    low: float = 0.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        _require_low(self.low)
        if not (_is_number(self.warmup) and 0 <= self.warmup < 1):
            remedy = "Use 0.05 for a twentieth of the training; epochs are divided by all epochs."
            raise InputError("warmup", "a share of the training in [0, 1)", repr(self.warmup), remedy)

    def __call__(self, done: float) -> float:
        """The factor at this share."""
        if done < self.warmup:
            height = done / self.warmup
        else:
            height = (1.0 + math.cos(math.pi * (done - self.warmup) / (1.0 - self.warmup))) / 2.0
        return self.low + (1.0 - self.low) * height


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_low(low: Any) -> None:
    if not (_is_number(low) and 0 <= low <= 1):
        raise InputError("low", "a factor in [0, 1]", repr(low), "Use 0; the highest rate is the training's own.")


def _require_steps(at: Any, factor: Any) -> None:
    given = isinstance(at, tuple | list) and all(_is_number(share) and 0 <= share <= 1 for share in at)
    if not given or list(at) != sorted(at):
        raise InputError("at", "rising shares of the training, in [0, 1]", repr(at), "Use (0.5, 0.75).")
    if not (_is_number(factor) and 0 < factor < math.inf):
        raise InputError("factor", "a finite number > 0", repr(factor), "Use 0.1, a tenth at each share.")
