"""From a table of models to all that is said of it: correlations, and good, average and poor models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...core.errors import ConfigError
from ...flatness.associations import Correlations
from ...flatness.correlation import correlate
from ...flatness.groups import BOUNDS, GROUPS, Group, groups_of
from ...flatness.models_table import Models, admitted
from .table import Table


@dataclass(frozen=True)
class Groups:
    """Good, average and poor models.

    Args:
        by: the column that groups.
        bounds: where average begins, and where poor does.
        found: name -> group.
        published: whether the bounds are the paper's.
    """

    by: str
    bounds: tuple[float, ...]
    found: Mapping[str, Group]
    published: bool

    def of(self, model: str) -> str | None:
        """The group of a model; None if it is in none."""
        return next((name for name, group in self.found.items() if model in group.models), None)


@dataclass(frozen=True)
class Analysis:
    """A table and what is said of it; groups are None where no column makes any."""

    table: Table
    correlations: Correlations
    groups: Groups | None


def analyse(table: Table, *, seed: int, resamples: int, bounds: Sequence[float] | None) -> Analysis:
    """Correlate a table's columns, and compare good, average and poor models.

    Args:
        bounds: of the groups; None: the paper's for its own error in %, else thirds of the models.

    Raises:
        InputError: see `flatness.correlation.correlate`.
        ConfigError: bounds that do not rise, or without a column that they are of.

    Checked by tests/jobs/test_flatness_table.py.
    """
    found = correlate(
        table.models, flatness=table.flatness, targets=table.targets, given=table.given, seed=seed, resamples=resamples
    )
    return Analysis(table, found, _groups(table, found, seed, resamples, bounds))


def _groups(
    table: Table, found: Correlations, seed: int, resamples: int, bounds: Sequence[float] | None
) -> Groups | None:
    if bounds is not None and not (table.by and bounds[0] < bounds[1]):
        expected = "two rising numbers, of a column that --by names"
        raise ConfigError(
            "groups", expected, f"{list(bounds)} of {table.by}", "For example --by RTE_AA --groups 57 60."
        )
    if table.by is None:
        return None
    used, _ = admitted(found.models, [table.by])
    ends = tuple(bounds or (BOUNDS if table.percent else _thirds(used, table.by)))
    if len(set(ends)) < 2:
        return None  # too few different values
    columns = list(dict.fromkeys([*found.flatness, *found.targets]))
    made = groups_of(used, by=table.by, bounds=ends, names=GROUPS, columns=columns, seed=seed, resamples=resamples)
    return Groups(table.by, ends, made, bounds is None and table.percent)


def _thirds(models: Models, by: str) -> tuple[float, float]:
    low, high = np.quantile(models.columns[by], [1 / 3, 2 / 3])
    return float(low), float(high)
