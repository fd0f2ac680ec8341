"""What a training is at any moment, and what it says of its steps and epochs."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Calls

_COUNTERS = ("epoch", "step", "loss_sum", "silent", "constant", "since_best")


@dataclass(frozen=True)
class SliceRecord:
    """One slice at one epoch: n images, mean losses, and how many are right, clean and under attack."""

    n: int
    loss: float
    correct: int
    robust_loss: float
    robust_correct: int


@dataclass(frozen=True)
class Evaluated:
    """The slices' records, and whether all their images got one and the same class."""

    slices: dict[str, SliceRecord]
    constant: bool


@dataclass(frozen=True)
class Epoch:
    """The end of an epoch.

    Args:
        epoch: counted from 1.
        train_loss: the mean robust loss that was minimised over the epoch (at w + v).
        slices: "train", "validation", "test" -> its record; empty where this epoch was not evaluated.
        best: whether this epoch is the best so far by the plan's rule.
        constant: whether all evaluated images got one and the same class.
        silent: steps of this epoch at which the attack saw no gradient.
    """

    epoch: int
    train_loss: float
    slices: dict[str, SliceRecord]
    best: bool
    constant: bool
    silent: int


@dataclass(frozen=True)
class Step:
    """The end of a step of an epoch, both counted from 1."""

    epoch: int
    step: int
    steps: int
    loss: float


@dataclass
class State:
    """What a training changes, and what a resumed one needs: see `state_dict`.

    `model` is what is trained: the model itself, or one with a loss's own head, whose `plain` attribute is the model.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    epoch: int = 0  # epochs done
    step: int = 0  # steps done in the epoch that is running
    loss_sum: float = 0.0
    silent: int = 0
    calls: Calls = Calls()
    constant: int = 0  # consecutive evaluations with one predicted class
    since_best: int = 0  # evaluations since the best one
    history: list[Epoch] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)  # the best epoch's model
    average: dict[str, Tensor] = field(default_factory=dict)  # of the weights, if they are averaged
    last: dict[str, Tensor] = field(default_factory=dict)  # the averaged model at the last evaluation
    scaler: Any = None

    @property
    def plain(self) -> nn.Module:
        """The model itself."""
        return getattr(self.model, "plain", self.model)

    def _heads(self) -> dict[str, Tensor]:
        """What is trained beside the model itself."""
        if self.plain is self.model:
            return {}
        return {name: t for name, t in self.model.state_dict().items() if not name.startswith("plain.")}

    def state_dict(self) -> dict[str, Any]:
        """Everything but the model's own weights, as plain values and tensors that load with `weights_only`."""
        return {
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
            "average": self.average,
            "last": self.last,
            "heads": self._heads(),
            "scaler": {} if self.scaler is None else self.scaler.state_dict(),
            "history": [asdict(epoch) for epoch in self.history],
            "calls": asdict(self.calls),
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """The inverse of `state_dict`; the model's weights are loaded by the caller."""
        self.optimiser.load_state_dict(saved["optimiser"])
        self.best, self.average, self.last = (dict(saved[name]) for name in ("best", "average", "last"))
        if heads := self._heads():
            self.model.load_state_dict(saved["heads"], strict=False)
            if missing := sorted(set(heads) - set(saved["heads"])):
                raise KeyError(missing[0])
        if self.scaler is not None:
            self.scaler.load_state_dict(saved["scaler"])
        self.history = [_epoch(record) for record in saved["history"]]
        self.calls = Calls(**saved["calls"])
        for name in _COUNTERS:
            setattr(self, name, saved[name])

    @property
    def best_epoch(self) -> int | None:
        """The best epoch so far, counted from 1; None without a rule."""
        return next((e.epoch for e in reversed(self.history) if e.best), None)


def _epoch(record: dict[str, Any]) -> Epoch:
    return Epoch(**{**record, "slices": {name: SliceRecord(**part) for name, part in record["slices"].items()}})
