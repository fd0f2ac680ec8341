"""A table of models: a row a model, a column a number, and which rows cannot be ranked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..core import InputError

CONSTANT = "a constant predictor, or no better than one: flat, and of no use"


@dataclass(frozen=True)
class Models:
    """Numbers of many models.

    Args:
        names: of the models, one a row.
        columns: name -> a number for each model; NaN where there is none.
        families: of each model, such as the method whose seeds or hyper-parameters it is one of; its own name where it
            stands alone.
        constant: whether each model gives one answer for every input, or is no better than that; empty: none is.

    Raises:
        InputError: columns, families or constant of another length than names, or a name that is there twice.
    """

    names: tuple[str, ...]
    columns: Mapping[str, tuple[float, ...]]
    families: tuple[str, ...]
    constant: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self.columns.items()} | {"families": len(self.families)}
        if self.constant:
            lengths["constant"] = len(self.constant)
        for name, length in lengths.items():
            if length != len(self.names):
                raise InputError(name, f"a value for each of {len(self.names)} models", f"{length}", "Fill in NaN.")
        twice = next((n for k, n in enumerate(self.names) if n in self.names[:k]), None)
        if twice is not None:
            raise InputError("names", "each model once", f"{twice!r} twice", "Give each model its own name.")

    def rows(self, wanted: Sequence[int]) -> "Models":
        """Some of the rows."""
        columns = {name: tuple(values[k] for k in wanted) for name, values in self.columns.items()}
        constant = tuple(self.constant[k] for k in wanted) if self.constant else ()
        return Models(
            tuple(self.names[k] for k in wanted), columns, tuple(self.families[k] for k in wanted), constant
        )  # fmt: skip


@dataclass(frozen=True)
class Refused:
    """A model that is not ranked, and why."""

    name: str
    reason: str


def admitted(models: Models, columns: Sequence[str]) -> tuple[Models, tuple[Refused, ...]]:
    """The rows that have a finite number in each of these columns and are no constant predictors, and the others.

    Raises:
        InputError: a column that is not there.

    Checked by tests/flatness/test_correlation.py.
    """
    missing = [name for name in columns if name not in models.columns]
    if missing:
        raise InputError(
            missing[0], "a column of the table", "none of that name", f"It has {', '.join(models.columns)}."
        )
    kept, refused = list[int](), list[Refused]()
    for row, name in enumerate(models.names):
        absent = [column for column in columns if not math.isfinite(models.columns[column][row])]
        if models.constant and models.constant[row]:
            refused.append(Refused(name, CONSTANT))
        elif absent:
            values = ", ".join(f"{column} is {models.columns[column][row]}" for column in absent)
            refused.append(Refused(name, f"no finite number: {values}"))
        else:
            kept.append(row)
    return models.rows(kept), tuple(refused)


def varying(models: Models, columns: Sequence[str]) -> list[str]:
    """Those of these columns that do not have one value in all rows."""
    return [name for name in columns if len(set(models.columns[name])) > 1]
