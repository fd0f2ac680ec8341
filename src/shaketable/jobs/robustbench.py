"""An evaluation as RobustBench's leaderboard has it: one JSON file a model."""

import json
from typing import TYPE_CHECKING, Any

from ..attacks import AutoAttack
from ..files import write_atomically

if TYPE_CHECKING:
    from .config import EvaluateConfig
    from .evaluate import Evaluated, Subject

FILE = "robustbench.json"


def write_entry(subject: "Subject[EvaluateConfig]", found: "Evaluated") -> None:
    """Write robustbench.json beside the report of a standard AutoAttack; of other attacks nothing, as its rules say."""
    entry = entry_of(subject, found)
    if entry is not None:
        write_atomically(subject.config.out / FILE, (json.dumps(entry, indent=2) + "\n").encode())


def entry_of(subject: "Subject[EvaluateConfig]", found: "Evaluated") -> dict[str, Any] | None:
    """The fields of RobustBench's model_info files (Croce et al. 2021); what only the authors know is left empty.

    Accuracies are texts in % with two digits, eps as it stands on the command line's report, of the largest radius.
    """
    config, attack = subject.config, subject.attack
    exact = config.search == "float32" and config.region is None
    if not isinstance(attack, AutoAttack) or attack.version != "standard" or not exact:
        return None
    spec = subject.loaded.spec
    return {
        "link": "", "name": subject.loaded.name, "authors": "", "additional_data": None, "number_forward_passes": 1,
        "dataset": subject.data.name, "venue": "", "architecture": spec.architecture if spec else "",
        "eps": _as_fraction(max(config.eps)), "clean_acc": f"{100 * found.curve.clean.value:.2f}", "reported": "",
        "autoattack_acc": f"{100 * found.curve.rates[-1].value:.2f}",
        "unreliable": found.lints is not None and not found.lints.passed,
    }  # fmt: skip


def _as_fraction(eps: float) -> str:
    """8/255 for .0314: the leaderboard's form where it is one, else the number."""
    levels = 255 * eps
    return f"{round(levels)}/255" if eps and abs(levels - round(levels)) < 1e-6 else f"{eps:g}"
