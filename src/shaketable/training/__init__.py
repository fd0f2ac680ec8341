"""Robust training: losses, adversarial weight perturbation, and one visible loop."""

from collections.abc import Callable

from .at import AT, at
from .awp import AWP_BALL, AWP_STEP, WeightPerturbation, awp
from .loop import Plan, begin, evaluate_slices, fit, steps_of
from .losses import RobustLoss
from .schedule import Constant, MultiStep, Schedule
from .state import Epoch, Evaluated, SliceRecord, State, Step
from .step import DivergenceError, Stepped, train_step
from .trades import TRADES, trades

LOSSES = {
    "at": AT,
    "trades": TRADES,
}
"""Robust losses by the name that the command line takes; each is made with its own defaults."""

WEIGHTS: dict[str, Callable[..., WeightPerturbation | None]] = {
    "none": lambda: None,
    "awp": awp,
}
"""Weight perturbations by name."""

SCHEDULES = {
    "multistep": MultiStep,
    "constant": Constant,
}
"""Learning-rate schedules by name."""

__all__ = [
    "AT",
    "AWP_BALL",
    "AWP_STEP",
    "LOSSES",
    "SCHEDULES",
    "TRADES",
    "WEIGHTS",
    "Constant",
    "DivergenceError",
    "Epoch",
    "Evaluated",
    "MultiStep",
    "Plan",
    "RobustLoss",
    "Schedule",
    "SliceRecord",
    "State",
    "Step",
    "Stepped",
    "WeightPerturbation",
    "at",
    "awp",
    "begin",
    "evaluate_slices",
    "fit",
    "steps_of",
    "trades",
    "train_step",
]
