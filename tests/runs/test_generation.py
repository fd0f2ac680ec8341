"""Checkpoints as folders: whatever fails while one is written, the old one or the new one is there, whole."""

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shaketable.core.errors import CheckpointError, InputError, StorageError
from shaketable.runs import generation
from shaketable.runs.generation import clean, latest, open_generation, read_tensors, save, write_tensors

FACTS = {"identity": {"rate": 0.1}, "machine": {"threads": 1}}


def writing(text: str) -> Callable[[Path], None]:
    """Writes two files, one in the binary way of the trainings."""

    def write(folder: Path) -> None:
        (folder / "weights").write_bytes(text.encode() * 1000)
        write_tensors(folder / "state.pt", {"text": text, "tensor": torch.arange(5)})

    return write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one checkpoint, of the text "old"."""
    folder = tmp_path / "run" / "checkpoints"
    save(folder, "000001", FACTS, writing("old"))
    return folder


def text_of(found: generation.Generation | None) -> str:
    assert found is not None
    content = read_tensors(found.folder / "state.pt")
    assert (found.folder / "weights").read_bytes() == content["text"].encode() * 1000
    return content["text"]


def names(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir())


def test_what_was_written_is_read(root: Path) -> None:
    found = latest(root)
    assert found is not None
    assert (found.folder, found.facts) == (root / "000001", FACTS)
    assert text_of(found) == "old"
    assert names(root) == ["000001"]
    assert names(found.folder) == ["manifest.json", "state.pt", "weights"]


def test_a_newer_one_takes_the_place_of_the_older_one(root: Path) -> None:
    made = save(root, "000002", {"a": (1, {"b": None})}, writing("new"))
    assert made == latest(root)
    assert made.facts == {"a": [1, {"b": None}]}
    assert text_of(made) == "new"
    assert names(root) == ["000002"]


def test_of_two_the_newer_one_is_the_latest(root: Path) -> None:
    os.rename(root / "000001", root / "000009")
    save(root, "000001", FACTS, writing("older"))  # removes it
    os.rename(root / "000001", root / "000001x")
    save(root, "000010", FACTS, writing("newest"))
    assert text_of(latest(root)) == "newest"


def test_the_same_moment_is_written_once(root: Path) -> None:
    called: list[Path] = []
    found = save(root, "000001", {"other": 1}, called.append)
    assert called == []
    assert found.facts == FACTS


def test_nothing_yet(tmp_path: Path) -> None:
    assert latest(tmp_path / "none") is None
    assert latest(tmp_path) is None
    (tmp_path / "file").write_text("x")
    assert latest(tmp_path / "file") is None
    (tmp_path / ".writing-x").mkdir()
    assert latest(tmp_path) is None


CALLS: list[tuple[Any, str]] = [
    (os, "fsync"), (os, "replace"), (os, "rename"), (os, "open"), (tempfile, "mkdtemp"), (Path, "open"), (Path, "mkdir"),
    (Path, "chmod"), (generation, "sha256_of"),
]  # fmt: skip


def raised_by(call: Callable[[], Any]) -> BaseException | None:
    try:
        call()
    except BaseException as error:
        return error
    return None


class Failing:
    """Raises at the k-th of all calls to the operating system; without a k it counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException, at: int | None) -> None:
        self.count, self.error, self.at, self.where = 0, error, at, ""
        for owner, name in CALLS:
            monkeypatch.setattr(owner, name, self._wrap(getattr(owner, name), name))

    def _wrap(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def wrapped(*given: Any, **named: Any) -> Any:
            self.count += 1
            if self.count - 1 == self.at:
                self.where = name
                raise self.error
            return call(*given, **named)

        return wrapped


@pytest.fixture
def total(tmp_path: Path) -> int:
    """How many calls a save makes."""
    with pytest.MonkeyPatch.context() as patch:
        save(tmp_path / "count" / "checkpoints", "000001", FACTS, writing("old"))
        counter = Failing(patch, OSError(), None)
        save(tmp_path / "count" / "checkpoints", "000002", FACTS, writing("new"))
    return counter.count


ERRORS = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),
    KeyboardInterrupt(),
    MemoryError(),
]


