"""Attacks on inputs, and the evaluations made with them.

An attack is a value that is called (see `Attack`); `ATTACKS` names those of this package. A new one is a file here and a
line in the dict: the command line, the documentation and the contract tests read it.
"""

from collections.abc import Callable

from . import regions
from .apgd import APGDAttack
from .apgd import apgd as apgd  # the verb takes the place of its module's name
from .attack import Attack
from .autoattack import AutoAttack, Averaged, EnsemblePerturbation
from .autoattack import autoattack as autoattack  # the verb takes the place of its module's name
from .bpda import bpda as bpda  # the verb takes the place of its module's name
from .curve import Curve
from .curve import curve as curve  # the verb takes the place of its module's name
from .cw import cw as cw  # likewise
from .ddn import ddn as ddn  # likewise
from .eight_bit import EightBit, surviving
from .ensemble import ensemble as ensemble  # likewise
from .eot import eot as eot  # likewise
from .evaluate import evaluate as evaluate  # the verb takes the place of its module's name
from .evaluation import Evaluation, Finding
from .fab import FABAttack
from .fab import fab as fab  # the verb takes the place of its module's name
from .fmn import fmn as fmn  # likewise
from .hopskipjump import hopskipjump as hopskipjump  # likewise
from .lints import LINTS, Lints, lint
from .minimal import Minimal
from .pgd import FGSMAttack, PGDAttack, fgsm
from .pgd import pgd as pgd  # the verb takes the place of its module's name
from .probe import Check
from .regional import Regional, RegionalAttack
from .regional import regional as regional  # likewise
from .selftest import SelfTest
from .selftest import selftest as selftest  # the verb takes the place of its module's name
from .square import SquareAttack
from .square import square as square  # the verb takes the place of its module's name
from .transfer import transfer as transfer  # likewise
from .transfer import transfer_row
from .transfer_matrix import Transfer
from .transferable import TransferableAttack, di, mi, ni, ti
from .vulnerability import Vulnerability
from .vulnerability import vulnerability as vulnerability  # the verb takes the place of its module's name

ATTACKS: dict[str, Callable[..., Attack]] = {
    "apgd": APGDAttack,
    "autoattack": AutoAttack,
    "di_fgsm": di,
    "fab": FABAttack,
    "fgsm": FGSMAttack,
    "mi_fgsm": mi,
    "ni_fgsm": ni,
    "pgd": PGDAttack,
    "regional": RegionalAttack,
    "square": SquareAttack,
    "ti_fgsm": ti,
}

__all__ = [
    "ATTACKS",
    "LINTS",
    "APGDAttack",
    "Attack",
    "AutoAttack",
    "Averaged",
    "Check",
    "Curve",
    "EightBit",
    "EnsemblePerturbation",
    "Evaluation",
    "FABAttack",
    "FGSMAttack",
    "Finding",
    "Lints",
    "Minimal",
    "PGDAttack",
    "Regional",
    "RegionalAttack",
    "SelfTest",
    "SquareAttack",
    "Transfer",
    "TransferableAttack",
    "Vulnerability",
    "apgd",
    "autoattack",
    "bpda",
    "curve",
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
    "lint",
    "mi",
    "ni",
    "pgd",
    "regional",
    "regions",
    "selftest",
    "square",
    "surviving",
    "ti",
    "transfer",
    "transfer_row",
    "vulnerability",
]
