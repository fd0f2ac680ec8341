"""The format of our checkpoints: an ordinary safetensors file that says what it holds and carries its own hash.

Any safetensors reader gets the tensors. The header's metadata has one key, `shaketable`, a JSON manifest:

    sha256   of the whole file with these 64 digits replaced by zeros: tensor names, types, shapes, bytes and manifest
    version  of this format, 1
    spec     the `ModelSpec`
    facts    about the training
    tied     {name: the name under which its tensor is stored}, for tensors that share their memory
    writer   the program that wrote it

The hash finds damage, not forgery: whoever changes a file on purpose can compute it anew.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from shaketable.core.errors import CheckpointError, InputError, ShaketableError
from shaketable.version import __version__

from .spec import ModelSpec

VERSION = 1
RESTORE = "Restore the file from a copy, or train again (the run's other checkpoint may be whole)."
_MARK = (
    b'"shaketable":"{\\"sha256\\":\\"'  # how the manifest begins in the header; quotes inside names are escaped there
)
_BLANK = b"0" * 64
_IMPOSTORS = {
    b"<": "an HTML or XML page",
    b"PK\x03\x04": "a zip archive or .pt file",
    b"\x80": "a pickle",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says about itself.

    Args:
        spec: of its model.
        facts: about its training, JSON values.
        tied: names of tensors that share another's memory, and that other's name.
        writer: the program that wrote it.
        sha256: of the file, as `sha256sum` prints it.
    """

    spec: ModelSpec
    facts: dict[str, Any]
    tied: dict[str, str]
    writer: str
    sha256: str


def encode(tensors: dict[str, Tensor], spec: ModelSpec, facts: Mapping[str, Any], tied: dict[str, str]) -> bytes:
    """The bytes of a checkpoint; the same arguments give the same bytes. Raises InputError for facts that are no JSON."""
    import safetensors.torch

    manifest = {
        "sha256": _BLANK.decode(),
        "version": VERSION,
        "spec": spec.to_json(),
        "facts": dict(facts),
        "tied": tied,
        "writer": f"shaketable {__version__}",
    }
    try:
        text = json.dumps(manifest, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError("facts", "JSON values", str(error), "Turn them into numbers, strings and lists.") from error
    content = bytearray(safetensors.torch.save(tensors, {"shaketable": text}))
    start = content.index(_MARK) + len(_MARK)
    content[start : start + 64] = hashlib.sha256(content).hexdigest().encode()
    return bytes(content)


def read_manifest(path: str | Path) -> Manifest:
    """What a checkpoint says about itself; the whole file is verified. Raises CheckpointError, as `load` does."""
    return decode(path, read_bytes(path))


def is_checkpoint(path: str | Path) -> bool:
    """Whether a file begins as ours do, a safetensors header with our manifest. Reads no more than that header."""
    try:
        with Path(path).open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            return length <= 100_000_000 and _MARK in stream.read(length)
    except OSError:
        return False


def read_bytes(path: str | Path) -> bytes:
    """The content of a checkpoint file. Raises CheckpointError if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        found = error.strerror or type(error).__name__
        raise CheckpointError(str(path), "a checkpoint file", found, "Correct the path.") from error


def decode(path: str | Path, content: bytes) -> Manifest:
    """The manifest of a checkpoint's content, after all of it was verified.

    Raises:
        CheckpointError: truncated, damaged, no safetensors file, without a manifest, or of another version.
    """
    where, header = str(path), _header(str(path), content)
    try:
        metadata = json.loads(header)["__metadata__"]
        manifest = json.loads(metadata["shaketable"])
        version, digest = manifest["version"], manifest["sha256"]
        if header.count(_MARK) != 1 or not re.fullmatch("[0-9a-f]{64}", digest):
            raise KeyError("shaketable")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        found = "none that can be read: damaged, or weights that another program wrote"
        remedy = "Give the architecture (a spec) for others' weights; restore a damaged file from a copy."
        raise CheckpointError(where, "Shaketable's manifest in the header", found, remedy) from error
    if version != VERSION or isinstance(version, bool):
        remedy = "Use the version of shaketable that wrote it, if the file is whole."
        raise CheckpointError(where, f"format version {VERSION}", f"version {version!r}", remedy)
    start = 8 + header.index(_MARK) + len(_MARK)
    blanked = hashlib.sha256(content[:start] + _BLANK)
    blanked.update(memoryview(content)[start + 64 :])
    if blanked.hexdigest() != digest:
        found = f"{blanked.hexdigest()[:12]}…: truncated, damaged or edited"
        raise CheckpointError(where, f"the SHA-256 {digest[:12]}… that its manifest states", found, RESTORE)
    try:
        spec = ModelSpec.from_json(manifest["spec"])
        whole = hashlib.sha256(content).hexdigest()
        return Manifest(spec, manifest["facts"], manifest["tied"], manifest["writer"], whole)
    except (KeyError, ShaketableError) as error:
        remedy = "It was written by another version of shaketable, or edited: use the version that wrote it."
        raise CheckpointError(where, "a manifest of this version", str(error), remedy) from error


def _header(where: str, content: bytes) -> bytes:
    """The JSON header's bytes."""
    for start, kind in _IMPOSTORS.items():
        # a header's length begins with any byte, but a real one of that many bytes is then followed by an object
        if content.startswith(start) and content[8:9] != b"{":
            raise CheckpointError(
                where, "a safetensors file", kind, "Give the checkpoint itself; .pt files keep their name."
            )
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        found = f"{len(content)} bytes, fewer than its header states: truncated, or no safetensors file"
        raise CheckpointError(where, "a whole safetensors file", found, RESTORE)
    return content[8 : 8 + length]
