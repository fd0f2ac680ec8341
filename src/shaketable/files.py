"""Writing files so that a crash leaves the old file or the new one, never half of one; and their hashes."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Generator
from pathlib import Path

from .core.errors import StorageError


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits; reads it in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file: a temporary file beside it, flushed to the disk, then renamed over the old one.

    Raises:
        StorageError: the folder is missing its rights, is no folder, or the disk is full. The old file is untouched and
            the temporary one is removed.

    Checked by tests/test_files.py (a full device, a read-only folder, an interrupted write).
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
        try:
            with temporary.open("xb") as stream:  # "x": never over a file that is there; rights as the umask says
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename outlives a power cut; does nothing where folders cannot be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def storage_errors(path: Path) -> Generator[None]:
    """Turn the operating system's errors about a path into a `StorageError` that says what to do."""
    try:
        yield
    except OSError as error:
        remedies = {
            28: "Free some space or choose another folder with --out; what was there before is untouched.",
            122: "The quota is used up: free some space or choose another folder with --out.",
            30: "The file system is read-only: choose another folder with --out.",
            13: "Change the folder's rights or choose another folder with --out.",
            20: "A part of the path is a file: choose another folder with --out.",
        }
        remedy = remedies.get(error.errno or 0, "Choose another folder with --out.")
        reason = error.strerror or type(error).__name__
        raise StorageError(str(path), "a place that can be written", reason, remedy) from error
