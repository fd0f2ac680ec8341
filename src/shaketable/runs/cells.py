"""What a ledger keeps: a cell, which names one measurement, and the file that holds it with its result."""

import hashlib
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..core.errors import InputError, ShaketableError
from ..version import __version__
from . import canonical

FORMAT = "shaketable cell 1"


class LedgerError(ShaketableError):
    """A file of a ledger that cannot be used: of another version, or unreadable."""


class DamagedCellError(LedgerError):
    """A file of a ledger that is damaged, or holds another cell than its name says."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One thing that is measured, named by all that its result depends on. Equal cells have equal keys.

    Args:
        model: the SHA-256 of the model's file or state, 64 hexadecimal digits.
        data: the SHA-256 of the images and labels that it is measured on.
        measure: what is measured.
        version: of the measure's code; a change of its numbers takes a new version.
        settings: all other options, as JSON values; their order does not matter, but 1, 1.0 and True differ.
        seed: of all that is drawn.

    Raises:
        InputError: hashes that are none, an empty measure, a version below 1, settings that are no JSON.

    Checked by tests/runs/test_ledger.py.
    """

    model: str
    data: str
    measure: str
    version: int
    settings: Mapping[str, Any]
    seed: int

    def __post_init__(self) -> None:
        for name in ("model", "data"):
            found = getattr(self, name)
            if not isinstance(found, str) or not re.fullmatch("[0-9a-f]{64}", found):
                raise InputError(name, "a SHA-256, 64 hexadecimal digits", repr(found)[:80], "Hash the file or state.")
        if not isinstance(self.measure, str) or not self.measure:
            raise InputError("measure", "a name", repr(self.measure), "Name what is measured.")
        for name in ("version", "seed"):
            if type(getattr(self, name)) is not int:
                raise InputError(name, "a whole number", repr(getattr(self, name)), "Use int(...).")
        if self.version < 1 or not isinstance(self.settings, Mapping):
            found = f"{self.version} and {type(self.settings).__name__}"
            raise InputError("version, settings", "a version >= 1 and a dict", found, "Count versions from 1.")
        object.__setattr__(self, "settings", canonical.plain(self.settings, "settings"))

    @cached_property
    def key(self) -> str:
        """The SHA-256 of the cell's canonical JSON: the name of its file."""
        return hashlib.sha256(canonical.text(self.to_json()).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The cell as JSON values; `Cell(**value)` is the inverse."""
        names = ("model", "data", "measure", "version", "settings", "seed")
        return {name: getattr(self, name) for name in names}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cell) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


@dataclass(frozen=True)
class Record:
    """What a file of a ledger holds: the cell, its result, and with which versions and how many threads it was made."""

    cell: Cell
    result: dict[str, Any]
    made: dict[str, Any]


def document(cell: Cell, result: Mapping[str, Any]) -> bytes:
    """The content of a cell's file."""
    if not isinstance(result, Mapping):
        raise InputError("result", "a dict of JSON values", type(result).__name__, "Return a dict.")
    made = {
        "shaketable": __version__, "torch": torch.__version__, "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    record = {"format": FORMAT, "cell": cell.to_json(), "result": canonical.plain(result, "result"), "made": made}
    return canonical.text(record | {"sha256": _digest(record)}).encode() + b"\n"


def read_record(path: Path) -> Record | None:
    """What a file holds, verified; None if there is no file."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        reason, rights = error.strerror or type(error).__name__, "Look at the folder's and the file's rights."
        raise LedgerError(str(path), "a file that can be read", reason, rights) from error
    try:
        record = canonical.read(content.decode())
        version, digest = record["format"], record.pop("sha256")
        found = _digest(record)
        whole = (
            Record(Cell(**record["cell"]), dict(record["result"]), dict(record["made"])) if version == FORMAT else None
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"[:200] if content else "nothing"
        raise DamagedCellError(str(path), "a cell's file", what, remedy(path)) from error
    if version != FORMAT and found == digest:
        instead = "Use the version of Shaketable that wrote it, or another folder."
        raise LedgerError(str(path), f"the format {FORMAT!r}", repr(version)[:80], instead)
    if whole is None or found != digest:
        raise DamagedCellError(str(path), f"sha256 {digest!s:.12}…", f"{found[:12]}…", remedy(path))
    return whole


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(canonical.text(record).encode()).hexdigest()


def remedy(path: Path) -> str:
    """What to do about a damaged file."""
    return f"Remove {path}, or run what made it again: it is measured anew."
