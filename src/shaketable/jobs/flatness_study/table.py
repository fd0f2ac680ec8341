"""A table of models for the correlation study: which columns are what, read from a CSV file or made of measurements.

Columns that are named as in the published table of Stutz et al. (2021), or as `shaketable study flatness` names its own,
are recognised; options name any others. A name may also be a difference of two columns: "RLoss-trRLoss".
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...core.errors import ConfigError
from ...flatness.models_table import Models
from ...plugins import nearest
from .sheet import Sheet

FAMILY, CONSTANT = "family", "constant"
LOSS = ("robust_loss", "RLoss", "robust loss", "rloss")
ERROR = ("robust_error", "RTE_AA", "RErr", "RTE_PGD", "robust error")
GAP = ("robust_gap", "robust gap", "gap")
TRAIN_LOSS = ("train_robust_loss", "trRLoss", "train robust loss")
OTHERS = ("confidence", "epoch")
FLATNESS = ("avgRLoss", "worstRLoss", "avgCE", "worstCE")
_MEASURE = re.compile(r"[a-z_]+\(.*\)|.*(flat|sharp).*", re.IGNORECASE)
_TRUE, _FALSE = ("true", "yes", "1", "1.0"), ("false", "no", "0", "0.0", "")
_ENDS = (" low", " high")  # of the interval of the column before
PERCENT = ("RTE_AA", "RTE_PGD", "RErr")  # columns in %, to which the paper's bounds belong


@dataclass(frozen=True)
class Choices:
    """Which columns are what; None: those that are recognised.

    Args:
        flatness, target, given: measures, what they are to go with, and confounders.
        log: columns whose logarithm is taken.
        family: the column of families. Default: "family", or else the names up to their settings.
        constant: a column that is true for constant predictors. Default: "constant", if there is one.
        by: the column whose values make the groups. Default: robust error, if there is one.
    """

    flatness: Sequence[str] | None = None
    target: Sequence[str] | None = None
    given: Sequence[str] | None = None
    log: Sequence[str] | None = None
    family: str | None = None
    constant: str | None = None
    by: str | None = None


@dataclass(frozen=True)
class Table:
    """Models with their columns, and which of them are what.

    Args:
        models: all rows; the columns are those that are used, under the names that reports show.
        flatness, targets, given: names of columns.
        by: of the column that groups are made by; None for none.
        percent: whether that column is the paper's robust error in %.
        bounds: name of a column -> the ends of each row's interval, where the table has them.
        families: in words, where the families are from.
    """

    models: Models
    flatness: tuple[str, ...]
    targets: tuple[str, ...]
    given: tuple[str, ...]
    by: str | None
    percent: bool
    bounds: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]
    families: str


def table_of(sheet: Sheet, choices: Choices) -> Table:
    """The columns that are used, as numbers, under the names that reports show.

    Raises:
        ConfigError: columns that are missing, no measure or target that is recognised, cells that are no numbers, a
            logarithm of a number that is not positive.

    Checked by tests/jobs/test_flatness_table.py.
    """
    known = list(sheet.columns)
    loss, trained = _first(LOSS, known), _first(TRAIN_LOSS, known)
    gap = _first(GAP, known) or (f"{loss}-{trained}" if loss and trained else None)
    error = _first(ERROR, known)
    log = set(choices.log if choices.log is not None else filter(None, [trained]))
    given = choices.given if choices.given is not None else [*filter(None, [trained]), *_all(OTHERS, known)]
    used = {
        "flatness": choices.flatness if choices.flatness is not None else _measures(known),
        "target": choices.target if choices.target is not None else list(filter(None, [loss, error, gap])),
        "given": given,
    }
    for option in ("flatness", "target"):
        if not used[option]:
            found = f"the columns {', '.join(known)}"[:300]
            raise ConfigError(
                f"{sheet.where}: {option}", "a column that is recognised", found, f"Name it with --{option}."
            )
    columns, shown = dict[str, tuple[float, ...]](), dict[str, list[str]]()
    for option, names in used.items():
        shown[option] = [_take(sheet, name, log, columns) for name in dict.fromkeys(names)]
    shown["given"] = [name for name in shown["given"] if name not in shown["flatness"] + shown["target"]]
    by = choices.by or error
    by_shown = None if by is None else _take(sheet, by, log, columns)
    families, words = _families(sheet, choices.family)
    models = Models(sheet.names, columns, families, _constant(sheet, choices.constant))
    ends = {n: (sheet.numbers(n + _ENDS[0]), sheet.numbers(n + _ENDS[1])) for n in columns if _has_ends(n, known)}
    return Table(
        models, tuple(shown["flatness"]), tuple(shown["target"]), tuple(shown["given"]), by_shown,
        by in PERCENT, ends, words,
    )  # fmt: skip


def family_of(name: str) -> str:
    """A name up to its settings: "Batch size" of "Batch size 8", "AT-AWP" of "AT-AWP xi=0.01", "PGD" of "PGD-7-3"."""
    words: list[str] = []
    for word in name.split():
        if re.search(r"[\d=]", word):
            words.append(re.match(r"[^\d=]*", word)[0] if not words else "")  # type: ignore[index]
            break
        words.append(word)
    return " ".join(words).rstrip(" -_(=") or name


def _take(sheet: Sheet, name: str, log: set[str], columns: dict[str, tuple[float, ...]]) -> str:
    """Put a column, a difference of two, or a logarithm among the columns; returns the name that it is shown under."""
    shown, values = name, None
    if name not in sheet.columns:
        for k in (k for k, sign in enumerate(name) if sign == "-"):
            first, second = name[:k].strip(), name[k + 1 :].strip()
            if first in sheet.columns and second in sheet.columns:
                pairs = zip(sheet.numbers(first), sheet.numbers(second), strict=True)
                shown, values = f"{first} - {second}", tuple(a - b for a, b in pairs)
    values = sheet.numbers(name) if values is None else values
    if name in log:
        for model, value in zip(sheet.names, values, strict=True):
            if value <= 0:
                place = f"{sheet.where}: log of {name}"
                raise ConfigError(place, "numbers > 0", f"{value:g} of {model}", "Take the column as it is: --log.")
        shown, values = f"log {name}", tuple(math.log(v) if math.isfinite(v) else v for v in values)
    columns[shown] = values
    return shown


def _families(sheet: Sheet, column: str | None) -> tuple[tuple[str, ...], str]:
    column = column or (FAMILY if FAMILY in sheet.columns else None)
    if column is None:
        return tuple(family_of(name) for name in sheet.names), "the models' names up to their settings"
    if column not in sheet.columns:
        raise ConfigError(f"{sheet.where}: {column}", "a column of families", "none", nearest(column, sheet.columns))
    return tuple(
        text or name for text, name in zip(sheet.columns[column], sheet.names, strict=True)
    ), f"column {column}"


def _constant(sheet: Sheet, column: str | None) -> tuple[bool, ...]:
    column = column or (CONSTANT if CONSTANT in sheet.columns else None)
    if column is None:
        return ()
    if column not in sheet.columns:
        raise ConfigError(f"{sheet.where}: {column}", "a column of the table", "none", nearest(column, sheet.columns))
    for name, text in zip(sheet.names, sheet.columns[column], strict=True):
        if text.lower() not in (*_TRUE, *_FALSE):
            place = f"{sheet.where}: column {column} ({name})"
            raise ConfigError(place, "true or false", repr(text[:40]), "Write 1 for a constant predictor, else 0.")
    return tuple(text.lower() in _TRUE for text in sheet.columns[column])


def _measures(known: Sequence[str]) -> list[str]:
    """Columns that are measures of flatness: by their names, or by the ends of an interval that stand beside them."""
    others = [name for name in known if not name.endswith(_ENDS) and name not in FLATNESS]
    return [*_all(FLATNESS, known), *(n for n in others if _MEASURE.fullmatch(n) or _has_ends(n, known))]


def _has_ends(name: str, known: Sequence[str]) -> bool:
    return all(name + end in known for end in _ENDS)


def _first(wanted: Sequence[str], known: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in known), None)


def _all(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    return [name for name in wanted if name in known]
