"""Attacks on inputs, and the evaluations made with them.

An attack is a value that is called (see `Attack`); `ATTACKS` names those of this package. A new one is a file here and a
line in the dict: the command line, the documentation and the contract tests read it.
"""

from collections.abc import Callable

from . import regions
from .attack import Attack
from .evaluate import evaluate as evaluate  # the verb takes the place of its module's name
from .evaluation import Evaluation, Finding
from .fab import FABAttack
from .fab import fab as fab  # the verb takes the place of its module's name
from .minimal import Minimal
from .pgd import FGSMAttack, PGDAttack, fgsm
from .pgd import pgd as pgd  # the verb takes the place of its module's name

ATTACKS: dict[str, Callable[..., Attack]] = {
    "fgsm": FGSMAttack,
    "pgd": PGDAttack,
}

__all__ = [
    "ATTACKS",
    "Attack",
    "Evaluation",
    "FABAttack",
    "FGSMAttack",
    "Finding",
    "Minimal",
    "PGDAttack",
    "evaluate",
    "fab",
    "fgsm",
    "pgd",
    "regions",
]
