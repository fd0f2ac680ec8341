"""Folders and zips: what is listed, what is read, what is refused."""

import multiprocessing
import os
import pickle
import zipfile
from pathlib import Path

import pytest

from shaketable.core.errors import DataError, UnsafeFileError
from shaketable.data import archives
from shaketable.data.archives import Folder, Zip, content_of


def test_a_folder_lists_files_and_folders_but_no_hidden_ones(write, tmp_path: Path):
    names = ["a/1.png", "a/.hidden.png", "__MACOSX/a/1.png", "b/c/2.txt", ".git/x.png", "Thumbs.db"]
    write.folder(tmp_path, dict.fromkeys(names, b"x"))
    (tmp_path / "empty").mkdir()
    listing = Folder(tmp_path).listing()
    assert listing.files == ("a/1.png", "b/c/2.txt")
    assert listing.folders == ("a", "b", "b/c", "empty")
    assert content_of(Folder(tmp_path), "a/1.png") == b"x"


def test_links_are_followed_once_and_pipes_are_not_files(write, tmp_path: Path):
    write.folder(tmp_path, {"real/a/1.png": b"x"})
    root = tmp_path / "set"
    root.mkdir()
    (root / "a").symlink_to(tmp_path / "real" / "a")
    (root / "a-loop").symlink_to(root)
    (root / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "pipe.png")
    assert Folder(root).listing().files == ("a/1.png",)


def test_missing_files_and_folders_are_named(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere"):
        Folder(tmp_path / "nowhere").listing()
    with pytest.raises(DataError, match=r"1\.png"):
        content_of(Folder(tmp_path), "1.png")


def test_a_file_that_is_too_large_is_refused(write, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 10)
    write.folder(tmp_path, {"a.png": b"x" * 11, "b.png": b"x" * 10})
    assert len(content_of(Folder(tmp_path), "b.png")) == 10
    with pytest.raises(UnsafeFileError, match=r"a\.png"):
        content_of(Folder(tmp_path), "a.png")
    with pytest.raises(UnsafeFileError, match=r"a\.png"):
        Zip(write.zip(tmp_path / "x.zip", {"a.png": b"x" * 11})).listing()


@pytest.mark.parametrize("packed", [False, True])
def test_a_zip_is_read_in_place(write, tmp_path: Path, packed):
    files = {"a/1.png": b"one", "b/2.png": b"two" * 100, "__MACOSX/a/._1.png": b"-", "a/.DS_Store": b"-"}
    archive = Zip(write.zip(tmp_path / "x.zip", files, packed=packed))
    listing = archive.listing()
    assert listing.files == ("a/1.png", "b/2.png")
    assert listing.folders == ("a", "b")
    assert content_of(archive, "b/2.png") == b"two" * 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.zip"]
    there = pickle.loads(pickle.dumps(archive))
    assert content_of(there, "a/1.png") == b"one"


def _read(archive: Zip, member: str, queue: "multiprocessing.Queue[bytes]") -> None:
    queue.put(content_of(archive, member))


def test_a_forked_process_opens_the_zip_for_itself(write, tmp_path: Path):
    """Inherited handles share one position: reading in the child would move the parent's."""
    files = {"a/1.png": b"one", "b/2.png": bytes(range(256)) * 1000}
    archive = Zip(write.zip(tmp_path / "x.zip", files, packed=False))
    content_of(archive, "a/1.png")
    opened = archive._handle().fp
    assert opened is not None
    place = os.lseek(opened.fileno(), 0, os.SEEK_CUR)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_read, args=(archive, "b/2.png", queue))
    child.start()
    assert queue.get(timeout=60) == files["b/2.png"]
    child.join()
    assert os.lseek(opened.fileno(), 0, os.SEEK_CUR) == place


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "..\\evil.png", "C:\\evil.png", "C:/evil.png"]
)
def test_names_that_lead_out_of_the_archive_are_refused(write, tmp_path: Path, name):
    archive = Zip(write.zip(tmp_path / "x.zip", {"a/1.png": b"x", name: b"evil"}))
    with pytest.raises(UnsafeFileError, match="stay within") as caught:
        archive.listing()
    assert "evil" in caught.value.found


def test_an_encrypted_zip_is_refused(write, tmp_path: Path):
    path = write.zip(tmp_path / "x.zip", {"a/1.png": b"x"})
    content = bytearray(path.read_bytes())
    central = content.index(b"PK\x01\x02")
    content[central + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="unencrypted"):
        Zip(path).listing()


def test_a_bomb_of_overlapping_files_is_refused(write, tmp_path: Path):
    """Many entries of the table of contents that all point at the same packed bytes."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.bmp", b"\0" * 1_000_000)
        first = archive.filelist[0]
        for i in range(1, 300):
            copy = zipfile.ZipInfo(f"a/{i}.bmp")
            for field in ("compress_type", "CRC", "compress_size", "file_size", "header_offset", "flag_bits"):
                setattr(copy, field, getattr(first, field))
            archive.filelist.append(copy)
    with pytest.raises(UnsafeFileError, match="overlap"):
        Zip(path).listing()


def test_a_name_given_twice_is_refused(tmp_path: Path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.png", b"one")
        archive.writestr("a/2.png", b"two")
        archive.filelist[1].filename = "a/1.png"
    with pytest.raises(DataError, match="twice"):
        Zip(path).listing()


def test_damage_is_found_by_the_checksum(write, tmp_path: Path):
    path = write.zip(tmp_path / "x.zip", {"a/1.png": b"x" * 1000}, packed=False)
    content = bytearray(path.read_bytes())
    content[content.index(b"x" * 10) + 5] ^= 1
    path.write_bytes(content)
    archive = Zip(path)
    archive.listing()
    with pytest.raises(DataError, match="CRC"):
        content_of(archive, "a/1.png")
    path.write_bytes(content[:200])
    with pytest.raises(DataError, match="zip archive"):
        Zip(path).listing()
    with pytest.raises(DataError, match="zip archive"):
        Zip(tmp_path / "none.zip").listing()


def test_a_missing_member_is_named(write, tmp_path: Path):
    with pytest.raises(DataError, match="nothing"):
        content_of(Zip(write.zip(tmp_path / "x.zip", {"a/1.png": b"x"})), "nothing.png")
