"""For those who write attacks, losses, constraints, detectors and lints: suites that their work must pass, and bad examples.

`check_attack(MyAttack())`, `check_loss(my_loss)`, `check_constraint(my_ball)`, `check_detector(MyDetector)` raise a
`ConformanceError` that names everything that does not hold; nothing of pytest is needed. `DEFENCES` are models that a good
evaluation must not believe.
"""

from .attacks import check_attack
from .constraints import check_constraint
from .defences import CAUGHT_BY, DEFENCES
from .detectors import check_detector
from .losses import check_loss
from .outcome import ConformanceError

__all__ = [
    "CAUGHT_BY",
    "DEFENCES",
    "ConformanceError",
    "check_attack",
    "check_constraint",
    "check_detector",
    "check_loss",
]
