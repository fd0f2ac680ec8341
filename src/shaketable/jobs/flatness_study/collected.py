"""What was measured of a study's models as a table's columns, and as differences between cells, paired by seed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...stats import holm, paired
from ..study.summary import Difference, p_value
from .models import Found, Measured
from .recipe import FlatnessPlan
from .sheet import Sheet, written

LOSSES = ("robust_loss", "robust_error", "robust_gap")


@dataclass(frozen=True)
class Contrast:
    """Two kinds of models, and column -> their difference, the first minus the second, seed by seed.

    Args:
        name: of the comparison.
        a, b: cell and checkpoint of each.
    """

    name: str
    a: tuple[str, str]
    b: tuple[str, str]
    differences: Mapping[str, Difference]


@dataclass(frozen=True)
class Contrasts:
    """All comparisons of a study.

    Args:
        baseline: the cell that the others are compared with.
        columns: what is compared, the measures first.
        others: each cell's last epoch with the baseline's, and early stopping of the baseline; one Holm family a column.
        stopped: early stopping of every other cell: its best epoch with its last.
    """

    baseline: str
    columns: tuple[str, ...]
    others: tuple[Contrast, ...]
    stopped: tuple[Contrast, ...]


def columns_of(plan: FlatnessPlan, measured: Measured) -> dict[str, list[Any]]:
    """The columns of table.csv: a row a model, as `--table` reads them. Errors are in %; a measure has its interval's ends."""
    made: dict[str, Callable[[Found], Any]] = {
        "model": lambda f: f.row.name,
        "family": lambda f: plan.family(f.row.cell),
        "cell": lambda f: f.row.cell,
        "seed": lambda f: f.row.seed,
        "checkpoint": lambda f: f.row.checkpoint,
        "constant": lambda f: f.constant,
        **{name: lambda f, name=name: value_of(f, name) for name in _NUMBERS},
        "epoch": lambda f: math.nan if f.epoch is None else f.epoch,
    }
    columns = {name: [function(found) for found in measured.found] for name, function in made.items()}
    for measure in measured.measures:
        missing = (math.nan,) * 3
        triples = [found.flatness.get(measure, missing) for found in measured.found]
        for k, end in enumerate(("", " low", " high")):
            columns[measure + end] = [triple[k] for triple in triples]
    return columns


def sheet_of(columns: Mapping[str, Sequence[Any]], where: str) -> Sheet:
    """The same columns as `--table` has them from the file, so that both give the same numbers."""
    texts = {name: tuple(written(value) for value in column) for name, column in columns.items()}
    return Sheet(where, texts, texts["model"])


def value_of(found: Found, name: str) -> float:
    """A number of a model by its column's name; NaN where it was not measured."""
    if name in found.flatness:
        return found.flatness[name][0]
    if name not in _NUMBERS:
        return math.nan
    part, key, factor = _NUMBERS[name]
    if name == "robust_gap":
        return math.nan if not (found.test and found.train) else found.test.robust_loss - found.train.robust_loss
    standing = found.test if part == "test" else found.train
    return math.nan if standing is None else factor * float(getattr(standing, key))


_NUMBERS = {
    "robust_loss": ("test", "robust_loss", 1), "robust_error": ("test", "robust_error", 100), "robust_gap": ("", "", 1),
    "train_robust_loss": ("train", "robust_loss", 1), "train_robust_error": ("train", "robust_error", 100),
    "clean_loss": ("test", "clean_loss", 1), "clean_error": ("test", "clean_error", 100),
    "confidence": ("test", "confidence", 1),
}  # fmt: skip


def contrasts_of(plan: FlatnessPlan, measured: Measured, seeds: Sequence[int]) -> Contrasts | None:
    """Which cells are flatter than the baseline, and what early stopping does; None without a baseline.

    Constant predictors are in no pair. A run whose best epoch was the last has the difference 0.

    Checked by tests/jobs/test_flatness_collected.py, against SciPy's paired test.
    """
    base = plan.baseline
    if base is None:
        return None
    columns = (*measured.measures, *LOSSES)
    wanted = [(cell.name, (cell.name, "last"), (base, "last")) for cell in plan.cells if cell.name != base]
    early = [cell.name for cell in plan.cells if {"last", "best"} <= set(plan.checkpoints(cell.name))]
    if base in early:
        wanted.insert(0, (f"early stopping of {base}", (base, "best"), (base, "last")))
    stopped = [(name, (name, "best"), (name, "last")) for name in early if name != base]
    others, second = (
        _adjusted([_contrast(measured, seeds, columns, *one) for one in part]) for part in (wanted, stopped)
    )  # fmt: skip
    return Contrasts(base, columns, others, second)


def _contrast(
    measured: Measured, seeds: Sequence[int], columns: Sequence[str], name: str, a: tuple[str, str], b: tuple[str, str]
) -> Contrast:
    differences: dict[str, Difference] = {}
    for column in columns:
        pairs = {seed: pair for seed in seeds if (pair := _pair(measured, column, seed, a, b)) is not None}
        if pairs:
            found = paired([x for x, _ in pairs.values()], [y for _, y in pairs.values()])
            values = {seed: x - y for seed, (x, y) in pairs.items()}
            differences[column] = Difference(values, found, p_value(found), None)
    return Contrast(name, a, b, differences)


def _pair(
    measured: Measured, column: str, seed: int, a: tuple[str, str], b: tuple[str, str]
) -> tuple[float, float] | None:
    found = [measured.of(cell, seed, which) for cell, which in (a, b)]
    values = [value_of(f, column) for f in found if f is not None and not f.constant]
    return (values[0], values[1]) if len(values) == 2 and all(map(math.isfinite, values)) else None


def _adjusted(found: Sequence[Contrast]) -> tuple[Contrast, ...]:
    """The same, with p adjusted for all comparisons of a column."""
    made = [dict(contrast.differences) for contrast in found]
    for column in dict.fromkeys(name for differences in made for name in differences):
        known = [d for d in made if column in d and d[column].p is not None]
        for d, p in zip(known, holm([d[column].p or 0.0 for d in known]), strict=True):
            d[column] = replace(d[column], holm=p)
    return tuple(replace(contrast, differences=d) for contrast, d in zip(found, made, strict=True))
