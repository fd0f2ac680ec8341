"""Robust training: losses, weight perturbation, optimisers, averages, and one visible loop, in one process or several."""

from collections.abc import Callable
from typing import Any

from .adaptive import AdaptiveBall
from .at import AT, at
from .averaging import EMA, SWA, Average
from .awp import AWP_BALL, AWP_STEP, WeightPerturbation, awp
from .curves import evaluate_slices
from .entropy_sgd import EntropySGD
from .friendly import Friendly
from .joining import joined
from .labels import Labels
from .loop import begin, finished, fit
from .losses import RobustLoss
from .mart import MART, mart
from .optimisers import SGD, Adam, Optimiser
from .plan import Plan, steps_of
from .processes import Alone, Group, ProcessError, Processes, UnequalError
from .result import result_model
from .rotation import Rotation, rotation
from .rst import RST, rst
from .rwp import rwp
from .sam import asam, sam
from .schedule import Constant, Cosine, Cyclic, Late, MultiStep, Schedule
from .state import Epoch, Evaluated, SliceRecord, State, Step
from .statistics import reestimate
from .step import DivergenceError, Stepped, train_step
from .trades import TRADES, trades
from .update import PRESETS, Update

LOSSES: dict[str, Callable[..., Any]] = {
    "at": AT,
    "trades": TRADES,
    "mart": MART,
    "rst": RST,
    "rotation": rotation,
}
"""Robust losses by the name that the command line takes; each is made with its own defaults."""

WEIGHTS: dict[str, Callable[..., WeightPerturbation | None]] = {
    "none": lambda: None,
    "awp": awp,
    "sam": sam,
    "asam": asam,
    "rwp": rwp,
}
"""Weight perturbations by name."""

OPTIMISERS: dict[str, Callable[..., Any]] = {
    "sgd": SGD,
    "adam": Adam,
    "entropy_sgd": EntropySGD,
}
"""Optimisers by name."""

AVERAGES: dict[str, Callable[..., Average | None]] = {
    "none": lambda: None,
    "ema": EMA,
    "swa": SWA,
}
"""Averages of the weights by name."""

SCHEDULES = {
    "multistep": MultiStep,
    "late": Late,
    "constant": Constant,
    "cyclic": Cyclic,
    "cosine": Cosine,
}
"""Learning-rate schedules by name."""

__all__ = [
    "AT",
    "AVERAGES",
    "AWP_BALL",
    "AWP_STEP",
    "EMA",
    "LOSSES",
    "MART",
    "OPTIMISERS",
    "PRESETS",
    "RST",
    "SCHEDULES",
    "SGD",
    "SWA",
    "TRADES",
    "WEIGHTS",
    "Adam",
    "AdaptiveBall",
    "Alone",
    "Average",
    "Constant",
    "Cosine",
    "Cyclic",
    "DivergenceError",
    "EntropySGD",
    "Epoch",
    "Evaluated",
    "Friendly",
    "Group",
    "Labels",
    "Late",
    "MultiStep",
    "Optimiser",
    "Plan",
    "ProcessError",
    "Processes",
    "RobustLoss",
    "Rotation",
    "Schedule",
    "SliceRecord",
    "State",
    "Step",
    "Stepped",
    "UnequalError",
    "Update",
    "WeightPerturbation",
    "asam",
    "at",
    "awp",
    "begin",
    "evaluate_slices",
    "finished",
    "fit",
    "joined",
    "mart",
    "reestimate",
    "result_model",
    "rotation",
    "rst",
    "rwp",
    "sam",
    "steps_of",
    "trades",
    "train_step",
]
