"""Attacks on inputs, and the evaluations made with them.

An attack is a value that is called (see `Attack`); `ATTACKS` names those of this package. A new one is a file here and a
line in the dict: the command line, the documentation and the contract tests read it.
"""

from collections.abc import Callable

from . import regions
from .attack import Attack
from .bpda import bpda as bpda  # the verb takes the place of its module's name
from .cw import cw as cw  # likewise
from .ddn import ddn as ddn  # likewise
from .ensemble import ensemble as ensemble  # likewise
from .eot import eot as eot  # likewise
from .evaluate import evaluate as evaluate  # the verb takes the place of its module's name
from .evaluation import Evaluation, Finding
from .fab import FABAttack
from .fab import fab as fab  # the verb takes the place of its module's name
from .fmn import fmn as fmn  # likewise
from .hopskipjump import hopskipjump as hopskipjump  # likewise
from .minimal import Minimal
from .pgd import FGSMAttack, PGDAttack, fgsm
from .pgd import pgd as pgd  # the verb takes the place of its module's name
from .regional import Regional, RegionalAttack
from .regional import regional as regional  # likewise
from .transfer import transfer as transfer  # likewise
from .transfer import transfer_row
from .transfer_matrix import Transfer
from .transferable import TransferableAttack, di, mi, ni, ti

ATTACKS: dict[str, Callable[..., Attack]] = {
    "di_fgsm": di,
    "fgsm": FGSMAttack,
    "mi_fgsm": mi,
    "ni_fgsm": ni,
    "pgd": PGDAttack,
    "regional": RegionalAttack,
    "ti_fgsm": ti,
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
    "Regional",
    "RegionalAttack",
    "Transfer",
    "TransferableAttack",
    "bpda",
    "cw",
    "ddn",
    "di",
    "ensemble",
    "eot",
    "evaluate",
    "fab",
    "fgsm",
    "fmn",
    "hopskipjump",
    "mi",
    "ni",
    "pgd",
    "regional",
    "regions",
    "ti",
    "transfer",
    "transfer_row",
]
