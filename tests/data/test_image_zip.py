"""Zips of images, read in place."""

from pathlib import Path

import pytest
import torch

from shaketable.core.errors import DataError, UnsafeFileError
from shaketable.data import open_dataset, parts_of

NAMES = ["train/cat/0.png", "train/dog/1.png", "test/dog/2.png"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("root", ["", "set/"])
def test_a_zip_is_what_the_folder_is(write, tmp_path: Path, packed, root):
    files = {root + name: content for name, content in write.image_files(NAMES).items()}
    folder, path = write.folder(tmp_path / "f", files), write.zip(tmp_path / "f.zip", files, packed=packed)
    assert parts_of(path) == parts_of(folder) == ("train", "test")
    for split in ("train", "test", "all"):
        ours, other = open_dataset(path, split=split, size=6), open_dataset(folder, split=split, size=6)
        assert ours.fingerprint == other.fingerprint
        assert torch.equal(ours.batch([0]).x, other.batch([0]).x)
        assert ours.classes == ("cat", "dog")


def test_a_zip_by_another_name(write, tmp_path: Path):
    assert len(open_dataset(write.zip(tmp_path / "images.dat", write.image_files(NAMES)), split="all")) == 3


def test_hostile_and_damaged_zips_are_refused(write, tmp_path: Path):
    files = write.image_files(NAMES)
    with pytest.raises(UnsafeFileError, match=r"\.\./evil"):
        open_dataset(write.zip(tmp_path / "slip.zip", files | {"../evil.png": b"x"}))
    assert not (tmp_path.parent / "evil.png").exists()
    with pytest.raises(DataError, match="0 files"):
        open_dataset(write.zip(tmp_path / "empty.zip", {}))
    cut = tmp_path / "cut.zip"
    cut.write_bytes(write.zip(tmp_path / "x.zip", files).read_bytes()[:-30])
    with pytest.raises(DataError, match=r"cut\.zip"):
        open_dataset(cut)


def test_damage_within_is_found_when_the_image_is_read(write, tmp_path: Path):
    files = write.image_files(NAMES, shape=(128, 128, 3))
    path = write.zip(tmp_path / "x.zip", files, packed=False)
    content = bytearray(path.read_bytes())
    content[content.index(files[NAMES[2]]) + 2000] ^= 1
    path.write_bytes(content)
    data = open_dataset(path, split="all")
    assert len(data.batch([0, 1])) == 2
    with pytest.raises(DataError, match=r"test/dog/2\.png"):
        data.batch([2])


def test_real_cifar10_jpegs(extra):
    test = open_dataset(extra("cifar10-jpeg.zip"))
    assert test.counts == (400,) * 10
    assert test.pixels.shape == (3, 32, 32)
    assert test.classes[0] == "airplane"
    x = test.batch(range(0, 4000, 40)).x
    assert 0.4 < float(x.mean()) < 0.55


def test_real_tiles_skip_the_cover_picture(extra):
    tiles = open_dataset(extra("magnetic-tile.zip"))
    assert tiles.classes == ("blowhole", "break", "crack", "fray", "free", "uneven")
    assert tiles.counts[4] == 952
    assert len(tiles) == 1344
