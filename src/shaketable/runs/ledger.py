"""The ledger of finished cells: one file a cell, written once, whole or not at all, and verified whenever it is read.

    cell = Cell(model=sha256, data=fingerprint, measure="average", version=1, settings={"xi": 0.5}, seed=0)
    ledger = Ledger(Path("runs/flatness/cells"))
    result = ledger.get(cell) or ledger.put(cell, {"value": 0.31})

`runs.pool.fill` does that for many cells in many processes.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import storage_errors, sync_folder
from .cells import Cell as Cell
from .cells import DamagedCellError as DamagedCellError
from .cells import LedgerError as LedgerError
from .cells import Record as Record
from .cells import document, read_record, remedy

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}
_PARTIAL, _CLAIMS = ".partial", ".claims"


@dataclass(frozen=True)
class Ledger:
    """A folder of finished cells, `KEY.json` each; made when something is first written.

    Any number of processes may read and write it at the same time, and die at any moment. A file that is there is whole; the
    first result of a cell stays for ever. Results are read from the files alone, never remembered.

    Damaged files are never used: `get` raises, `runs.pool.fill` puts them aside and measures the cell again.
    """

    folder: Path

    def path(self, cell: Cell) -> Path:
        """Where the cell's file is, or would be."""
        return self.folder / f"{cell.key}.json"

    def get(self, cell: Cell) -> dict[str, Any] | None:
        """The result of a cell; None if it has none yet.

        Raises:
            DamagedCellError: its file is damaged, or is another cell's.
            LedgerError: it is of another format, or cannot be read.
        """
        path = self.path(cell)
        record = read_record(path)
        if record is None:
            return None
        if record.cell != cell:
            raise DamagedCellError(str(path), "the cell of its name", f"cell {record.cell.key[:12]}…", remedy(path))
        return record.result

    def put(self, cell: Cell, result: Mapping[str, Any]) -> dict[str, Any]:
        """Keep the result of a cell, unless it has one; returns the one that is there.

        The file is written under another name, flushed, and linked to its own name, which fails if that is there; then the
        folder is flushed. Where there are no links (FAT) it is renamed, after a look whether the name is free: whole in any
        case, and the first under `claim`.

        Raises:
            InputError: a result that is no dict of JSON values.
            StorageError: the folder cannot be written, or the disk is full; nothing is left of it.
            LedgerError: see `get`.

        Checked by tests/runs/test_ledger.py (concurrent writers) and test_pool.py (kills).
        """
        content = document(cell, result)
        for _ in range(3):
            if (found := self.get(cell)) is not None:
                return found
            with storage_errors(self.folder):
                self._write(cell.key, content)
        if (found := self.get(cell)) is not None:
            return found
        raise LedgerError(str(self.path(cell)), "the file that was written", "none", "Let nobody delete files there.")

    def records(self) -> Iterator[Record]:
        """All that is in the ledger, sorted by key, each verified as it is read.

        Raises:
            LedgerError: see `get`.
        """
        for path in sorted(self.folder.glob("*.json")):
            record = read_record(path)
            if record is None:
                continue
            if path.stem != record.cell.key:
                found = f"cell {record.cell.key[:12]}…"
                raise DamagedCellError(str(path), "the cell of its name", found, remedy(path))
            yield record

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether this process alone may work on a cell for as long as the context lasts.

        A lock of the operating system on a file, which ends with the process that holds it, however that dies. On systems
        without such locks every claim succeeds, and two processes may do the same work; the first result stays all the same.

        Raises:
            StorageError: the folder cannot be written.
        """
        path = self.folder / _CLAIMS / key
        with storage_errors(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = _locked(path)
        try:
            yield handle is not None
        finally:
            if handle is not None:
                with contextlib.suppress(OSError):
                    os.unlink(path)
                os.close(handle)

    def set_aside(self, cell: Cell) -> str:
        """Rename a cell's file, so that its name is free; returns the new name. Under `claim` alone."""
        path = self.path(cell)
        with storage_errors(self.folder):
            aside = path.with_suffix(f".damaged-{secrets.token_hex(4)}")
            os.replace(path, aside)
            sync_folder(self.folder)
        return aside.name

    def tidy(self) -> None:
        """Remove what died processes left: halves of files, and claims that nobody holds."""
        left = [path for part in (_PARTIAL, _CLAIMS) for path in (self.folder / part).glob("*")]
        for key in sorted({path.name.partition(".")[0] for path in left}):
            with self.claim(key) as mine:
                for path in left:
                    if mine and path.parent.name == _PARTIAL and path.name.startswith(f"{key}."):
                        path.unlink(missing_ok=True)

    def _write(self, key: str, content: bytes) -> None:
        """Write a cell's file, unless there is one."""
        partial = self.folder / _PARTIAL / f"{key}.{secrets.token_hex(8)}"
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            _link(partial, self.folder / f"{key}.json")
        except (FileExistsError, FileNotFoundError):  # another was first, or tidied; `put` looks
            pass
        finally:
            with contextlib.suppress(OSError):
                os.unlink(partial)
        sync_folder(self.folder)


def _link(source: Path, target: Path) -> None:
    """Give a file its name, unless there is one of that name (FileExistsError)."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, "File exists", str(target)) from error
        os.replace(source, target)


def _locked(path: Path) -> int | None:
    """The handle of a locked file, made if missing; None if another process holds it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino == os.fstat(handle).st_ino:
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except FileNotFoundError:  # its last holder removed it, after this one had opened it
            pass
        except (ImportError, OSError):  # no such locks here
            return handle
        os.close(handle)
