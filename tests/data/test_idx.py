"""Folders of idx files."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from shaketable.core.errors import DataError
from shaketable.data import Split, open_dataset, parts_of
from shaketable.data.idx import FASHION_MNIST


@pytest.mark.parametrize("end", [".gz", ""])
@pytest.mark.parametrize("inner", ["", "raw", "MNIST/raw"])
def test_both_parts_are_read(write, tmp_path: Path, end, inner):
    write.idx_folder(tmp_path / inner, end=end)
    assert parts_of(tmp_path) == ("train", "test")
    counts: dict[Split, int] = {"train": 20, "test": 10}
    for split, count in counts.items():
        data = open_dataset(tmp_path, split=split)
        assert data.pixels.shape == (1, 6, 5)
        assert data.labels.tolist() == [i % 10 for i in range(count)]
        expected = write.images(count, 6, 5, seed=count)[:, None] / np.float32(255)
        np.testing.assert_array_equal(data.batch(range(count)).x.numpy(), expected)
        assert data.classes == tuple("0123456789")
    both = open_dataset(tmp_path, split="all")
    assert len(both) == 30
    assert torch.equal(both.batch([25]).x, open_dataset(tmp_path, split="test").batch([5]).x)


def test_the_other_spelling_and_a_lone_part(write, tmp_path: Path):
    write.idx(tmp_path / "t10k-images.idx3-ubyte", write.images(2, 4, 4))
    write.idx(tmp_path / "t10k-labels.idx1-ubyte", np.array([0, 7], np.uint8))
    assert parts_of(tmp_path) == ("test",)
    assert open_dataset(tmp_path).classes == tuple("01234567")
    with pytest.raises(DataError, match="only test"):
        open_dataset(tmp_path, split="train")


def test_the_whole_fashion_mnist(fashion):
    train, test = open_dataset(fashion, split="train"), open_dataset(fashion, split="test")
    assert train.counts == (6000,) * 10
    assert test.counts == (1000,) * 10
    assert train.classes == test.classes == FASHION_MNIST
    assert train.labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert abs(float(train.batch(range(2000)).x.mean()) - 0.2860) < 0.005


def _swap(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _without_end(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def _labels(folder: Path) -> Path:
    return folder / "train-labels-idx1-ubyte.gz"


def _images(folder: Path) -> Path:
    return folder / "train-images-idx3-ubyte.gz"


BAD = {
    "truncated gzip": (lambda f: _without_end(_images(f), 30), "train-images"),
    "wrong gzip checksum": (
        lambda f: _swap(_images(f), (c := _images(f).read_bytes())[:-8] + bytes([c[-8] ^ 1]) + c[-7:]),
        "train-images",
    ),
    "flipped bit in the stream": (
        lambda f: _swap(_images(f), (c := _images(f).read_bytes())[:300] + bytes([c[300] ^ 64]) + c[301:]),
        "train-images",
    ),
    "wrong magic": (
        lambda f: _swap(_images(f), gzip.compress(struct.pack(">4I", 0x0D03, 20, 6, 5) + b"\0" * 600)),
        "magic number 00000803",
    ),
    "labels for images": (lambda f: _swap(_images(f), _labels(f).read_bytes()), "magic number"),
    "too short": (
        lambda f: _swap(_images(f), gzip.compress(struct.pack(">4I", 0x0803, 20, 6, 5) + b"\0" * 599)),
        "599 bytes",
    ),
    "too long": (
        lambda f: _swap(_images(f), gzip.compress(struct.pack(">4I", 0x0803, 20, 6, 5) + b"\0" * 601)),
        "more",
    ),
    "absurd shape": (
        lambda f: _swap(_images(f), gzip.compress(struct.pack(">4I", 0x0803, 2**32 - 1, 2**32 - 1, 2**32 - 1))),
        "fits the file",
    ),
    "no images": (lambda f: _swap(_images(f), gzip.compress(struct.pack(">4I", 0x0803, 0, 6, 5))), "fits the file"),
    "empty file": (lambda f: _swap(_images(f), b""), "empty"),
    "HTML": (lambda f: _swap(_images(f), b"<html>404</html>"), "magic number"),
    "missing labels": (lambda f: _labels(f).unlink(), "train-labels"),
    "fewer labels": (
        lambda f: _swap(_labels(f), gzip.compress(struct.pack(">2I", 0x0801, 19) + b"\0" * 19)),
        "19 labels for 20 images",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_files_are_named(write, tmp_path: Path, case):
    spoil, word = BAD[case]
    spoil(write.idx_folder(tmp_path))
    with pytest.raises(DataError, match=word) as caught:
        open_dataset(tmp_path, split="train")
    assert str(tmp_path) in caught.value.argument