@pytest.mark.parametrize(
    "error", ERRORS, ids=lambda error: f"{type(error).__name__}{getattr(error, 'errno', '') or ''}"
)
def test_a_failure_at_any_call_leaves_the_old_or_the_new(error: BaseException, total: int, tmp_path: Path) -> None:
    assert total > 15
    outcomes: list[str] = []
    for at in range(total):
        root = tmp_path / f"{at}" / "checkpoints"
        save(root, "000001", FACTS, writing("old"))
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, error, at)
            raised = raised_by(lambda: save(root, "000002", FACTS, writing("new")))  # noqa: B023 - called at once
        outcomes.append("done" if raised is None else "error")
        if isinstance(raised, StorageError):
            assert isinstance(error, OSError)
            assert raised.found == error.strerror, failing.where
            assert str(root) in raised.argument
            assert "--out" in raised.remedy
        else:  # Ctrl-C and its like go through
            assert raised in (None, error), failing.where
        assert failing.where
        left = text_of(latest(root))  # verified as it is opened
        if isinstance(error, OSError):
            assert left == ("old" if outcomes[-1] == "error" else "new"), failing.where
            assert all(not name.startswith(".writing-") for name in names(root)), failing.where
        for name in names(root):
            if not name.startswith("."):
                open_generation(root / name)
        save(root, "000003", FACTS, writing("next"))  # and the next one heals all
        assert names(root) == ["000003"]
        assert text_of(latest(root)) == "next"
    assert {"error", "done"} <= set(outcomes) or not isinstance(error, OSError)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "rights"),
        (errno.EDQUOT, "another folder"),
    ],
)
def test_each_failure_has_its_remedy(code: int, remedy: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Failing(monkeypatch, OSError(code, os.strerror(code)), 3)
    with pytest.raises(StorageError) as caught:
        save(root, "000002", FACTS, writing("new"))
    assert remedy in caught.value.remedy
    assert os.strerror(code) in str(caught.value)
    monkeypatch.undo()
    assert text_of(latest(root)) == "old"


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for place in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(StorageError) as caught:
            save(place, "000001", FACTS, writing("new"))
        assert str(place) == caught.value.argument
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights(root: Path) -> None:
    root.chmod(0o555)
    try:
        with pytest.raises(StorageError, match="Permission denied"):
            save(root, "000002", FACTS, writing("new"))
    finally:
        root.chmod(0o755)
    assert text_of(latest(root)) == "old"


def test_a_writer_that_fails_leaves_nothing(root: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("broke")

    with pytest.raises(RuntimeError, match="broke"):
        save(root, "000002", FACTS, write)
    assert names(root) == ["000001"]


def test_facts_that_are_no_json_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    circle: dict[str, Any] = {}
    circle["circle"] = circle
    for facts in ({"path": tmp_path}, {"set": {1}}, circle):
        with pytest.raises(InputError, match="facts: expected JSON values"):
            save(tmp_path / "checkpoints", "000001", facts, writing("new"))
    assert names(tmp_path) == []


def files(root: Path) -> Iterator[Path]:
    folder = root / "000001"
    return (folder / name for name in names(folder))


@pytest.mark.parametrize("name", ["manifest.json", "state.pt", "weights"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "longer", "folder", "other"])
def test_a_damaged_file_is_named_with_the_remedy(name: str, damage: str, root: Path) -> None:
    path = root / "000001" / name
    content = path.read_bytes()
    changed = {"truncated": content[:-1], "empty": b"", "longer": content + b"\0", "other": os.urandom(len(content))}
    if damage == "longer" and name == "manifest.json":
        changed["longer"] = content + b"}"
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(changed[damage])
    with pytest.raises(CheckpointError) as caught:
        latest(root)
    assert caught.value.argument == str(path)
    assert f"Remove {root / '000001'}" in caught.value.remedy


def test_every_flipped_bit_is_found_or_harmless(root: Path) -> None:
    """Of every tenth byte; in the manifest of every byte, where a change of white space alone may pass."""
    whole = latest(root)
    for path in list(files(root)):
        content = path.read_bytes()
        for place in range(0, len(content), 1 if path.name == "manifest.json" else 10):
            changed = bytearray(content)
            changed[place] ^= 1 << (place % 8)
            path.write_bytes(bytes(changed))
            error = raised_by(lambda: latest(root))
            if isinstance(error, CheckpointError):
                assert str(root / "000001") in error.argument
            else:
                assert path.name == "manifest.json"
                assert content[place : place + 1].isspace()
                assert latest(root) == whole
        path.write_bytes(content)
    assert latest(root) == whole


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        "null",
        '"x"',
        "{}",
        "[" * 100_000,
        '{"format": 1, "facts": 3, "files": {}, "sha256": ""}',
        "\xff\xfe",
        "NaN",
    ],
)
def test_a_manifest_that_is_none(manifest: str, root: Path) -> None:
    (root / "000001" / "manifest.json").write_bytes(manifest.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"manifest\.json: expected a checkpoint's manifest"):
        latest(root)


def test_another_format_asks_for_its_version(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "FORMAT", 99)
    with pytest.raises(CheckpointError, match=r"expected format 99, found format 1\. Use the version that wrote it"):
        latest(root)


def test_a_state_never_runs_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"epoch": Evil()}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"state\.pt: expected a training state") as caught:
        read_tensors(tmp_path / "state.pt")
    assert caught.value.remedy
    assert not (tmp_path / "ran").exists()
    (tmp_path / "state.pt").write_bytes(b"<html>")
    with pytest.raises(CheckpointError):
        read_tensors(tmp_path / "state.pt")


def test_what_crashes_left_is_removed_and_nothing_else(root: Path) -> None:
    for name in (".writing-abc", ".removing-000000", "stray"):
        (root / name).mkdir()
        (root / name / "file").write_text("x")
    (root / "note.txt").write_text("mine")
    clean(root)
    assert names(root) == ["000001", "note.txt", "stray"]
    clean(root, keep="000001")
    assert names(root) == ["000001", "note.txt"]
    clean(root / "none", keep="x")


def test_a_name_in_the_way_of_removing_is_got_out_of_the_way(root: Path) -> None:
    (root / ".removing-000001").mkdir()
    (root / ".removing-000001" / "file").write_text("a crash was here")
    save(root, "000002", FACTS, writing("new"))
    save(root, "000003", FACTS, writing("newer"))
    assert names(root) == ["000003"]


def test_the_folder_has_the_rights_of_its_parent(root: Path) -> None:
    assert (root / "000001").stat().st_mode == root.stat().st_mode
    manifest = json.loads((root / "000001" / "manifest.json").read_text())
    assert set(manifest) == {"format", "facts", "files", "sha256"}
    assert set(manifest["files"]) == {"state.pt", "weights"}
