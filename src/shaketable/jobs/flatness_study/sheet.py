"""Reading a CSV file: texts in rows and columns, numbers when they are asked for."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError
from ...plugins import nearest

NAMES = ("model", "name")
"""The column that names the models; else the first one."""
_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Sheet:
    """Texts in rows and columns, as a file has them."""

    where: str
    columns: Mapping[str, tuple[str, ...]]
    names: tuple[str, ...]

    def numbers(self, column: str) -> tuple[float, ...]:
        """A column as numbers; an empty cell is NaN.

        Raises:
            ConfigError: no such column, or a cell that is no number.
        """
        if column not in self.columns:
            raise ConfigError(f"{self.where}: {column}", "a column of the table", "none", nearest(column, self.columns))
        return tuple(self._number(column, row, text) for row, text in enumerate(self.columns[column]))

    def _number(self, column: str, row: int, text: str) -> float:
        if text.strip().lower() in ("", "nan", "na", "none", "-"):
            return math.nan
        try:
            return float(text)
        except ValueError as error:
            place = f"{self.where}: column {column}, row {row + 1} ({self.names[row]})"
            raise ConfigError(place, "a number, or nothing", repr(text[:60]), "Correct the cell.") from error


def read_sheet(path: Path) -> Sheet:
    """A CSV file with a header, in UTF-8.

    Raises:
        ConfigError: a file that cannot be read, is too large, has no header or no rows, rows of another length, a column
            that is there twice, or a model that is.

    Checked by tests/jobs/test_flatness_table.py.
    """
    where = str(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file, strict=True) if any(cell.strip() for cell in line)]
    except (OSError, ValueError, csv.Error) as error:
        found = f"{type(error).__name__}: {error}"[:200]
        raise ConfigError("table", "a CSV file that can be read", found, "Give a table with a header.") from error
    if len(lines) < 2:
        raise ConfigError(
            where, "a header and a row for each model", f"{len(lines)} lines", "Give a table with a header."
        )
    header = [name.strip() for name in lines[0]]
    for row, line in enumerate(lines[1:], 1):
        if len(line) != len(header):
            remedy = "Quote texts with commas."
            raise ConfigError(f"{where}: row {row}", f"{len(header)} cells, as in the header", f"{len(line)}", remedy)
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise ConfigError(f"{where}: {twice}", "each column once", "two of that name", "Rename one.")
    columns = {name: tuple(line[k].strip() for line in lines[1:]) for k, name in enumerate(header)}
    first = next((name for name in header if name.lower() in NAMES), header[0])
    return Sheet(where, columns, _unique(columns[first], where))


def written(value: Any) -> str:
    """A value as a cell: floats to the bit, nothing for NaN and None."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    return "" if value is None else str(value)


def _unique(names: Sequence[str], where: str) -> tuple[str, ...]:
    twice = next((name for k, name in enumerate(names) if name in names[:k]), None)
    if twice is not None:
        raise ConfigError(f"{where}: models", "each model once", f"{twice!r} twice", "Give each row its own name.")
    if "" in names:
        raise ConfigError(f"{where}: models", "a name for each", f"none in row {names.index('') + 1}", "Name it.")
    return tuple(names)
