"""Files in a folder or in a zip, read by name and under limits; a zip is read in place, nothing is extracted."""

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, final

from ..core.errors import DataError, UnsafeFileError

MAX_FILE_BYTES = 1 << 28  # 256 MiB: no image file that fits `MAX_PIXELS` is larger
MAX_DEPTH = 8
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, UnicodeError)


@final
@dataclass(frozen=True)
class Listing:
    """The names within an archive, with forward slashes, sorted: its files, and its folders (the empty ones too)."""

    files: tuple[str, ...]
    folders: tuple[str, ...]


class Archive(Protocol):
    """Something that holds image files by name: `Folder`, `Zip`, or a table of a library."""

    @property
    def name(self) -> str:
        """How messages call it."""
        ...

    def stream(self, member: str) -> AbstractContextManager[IO[bytes]]:
        """One file, to read as much of as is needed."""
        ...


def content_of(archive: Archive, member: str) -> bytes:
    """The whole content of one file in an archive.

    Raises:
        DataError: the file is missing, may not be read, or is damaged.
        UnsafeFileError: the file is larger than `MAX_FILE_BYTES`.
    """
    where = f"{archive.name}/{member}"
    with archive.stream(member) as stream:
        try:
            content = stream.read(MAX_FILE_BYTES + 1)
        except (OSError, *_DAMAGED) as error:
            raise DataError(where, "an undamaged file", _reason(error), "Fetch the file again.") from error
    if len(content) > MAX_FILE_BYTES:
        raise _too_large(where, f"more than {MAX_FILE_BYTES} bytes")
    return content


@final
@dataclass(frozen=True)
class Folder:
    """Files under a folder. Links are followed, a folder is entered once, hidden names are skipped."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name or str(self.path)

    def listing(self) -> Listing:
        """All regular files and folders, to a depth of `MAX_DEPTH`.

        Raises:
            DataError: a folder that cannot be read.
        """
        files: list[str] = []
        folders: list[str] = []
        entered: set[str] = set()

        def walk(folder: Path, prefix: str, depth: int) -> None:
            real = os.path.realpath(folder)
            if real in entered or depth > MAX_DEPTH:
                return
            entered.add(real)
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _hidden(entry.name):
                        continue
                    if entry.is_dir():
                        folders.append(prefix + entry.name)
                        walk(folder / entry.name, f"{prefix}{entry.name}/", depth + 1)
                    elif entry.is_file():
                        files.append(prefix + entry.name)

        try:
            walk(self.path, "", 0)
        except OSError as error:
            remedy = "Check the folder's rights."
            raise DataError(str(self.path), "a readable folder", _reason(error), remedy) from error
        return Listing(tuple(sorted(files)), tuple(sorted(folders)))

    @contextmanager
    def stream(self, member: str) -> Iterator[IO[bytes]]:
        try:
            opened = (self.path / member).open("rb")
        except OSError as error:
            remedy = "Check that the file is still there and may be read."
            raise DataError(f"{self.name}/{member}", "a readable file", _reason(error), remedy) from error
        with opened:
            yield opened


@final
class Zip:
    """Files in a zip archive, read in place; names, sizes and checksums are checked.

    Every process opens the file for itself (a handle shared after a fork would mix up the positions), so a `Zip` may be
    sent to workers. Checked by tests/data/test_archives.py.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def __reduce__(self) -> tuple[type["Zip"], tuple[Path]]:
        return Zip, (self.path,)

    @property
    def name(self) -> str:
        return self.path.name

    def listing(self) -> Listing:
        """All files and folders, after the whole table of contents is found safe.

        Raises:
            DataError: no zip archive, a damaged one, or an encrypted file in it.
            UnsafeFileError: a name that leads out of the archive; files that overlap or are absurdly large (zip bombs).
        """
        infos = self._handle().infolist()
        packed = sum(info.compress_size for info in infos)
        if packed > self.path.stat().st_size:
            found = f"files of {packed} bytes within {self.path.stat().st_size}"
            raise UnsafeFileError(self.name, "files that do not overlap", found, "This is a zip bomb: do not use it.")
        files, folders = [], []
        for info in infos:
            self._check(info)
            name = info.filename.rstrip("/")
            if not any(_hidden(part) for part in name.split("/")):
                (folders if info.is_dir() else files).append(name)
        if len(set(files)) != len(files):
            twice = next(name for name in files if files.count(name) > 1)
            raise DataError(self.name, "one file a name", f"{twice!r} twice", "Pack the archive again.")
        parents = {"/".join(parts[:i]) for parts in (n.split("/") for n in files) for i in range(1, len(parts))}
        return Listing(tuple(sorted(files)), tuple(sorted(parents.union(folders))))

    @contextmanager
    def stream(self, member: str) -> Iterator[IO[bytes]]:
        try:
            info = self._handle().getinfo(member)
            self._check(info)
            opened = self._handle().open(info)
        except (DataError, UnsafeFileError):
            raise
        except (KeyError, OSError, *_DAMAGED) as error:
            where = f"{self.name}/{member}"
            raise DataError(where, "an undamaged file", _reason(error), "Fetch or pack the archive again.") from error
        with opened:
            yield opened

    def _check(self, info: zipfile.ZipInfo) -> None:
        name = info.orig_filename
        parts = name.replace("\\", "/").split("/")
        if "\x00" in name or parts[0] == "" or ".." in parts or ":" in parts[0]:
            remedy = "The archive tries to reach outside itself: do not use it."
            raise UnsafeFileError(self.name, "names that stay within the archive", repr(name)[:200], remedy)
        if info.flag_bits & 1:
            raise DataError(f"{self.name}/{name}", "an unencrypted file", "an encrypted one", "Decrypt the archive.")
        if info.file_size > MAX_FILE_BYTES:
            raise _too_large(f"{self.name}/{name}", f"{info.file_size} bytes")

    def _handle(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                self._opened = os.getpid(), zipfile.ZipFile(self.path)
            except (OSError, *_DAMAGED) as error:
                raise DataError(str(self.path), "a zip archive", _reason(error), "Fetch or pack it again.") from error
        return self._opened[1]


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _too_large(where: str, found: str) -> UnsafeFileError:
    expected = f"a file of at most {MAX_FILE_BYTES} bytes"
    return UnsafeFileError(where, expected, found, "Remove the file: no image needs that much.")
