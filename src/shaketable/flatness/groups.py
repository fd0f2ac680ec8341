"""Good, average and poor models, and how flat each sort is (Stutz et al. 2021, figure 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core import InputError
from ..stats import Mean
from .coefficients import resampled
from .models_table import Models, admitted

GROUPS = ("good", "average", "poor")
BOUNDS = (57.0, 60.0)
"""The paper's, of robust error in %."""


@dataclass(frozen=True)
class Group:
    """Models that are about equally robust: their names, and the means of columns over them."""

    models: tuple[str, ...]
    means: Mapping[str, Mean]


def groups_of(
    models: Models, *, by: str, bounds: Sequence[float], names: Sequence[str], columns: Sequence[str], seed: int,
    resamples: int = 2000,
) -> dict[str, Group]:  # fmt: skip
    """The means of columns over groups of models, from the lowest values of a column to the highest.

    Args:
        by: the column that groups; the paper takes the robust error in %.
        bounds: where one group ends and the next begins, which takes the bound itself; 57 and 60 in the paper.
        names: of the groups, one more than bounds: good, average and poor in the paper.
        columns: whose means are wanted, with bootstrap intervals over families; refused rows are left out.

    Checked by tests/flatness/test_correlation.py.
    """
    if len(names) != len(bounds) + 1 or list(bounds) != sorted(set(bounds)):
        raise InputError(
            "bounds", f"{len(names) - 1} rising numbers", f"{list(bounds)}", "Give one name more than bounds."
        )
    table, _ = admitted(models, [by, *columns])
    place = np.searchsorted(np.asarray(bounds, dtype=np.float64), table.columns[by], side="right")
    weights = resampled(table.families, seed=seed, resamples=resamples)
    made: dict[str, Group] = {}
    for k, name in enumerate(names):
        inside, rows = (place == k).astype(np.float64), np.flatnonzero(place == k).tolist()
        several = len({table.families[row] for row in rows}) > 1
        means = {c: _mean(np.array(table.columns[c]), inside, weights, bounded=several) for c in columns if rows}
        made[name] = Group(tuple(table.names[row] for row in rows), means)
    return made


def _mean(column: np.ndarray, inside: np.ndarray, weights: np.ndarray, *, bounded: bool) -> Mean:
    """The mean of some of the rows, with its percentile interval over resampled families; unbounded for one family."""
    values, count = column[inside > 0], weights @ inside
    means = (weights @ (column * inside))[count > 0] / count[count > 0]
    low, high = np.quantile(means, [0.025, 0.975]) if bounded else (-np.inf, np.inf)
    deviation = float(values.std(ddof=1)) if values.size > 1 else float("nan")
    return Mean(float(values.mean()), float(low), float(high), int(values.size), deviation, "bootstrap")
