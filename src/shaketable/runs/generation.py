"""Checkpoints that a crash cannot damage: each is a folder that appears whole, by one rename, or not at all."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.errors import CheckpointError, InputError
from ..files import sha256_of, storage_errors, sync_folder

FORMAT = 1
_WRITING, _REMOVING = ".writing-", ".removing-"


@dataclass(frozen=True)
class Generation:
    """A checkpoint on the disk whose files have the hashes that its manifest gives.

    Args:
        folder: where it is.
        facts: what was written with it, such as the run's identity.
    """

    folder: Path
    facts: dict[str, Any]


def save(root: Path, name: str, facts: dict[str, Any], write: Callable[[Path], None]) -> Generation:
    """Write a checkpoint: fill a temporary folder, flush it, rename it, flush again, then remove older ones.

    Args:
        root: the folder of a run's checkpoints; made if missing.
        name: of the checkpoint; names sort by age, and one name is one moment of the run.
        facts: JSON values to keep in its manifest.
        write: is given the temporary folder and writes the files.

    Raises:
        StorageError: the disk is full or the folder cannot be written; the checkpoints that were there stay.
        InputError: facts that are no JSON.

    Checked by tests/runs/test_generation.py and, with real kills, tests/runs/test_kills.py.
    """
    target, facts = root / name, as_json("facts", facts)
    if target.is_dir():
        return open_generation(target)  # the same moment of the same run
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=root, prefix=_WRITING))
        try:
            write(temporary)
            files = {path.name: sha256_of(path) for path in sorted(temporary.iterdir())}
            manifest = {"format": FORMAT, "facts": facts, "files": files}
            manifest["sha256"] = _digest(manifest)
            (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
            for path in temporary.iterdir():
                _flush(path)
            temporary.chmod(root.stat().st_mode & 0o777)
            sync_folder(temporary)
            os.replace(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(root)
    clean(root, keep=name)
    return Generation(target, facts)


def as_json(argument: str, value: dict[str, Any]) -> dict[str, Any]:
    """A value as it is after it was written to JSON and read again: tuples are lists, keys are strings."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(argument, "JSON values", str(error), "Give plain dicts, lists, texts and numbers.") from error


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write plain values and tensors so that `torch.load(..., weights_only=True)` reads them."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(buffer.getvalue())


def read_tensors(path: Path) -> dict[str, Any]:
    """Read what `write_tensors` wrote; never runs code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        remedy = "It was written by another version, or changed: start the run again in another folder."
        raise CheckpointError(
            str(path), "a training state", f"{type(error).__name__}: {error}"[:200], remedy
        ) from error


def latest(root: Path) -> Generation | None:
    """The newest checkpoint of a run, verified; None if there is none yet.

    Raises:
        CheckpointError: a file of it is missing, truncated or changed, or it is of another format.
    """
    name = latest_name(root)
    return None if name is None else open_generation(root / name)


def latest_name(root: Path) -> str | None:
    """The name of the newest checkpoint, not verified."""
    names = _names(root)
    return names[-1] if names else None


def open_generation(folder: Path) -> Generation:
    """A checkpoint, every file compared with its hash."""
    remedy = (
        f"Remove {folder} to go on from the checkpoint before it, if there is one, or start again in another folder."
    )
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        version, digest = manifest["format"], manifest.pop("sha256")
        facts, files = dict(manifest["facts"]), dict(manifest["files"])
        found = _digest(manifest)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        where, found = str(folder / "manifest.json"), f"{type(error).__name__}: {error}"[:200]
        raise CheckpointError(where, "a checkpoint's manifest", found, remedy) from error
    if version != FORMAT:
        raise CheckpointError(str(folder), f"format {FORMAT}", f"format {version!r}", "Use the version that wrote it.")
    if found != digest:
        raise CheckpointError(str(folder / "manifest.json"), f"sha256 {digest!s:.12}…", f"{found[:12]}…", remedy)
    for name, digest in files.items():
        path = folder / name
        found = sha256_of(path) if path.is_file() else "no file"
        if found != digest:
            raise CheckpointError(str(path), f"sha256 {digest[:12]}…", f"{found[:12]}…", remedy)
    return Generation(folder, facts)


def clean(root: Path, *, keep: str | None = None) -> None:
    """Remove what crashes left, and with `keep` every checkpoint but that one. What cannot be removed stays.

    A checkpoint is renamed before it is removed, so that a crash on the way leaves none that is half there.
    """
    if keep is not None:
        for name in _names(root):
            if name != keep:
                with contextlib.suppress(OSError):
                    os.rename(root / name, root / f"{_REMOVING}{name}")
    for pattern in (_WRITING, _REMOVING):
        for path in root.glob(f"{pattern}*"):
            shutil.rmtree(path, ignore_errors=True)


def _names(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
