"""Looking at a file of weights before it is loaded: what it is, how much memory it declares, whether it would run code.

Every check here reads headers and directories; none allocates what the file declares and none runs anything of it. Sizes
count as declared and as stored, so neither a zip bomb nor a tensor of a petabyte gets as far as an allocation.
"""

import io
import mmap
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shaketable.core.errors import ModelError, UnsafeFileError

from .archives import open_zip, read_entry, verify
from .pickles import read

Kind = Literal["torch-zip", "torch-legacy", "safetensors", "exported", "onnx"]

LIMIT = 20 * 2**30
MAX_PICKLE = 256 * 2**20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class Scan:
    """What was found in a file of weights without loading it.

    Args:
        kind: how the file is written.
        value: the object it would build, with `pickles.TensorEntry` in place of tensors; None where that is not read.
    """

    kind: Kind
    value: Any = None


def memory_limit(limit: int | None = None) -> int:
    """The most bytes that a file may declare: `limit`, by default 20 GiB or the memory that is available, if less."""
    if limit is not None:
        return limit
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return min(LIMIT, next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")))
    except (OSError, StopIteration, ValueError, IndexError):
        return LIMIT


def scan(path: Path, *, limit: int | None = None) -> Scan:
    """Find out what a file is, and that it is whole, of bearable size and free of code.

    Args:
        path: the file.
        limit: the most bytes its tensors may declare; see `memory_limit`.

    Raises:
        ModelError: it is something else (a web page, JSON, a git-LFS pointer, TorchScript, ...) or it is damaged.
        UnsafeFileError: it would run code, or declares more than the limit, or its archive is a trap.

    A `.pt2` program and an ONNX file are only recognised here; `exported_scan` and `onnx` check them. Checked by
    tests/models/foreign/test_hostile.py, a table of files with the error that each must give.
    """
    allowed = memory_limit(limit)
    kind = sniff(path)
    if kind == "torch-zip":
        return Scan(kind, _scan_torch_zip(path, allowed))
    if kind == "torch-legacy":
        return Scan(kind, _scan_legacy(path, allowed))
    return Scan(kind)


def sniff(path: Path) -> Kind:
    """What a file is, by its first bytes; a typed error that names what it is when that is no model."""
    head = _head(path)
    if head.startswith(b"PK\x03\x04"):
        names = set(open_zip(path, limit=None))
        inner = {name.partition("/")[2] for name in names}
        if "archive_format" in inner or "serialized_exported_program.json" in names:
            return "exported"
        if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
            raise _not_weights(
                path, "a TorchScript archive", "Export the model with torch.export.export and save a .pt2."
            )
        if "data.pkl" in inner:
            return "torch-zip"
        raise _not_weights(path, f"a zip archive without weights ({', '.join(sorted(names)[:3])})", "Unpack it first.")
    if len(head) > 9 and 2 <= struct.unpack("<Q", head[:8])[0] < path.stat().st_size and head[8:9] == b"{":
        return "safetensors"
    if path.suffix.lower() == ".onnx" and head.startswith(
        b"\x08"
    ):  # a protocol buffer whose first field is the format's version
        return "onnx"
    if head.startswith(b"\x80") and len(head) > 2 and head[1] <= 5:
        return "torch-legacy"
    raise _stranger(path, head)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(1024)
    except OSError as error:
        raise ModelError(
            str(path), "a model file that can be read", error.strerror or "an error", "Check the path."
        ) from error


def _not_weights(path: Path, found: str, remedy: str) -> ModelError:
    return ModelError(str(path), "a file of weights, a .pt2 program or an ONNX model", found, remedy)


def _stranger(path: Path, head: bytes) -> ModelError:
    """Name a file that is no model, by the things that people download by mistake."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    again = "Fetch the file itself"
    if not head:
        return _not_weights(path, "an empty file", f"{again} again; the download or the disk failed.")
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--", b"<script")):
        return _not_weights(
            path, "a web page (HTML) instead of weights", f"{again}: the link led to a page, a login or a quota."
        )
    if text.startswith(b"version https://git-lfs"):
        return _not_weights(
            path, "a git-LFS pointer instead of weights", f"{again}: run `git lfs pull` in its repository."
        )
    if text.startswith((b"{", b"[")):
        return _not_weights(path, "JSON text instead of weights", f"{again}: this is an answer or a config about it.")
    if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
        return _not_weights(path, "a tar or gzip archive", "Unpack it first and give the file inside.")
    if head.startswith(b"\x89HDF"):
        return _not_weights(path, "an HDF5 file (Keras?)", "Export the model to ONNX.")
    if not head.strip(b"\0"):
        return _not_weights(path, "a file of zero bytes", f"{again} again; the download or the disk failed.")
    return _not_weights(path, f"an unknown format (it begins with {head[:8].hex(' ')})", f"{again}; it may be damaged.")


def _scan_torch_zip(path: Path, limit: int) -> Any:
    entries = open_zip(path, limit=limit)
    name = next(name for name in entries if name.endswith("/data.pkl"))
    root = name.removesuffix("data.pkl")
    with zipfile.ZipFile(path) as archive:
        pickled = read_entry(archive, entries[name], most=MAX_PICKLE)
        contents = read(io.BytesIO(pickled), argument=str(path), limit=limit)
        for key, storage in contents.storages.items():
            entry = entries.get(f"{root}data/{key}")
            if entry is None or entry.file_size != storage.nbytes:
                found = "no such entry" if entry is None else f"{entry.file_size} bytes"
                expected = f"{storage.nbytes} bytes for the storage {key}, as its pickle declares"
                remedy = "Fetch the file again; if that does not help, do not load it."
                raise UnsafeFileError(str(path), expected, found, remedy)
        verify(archive, (entries[f"{root}data/{key}"] for key in contents.storages))
    return contents.value


def _scan_legacy(path: Path, limit: int) -> Any:
    """A file of torch before 1.6 (five pickles, then the raw storages), or a bare pickle, which is refused."""
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        first = read(stream, argument=str(path), limit=limit)
        if first.value != _LEGACY_MAGIC:
            raise _not_weights(path, "a pickle that torch.save did not write", "Save the state dict with torch.save.")
        for _ in range(2):
            read(stream, argument=str(path), limit=limit)
        contents = read(stream, argument=str(path), limit=limit)
        read(stream, argument=str(path), limit=limit)
        rest = stream.size() - stream.tell()
    needed = sum(storage.nbytes + 8 for storage in contents.storages.values())
    if needed > rest:
        found = f"{rest} bytes after the header"
        remedy = "Fetch the file again; it is cut short, or declares sizes that it does not have."
        raise ModelError(str(path), f"{needed} bytes of tensors, as its pickle declares", found, remedy)
    return contents.value
