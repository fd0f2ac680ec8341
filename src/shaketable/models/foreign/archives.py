"""Zip archives of strangers: their directory checked before anything is unpacked, their entries read within limits."""

import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from shaketable.core.errors import ModelError, UnsafeFileError

MAX_ENTRIES = 100_000
RATIO = 200
"""How many times its stored size an entry may unpack to; weights hardly pack at all."""


def open_zip(path: Path, *, limit: int | None) -> Mapping[str, zipfile.ZipInfo]:
    """The entries of a zip archive by name, after its directory was checked; nothing is unpacked.

    Raises:
        ModelError: the archive breaks off.
        UnsafeFileError: names that lead out of it, entries twice, encrypted, overlapping, too many or too large, or
            packed so tightly that it is a bomb.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            alone = not archive.comment and min((e.header_offset for e in entries), default=0) == 0
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError, EOFError) as error:
        raise ModelError(
            str(path), "a whole archive", f"one that breaks off ({error})", "Fetch the file again; it is damaged."
        ) from error
    # with bytes before or after the archive, two readers may find two different directories in it
    fault = _archive_fault(entries, path.stat().st_size, limit) if alone else "bytes around the archive"
    if fault:
        raise UnsafeFileError(str(path), "an ordinary archive of weights", fault, "Do not load it.")
    return {entry.filename: entry for entry in entries}


def _archive_fault(entries: list[zipfile.ZipInfo], stored: int, limit: int | None) -> str | None:
    """What is wrong with an archive's directory, or None."""
    if len(entries) > MAX_ENTRIES:
        return f"{len(entries)} entries, above {MAX_ENTRIES}"
    seen: set[str] = set()
    for entry in entries:
        # `filename` is cut at NUL and has its separators changed; `orig_filename` is what the archive says.
        name = entry.orig_filename
        parts = PurePosixPath(name).parts
        if not name or name[0] == "/" or ".." in parts or "\\" in name or ":" in name or not name.isprintable():
            return f"an entry named {name!r}, which leads out of the archive"
        if name.casefold() in seen:
            return f"two entries named {name!r}"
        seen.add(name.casefold())
        if entry.flag_bits & 1:
            return f"an encrypted entry {name!r}"
        if entry.file_size > 2**20 and entry.file_size > RATIO * max(entry.compress_size, 1):
            return f"an entry {name!r} that unpacks {entry.compress_size} bytes to {entry.file_size} (a zip bomb)"
    if sum(entry.compress_size for entry in entries) > stored:
        return "entries that share their bytes (a zip bomb)"
    total = sum(entry.file_size for entry in entries)
    if limit is not None and total > limit:
        return f"{total} bytes unpacked, above the limit of {limit}"
    return None


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, *, most: int) -> bytes:
    """The bytes of one entry, which may be at most `most`; its checksum is verified.

    Raises:
        UnsafeFileError: it is larger.
        ModelError: it is damaged.
    """
    path = str(archive.filename)
    if entry.file_size > most:
        expected = f"an entry {entry.filename} of at most {most} bytes"
        raise UnsafeFileError(path, expected, f"{entry.file_size}", "Do not load it.")
    try:
        return archive.read(entry)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, zlib.error) as error:
        found = f"a damaged entry {entry.filename}"
        raise ModelError(path, "a whole archive", found, "Fetch the file again.") from error


def verify(archive: zipfile.ZipFile, entries: Iterable[zipfile.ZipInfo]) -> None:
    """Read the entries in pieces for their checksums, which torch.load does not compare: a flipped bit would go unseen."""
    for entry in entries:
        try:
            with archive.open(entry) as stream:
                while stream.read(1 << 20):
                    pass
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, zlib.error) as error:
            found = f"{entry.filename} with another checksum ({error})"
            remedy = (
                "Fetch the file again; it is damaged (or was saved with torch.serialization.set_crc32_options(False))."
            )
            raise ModelError(str(archive.filename), "a whole archive", found, remedy) from error
