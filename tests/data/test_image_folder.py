"""Folders of images, decoded when a batch is read."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shaketable.core.errors import DataError, UnsafeFileError
from shaketable.data import open_dataset, parts_of
from shaketable.data.pixels import Decoded

NAMES = ["train/cat/0.png", "train/cat/1.bmp", "train/dog/2.webp", "test/dog/3.png"]


def test_pixels_labels_and_parts(write, tmp_path: Path):
    write.folder(tmp_path, write.image_files(NAMES))
    assert parts_of(tmp_path) == ("train", "test")
    train = open_dataset(tmp_path, split="train")
    assert isinstance(train.pixels, Decoded)
    assert train.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 1]
    expected = np.stack([write.images(8, 8, 3, seed=i) for i in range(3)]).transpose(0, 3, 1, 2) / np.float32(255)
    np.testing.assert_array_equal(train.batch([0, 1, 2]).x.numpy(), expected)
    np.testing.assert_array_equal(train.take([2]).batch([0]).x[0].numpy(), expected[2])
    everything = open_dataset(tmp_path, split="all")
    assert everything.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(everything.batch([3]).x, open_dataset(tmp_path).batch([0]).x)


def test_sizes_and_channels_must_agree_or_be_asked_for(write, tmp_path: Path):
    write.folder(
        tmp_path,
        write.image_files(["a/0.png"], shape=(8, 8)) | write.image_files(["b/1.png", "b/2.png"], shape=(9, 12, 3)),
    )
    with pytest.raises(DataError, match="1 grey and 2 colour"):
        open_dataset(tmp_path, size=8)
    with pytest.raises(DataError, match=r"2 sizes .most often 12 x 9, 2 of 3"):
        open_dataset(tmp_path, channels=3)
    for channels in (1, 3):
        data = open_dataset(tmp_path, size=6, channels=channels)
        assert data.batch([0, 1, 2]).x.shape == (3, channels, 6, 6)
    with_crop = open_dataset(tmp_path, size=6, channels=3, crop=0.75)
    assert with_crop.name == f"{tmp_path.name} 6 px, crop 0.75, 3 channels"
    assert with_crop.fingerprint != data.fingerprint


def test_the_fingerprint_is_of_files_and_fit(write, tmp_path: Path):
    files = write.image_files(["a/0.png", "b/1.png"])
    first = open_dataset(write.folder(tmp_path / "one", files))
    moved = open_dataset(write.folder(tmp_path / "two", files))
    assert first.fingerprint == moved.fingerprint
    renamed = open_dataset(write.folder(tmp_path / "three", {"a/0.png": files["a/0.png"], "c/1.png": files["b/1.png"]}))
    changed = open_dataset(write.folder(tmp_path / "four", {"a/0.png": files["b/1.png"], "b/1.png": files["a/0.png"]}))
    smaller = open_dataset(tmp_path / "one", size=4)
    assert len({data.fingerprint for data in (first, renamed, changed, smaller)}) == 4


def test_a_broken_image_is_named_when_it_is_opened_or_read(write, tmp_path: Path):
    files = write.image_files(["a/0.jpg", "b/1.jpg"], shape=(64, 64, 3))
    cut = files["b/1.jpg"][: len(files["b/1.jpg"]) // 2]
    root = write.folder(tmp_path / "cut", files | {"b/1.jpg": cut})
    data = open_dataset(root)
    assert data.batch([0]).x.shape == (1, 3, 64, 64)
    for use in (lambda: data.batch([0, 1]), data.in_memory, lambda: list(data.batches(1))):
        with pytest.raises(DataError, match=r"b/1\.jpg"):
            use()
    root = write.folder(tmp_path / "html", files | {"b/1.jpg": b"<html>404</html>"})
    with pytest.raises(DataError, match=r"b/1\.jpg"):
        open_dataset(root)


def test_a_file_that_changes_its_size_is_named(write, tmp_path: Path):
    data = open_dataset(write.folder(tmp_path, write.image_files(["a/0.png", "b/1.png"])))
    write.folder(tmp_path, write.image_files(["a/0.png"], shape=(9, 8, 3)))
    with pytest.raises(DataError, match="8 x 9"):
        data.batch([0])


def test_a_bomb_is_refused_when_opened(write, tmp_path: Path):
    bomb = bytearray(write.encoded(write.images(8, 8, 3), "bmp"))
    bomb[18:26] = (30_000).to_bytes(4, "little") * 2
    write.folder(tmp_path, write.image_files(["a/0.png"]) | {"b/1.bmp": bytes(bomb)})
    with pytest.raises(UnsafeFileError, match=r"b/1\.bmp"):
        open_dataset(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="0 files"):
        open_dataset(tmp_path)


def test_real_photographs_named_by_class(extra):
    data = open_dataset(extra("imagenet-samples"))
    assert (len(data), len(data.classes), data.pixels.shape) == (300, 1000, (3, 224, 224))
    assert data.classes[3] == "tiger shark"
    assert data.labels.unique().numel() == 300
    small = open_dataset(extra("imagenet-samples"), size=32)
    whole, tiny = data.batch([7]).x, small.batch([7]).x
    torch.testing.assert_close(tiny.mean((2, 3)), whole.mean((2, 3)), atol=0.01, rtol=0)
