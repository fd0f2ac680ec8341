"""Files are old or new, never half: a full disk, a folder that cannot be written, an interrupted and a killed write."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shaketable.core.errors import StorageError
from shaketable.files import sha256_of, storage_errors, sync_folder, write_atomically

OLD, NEW = b"old" * 1000, b"new" * 100_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "run" / "last.ckpt"
    write_atomically(target, OLD)
    return target


def only(path: Path, content: bytes) -> bool:
    """Whether the file has this content and nothing lies beside it."""
    return path.read_bytes() == content and os.listdir(path.parent) == [path.name]


def test_a_file_is_written_and_replaced(path: Path) -> None:
    assert only(path, OLD)
    write_atomically(path, NEW)
    assert only(path, NEW)
    write_atomically(path, b"")
    assert only(path, b"")


def test_folders_are_made_and_rights_are_those_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a" / "b" / "file", NEW)
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "b" / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("content", [b"few", NEW])
def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_return(
    path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watch_fsync(handle: int) -> None:
        kind = "folder" if os.path.isdir(f"/proc/self/fd/{handle}") else f"file of {os.fstat(handle).st_size}"
        steps.append(kind)
        fsync(handle)

    def watch_replace(source: Path, target: Path) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(os, "replace", watch_replace)
    write_atomically(path, content)
    assert steps == [f"file of {len(content)}", "rename", "folder"]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "rights"),
        (errno.EIO, "another folder"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_of_the_disk_leaves_the_old_file_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StorageError, match=remedy) as caught:
        write_atomically(path, NEW)
    assert caught.value.argument == str(path)
    assert caught.value.found == os.strerror(number)
    assert isinstance(caught.value.__cause__, OSError)
    monkeypatch.undo()
    assert only(path, OLD)


def test_a_file_where_a_folder_should_be(path: Path) -> None:
    with pytest.raises(StorageError, match="part of the path is a file"):
        write_atomically(path / "below" / "it", NEW)
    assert only(path, OLD)


def test_a_folder_where_the_file_should_be(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match="a place that can be written"):
        write_atomically(tmp_path / "taken", NEW)
    assert os.listdir(tmp_path) == ["taken"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights(path: Path) -> None:
    path.parent.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="rights"):
            write_atomically(path, NEW)
        assert only(path, OLD)
    finally:
        path.parent.chmod(0o700)


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


LOAD = """
import importlib.util, pathlib, sys, types
source = pathlib.Path(sys.argv[1])                         # files.py alone, without torch: a fast child
package, core = types.ModuleType("shaketable"), types.ModuleType("shaketable.core")
package.__path__, core.__path__ = [str(source.parent)], [str(source.parent / "core")]
sys.modules.update({"shaketable": package, "shaketable.core": core})
from shaketable.core.errors import StorageError
from shaketable.files import write_atomically
path = pathlib.Path(sys.argv[2])
"""
SOURCE = sys.modules[write_atomically.__module__].__file__


def test_a_disk_that_really_takes_no_more(path: Path) -> None:
    """The kernel itself refuses at 64 KiB (a limit on the file's size), in the middle of the write."""
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    write_atomically(path, b"new" * 100_000)
except StorageError as error:
    print("refused:", error.found)
"""
    done = python(LOAD + code, SOURCE, path)
    assert done.stdout.startswith("refused: File too large"), done
    assert only(path, OLD)


def test_an_interrupt_leaves_the_old_file_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, NEW)
    monkeypatch.undo()
    assert only(path, OLD)


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_kill_leaves_the_old_file_and_the_next_write_works(path: Path, where: str) -> None:
    code = f"""
import os, signal
os.{where} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(path, b"new" * 100_000)
"""
    done = python(LOAD + code, SOURCE, path)
    assert done.returncode == -signal.SIGKILL, done
    assert path.read_bytes() == OLD
    left = [name for name in os.listdir(path.parent) if name != path.name]
    assert len(left) == 1
    assert left[0].startswith(".last.ckpt.")
    assert left[0].endswith(".partial")  # so that a reader can tell it, and a run can clear it away
    write_atomically(path, NEW)
    assert path.read_bytes() == NEW


def test_readers_never_see_half_a_file(path: Path) -> None:
    contents, seen, stop = (OLD, NEW, NEW[::-1]), set(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for k in range(200):
        write_atomically(path, contents[k % 3])
    stop.set()
    reader.join()
    assert seen <= set(contents)
    assert len(seen) > 1


def test_two_writers_do_not_meet(path: Path) -> None:
    contents = [bytes([65 + k]) * 50_000 for k in range(4)]
    writers = [threading.Thread(target=lambda c=c: [write_atomically(path, c) for _ in range(20)]) for c in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_bytes() in contents
    assert os.listdir(path.parent) == [path.name]


def test_sync_folder_of_what_is_none_is_silent(tmp_path: Path) -> None:
    sync_folder(tmp_path / "missing")
    sync_folder(tmp_path)


def test_storage_errors_lets_other_errors_through() -> None:
    with pytest.raises(KeyError), storage_errors(Path("x")):
        raise KeyError


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (3 << 20) + 5])
def test_sha256_of_a_file(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "f").write_bytes(content[:size])
    assert sha256_of(tmp_path / "f") == hashlib.sha256(content[:size]).hexdigest()
