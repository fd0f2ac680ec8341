"""Averages of the weights over a training: exponential moving average and stochastic weight averaging.

An average is a frozen value; what it remembers is a dict of the caller's, parameter name -> averaged tensor, which is all
that a resumed training needs. Only parameters are averaged: averaged BatchNorm statistics would not be those of the
averaged weights, so they are estimated anew (`reestimate`).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..core import InputError

COUNT, FIRST = ".count", ".first"
"""Entries of SWA's dict that are no parameters: how many weights are in the mean, and the step of the first of them."""


class Average(Protocol):
    """What the loop asks of an average, after each step of the optimiser."""

    def update(self, average: dict[str, Tensor], model: nn.Module, *, step: int, done: float) -> None: ...


@dataclass(frozen=True)
class EMA:
    """Exponential moving average of the weights: a <- d a + (1 - d) w after every step.

    Args:
        decay: d; .995 as Gowal et al. 2020 ("model weight averaging"); Stutz et al. 2021 study .98 to .9975.
        warmup: d is min(decay, (1 + t) / (10 + t)) at step t, so that the first weights are soon forgotten; TensorFlow's
            ExponentialMovingAverage has the formula, and the public reimplementation of Gowal et al. (which copies the
            weights for the first 2.5 % of the training, and counts t from there). False: d from the start, as the code of
            Stutz et al., where the first weights still count d^t after t steps (.22 after 300 steps at .995).

    The average begins as a copy of the weights at its first update, and is kept in at least float32. It is moved by
    (1 - d) (w - a), so weights that stand still leave it as it is, bit for bit. Each update rounds by half a unit in the last
    place, and what is older is forgotten, so the error stays below 1 / (2 (1 - d)) units: 1.2e-5 of a weight at .995 in
    float32. Parameters that are no floating point numbers are copied.

    Cost: no pass; one copy of the weights. Checked by tests/training/test_averaging.py.
    """

    decay: float = 0.995
    warmup: bool = True

    def __post_init__(self) -> None:
        if not (isinstance(self.decay, int | float) and 0 <= self.decay < 1):
            raise InputError("decay", "a number in [0, 1)", repr(self.decay), "Use 0.995; 0 is the last weights.")
        if not isinstance(self.warmup, bool):
            raise InputError("warmup", "True or False", repr(self.warmup), "Write it without quotes.")

    def update(self, average: dict[str, Tensor], model: nn.Module, *, step: int, done: float) -> None:
        """Move the average towards the model's weights, in place.

        Args:
            average: name -> averaged tensor; {} at the start.
            step: of the training, counted from 1.
            done: the share of the training that is done; not used.

        Raises:
            InputError: the dict is of another model.
        """
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        _move(average, model, 1 - decay)


@dataclass(frozen=True)
class SWA:
    """Stochastic weight averaging (Izmailov et al. 2018): the mean of the weights of the last part of the training.

    Args:
        start: the share of the training after which weights are averaged; .75, as the paper does with its budget (recalled).
        every: steps between two weights in the mean, from the first one on. 1 averages all of them; the paper's once an
            epoch is the number of steps an epoch.

    The mean is arithmetic, a <- a + (w - a) / k for the k-th weights, kept in at least float32. The schedule is left to the
    training: the paper's is constant or cyclic there. Parameters that are no floating point numbers are copied. Until the
    start the dict stays empty.

    Cost: no pass; one copy of the weights. Checked by tests/training/test_averaging.py.
    """

    start: float = 0.75
    every: int = 1

    def __post_init__(self) -> None:
        if not (isinstance(self.start, int | float) and 0 <= self.start < 1):
            raise InputError("start", "a share of the training in [0, 1)", repr(self.start), "Use 0.75.")
        if not isinstance(self.every, int) or self.every < 1:
            raise InputError("every", "a whole number of steps >= 1", repr(self.every), "Use 1 for every step.")

    def update(self, average: dict[str, Tensor], model: nn.Module, *, step: int, done: float) -> None:
        """Take the model's weights into the mean if it is their turn, in place.

        Args:
            average: name -> averaged tensor, and two counters; {} at the start.
            step: of the training, counted from 1.
            done: the share of the training that is done, in (0, 1].

        Raises:
            InputError: the dict is of another model.
        """
        if done < self.start:
            return
        first = int(average[FIRST]) if FIRST in average else step
        if (step - first) % self.every:
            return
        count = int(average[COUNT]) + 1 if COUNT in average else 1
        _move(average, model, 1 / count)
        average[COUNT], average[FIRST] = torch.tensor(count), torch.tensor(first)


def averaged(average: dict[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights alone, parameter name -> tensor, without an average's own counters."""
    return {name: tensor for name, tensor in average.items() if name not in (COUNT, FIRST)}


@torch.no_grad()
def _move(average: dict[str, Tensor], model: nn.Module, share: float) -> None:
    """a <- a + share (w - a) for every parameter; an empty dict is filled with copies."""
    weights = dict(model.named_parameters())
    known = averaged(average)
    if not known:
        average.update({name: _copy(w) for name, w in weights.items()})
        return
    shapes = {name: w.shape for name, w in weights.items()}
    if {name: a.shape for name, a in known.items()} != shapes:
        other = sorted(name for name in {*known, *shapes} if name not in known or shapes.get(name) != known[name].shape)
        remedy = "Start with {}, or go on with the model that it was made of."
        raise InputError("average", "the names and shapes of the model's parameters", f"others at {other[:3]}", remedy)
    for name, w in weights.items():
        a = known[name]
        if a.device != w.device:
            average[name] = a = a.to(w.device)
        if w.is_floating_point():
            a.lerp_(w.detach().to(a.dtype), share)
        else:
            a.copy_(w)


def _copy(w: Tensor) -> Tensor:
    kept = torch.promote_types(w.dtype, torch.float32) if w.is_floating_point() else w.dtype
    return w.detach().to(kept, copy=True)
