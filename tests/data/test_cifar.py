"""CIFAR-10 and CIFAR-100, binary and python."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from shaketable.core.errors import DataError, UnsafeFileError
from shaketable.data import open_dataset, parts_of
from shaketable.data.cifar import CIFAR10


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar10_binary(write, tmp_path: Path, inner):
    write.cifar10_binary(tmp_path / "root" / inner)
    assert parts_of(tmp_path / "root") == ("train", "test")
    train, test = (open_dataset(tmp_path / "root", split=split) for split in ("train", "test"))
    assert train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    assert test.labels.tolist() == [5] * 3
    expected = write.images(3, 3072, seed=5).reshape(3, 3, 32, 32) / np.float32(255)
    np.testing.assert_array_equal(test.batch([0, 1, 2]).x.numpy(), expected)
    assert train.classes == CIFAR10


@pytest.mark.parametrize(("keys", "protocol"), [(bytes, 2), (str, 2), (bytes, 4), (str, 5)])
@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_cifar10_python_holds_what_the_binary_version_does(write, tmp_path: Path, keys, protocol, inner):
    write.cifar10_python(tmp_path / "py" / inner, keys=keys, protocol=protocol)
    write.cifar10_binary(tmp_path / "bin")
    for split in ("train", "test", "all"):
        ours, other = (open_dataset(tmp_path / kind, split=split) for kind in ("py", "bin"))
        assert ours.fingerprint == other.fingerprint


def test_cifar100_uses_the_fine_labels(write, tmp_path: Path):
    images, fine, coarse = write.images(4, 3072), [99, 0, 41, 7], [19, 0, 3, 2]
    names = [f"thing {i}" for i in range(100)]
    for folder in ("bin", "py"):
        (tmp_path / folder).mkdir()
    records = np.concatenate([np.array([coarse, fine], np.uint8).T, images], 1)
    for part in ("train", "test"):
        (tmp_path / "bin" / f"{part}.bin").write_bytes(records.tobytes())
        batch = {b"fine_labels": fine, b"coarse_labels": coarse, b"data": images}
        (tmp_path / "py" / part).write_bytes(pickle.dumps(batch, 2))
    (tmp_path / "bin" / "fine_label_names.txt").write_text("\n".join(names) + "\n")
    (tmp_path / "py" / "meta").write_bytes(pickle.dumps({b"fine_label_names": [n.encode() for n in names]}, 2))
    sets = [open_dataset(tmp_path / folder) for folder in ("bin", "py")]
    for data in sets:
        assert data.labels.tolist() == fine
        assert data.classes == tuple(names)
    assert sets[0].fingerprint == sets[1].fingerprint
    assert torch.equal(sets[0].batch([2]).x, sets[1].batch([2]).x)


def _binary(folder: Path) -> Path:
    return folder / "data_batch_3.bin"


BAD_BINARY = {
    "cut off": (lambda f: _binary(f).write_bytes(_binary(f).read_bytes()[:-1]), "3073"),
    "empty": (lambda f: _binary(f).write_bytes(b""), "0 bytes"),
    "missing": (lambda f: _binary(f).unlink(), "No such file"),
    "label out of range": (lambda f: _binary(f).write_bytes(b"\x0a" + _binary(f).read_bytes()[1:]), "the label 10"),
}


@pytest.mark.parametrize("case", BAD_BINARY)
def test_bad_binary_batches_are_named(write, tmp_path: Path, case):
    spoil, word = BAD_BINARY[case]
    spoil(write.cifar10_binary(tmp_path / "root"))
    with pytest.raises(DataError, match=word) as caught:
        open_dataset(tmp_path / "root", split="train")
    assert "data_batch_3.bin" in caught.value.argument


def test_class_names_that_are_not_as_many_are_refused(write, tmp_path: Path):
    folder = write.cifar10_binary(tmp_path / "bin")
    (folder / "batches.meta.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="2 names"):
        open_dataset(folder)
    folder = write.cifar10_python(tmp_path / "py")
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a"]}))
    with pytest.raises(DataError, match="1 names"):
        open_dataset(folder)


GOOD = {b"labels": [0, 1], b"data": np.zeros((2, 3072), np.uint8)}
BAD_PYTHON = {
    "no data": ({b"labels": [0, 1]}, "'data'"),
    "wrong width": (GOOD | {b"data": np.zeros((2, 3071), np.uint8)}, "3071"),
    "float data": (GOOD | {b"data": np.zeros((2, 3072))}, "uint8"),
    "no labels": ({b"data": GOOD[b"data"]}, "labels"),
    "too few labels": (GOOD | {b"labels": [1]}, "1 labels for 2 images"),
    "label out of range": (GOOD | {b"labels": [0, 10]}, "labels from 0 to 10"),
    "negative label": (GOOD | {b"labels": [0, -1]}, "labels from -1"),
    "text labels": (GOOD | {b"labels": [b"cat", b"dog"]}, "numbers"),
}


@pytest.mark.parametrize("case", BAD_PYTHON)
def test_bad_python_batches_are_refused(write, tmp_path: Path, case):
    batch, word = BAD_PYTHON[case]
    folder = write.cifar10_python(tmp_path / "root")
    (folder / "test_batch").write_bytes(pickle.dumps(batch, 2))
    with pytest.raises(DataError, match=word):
        open_dataset(folder)


class _Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_a_hostile_batch_is_refused_and_not_run(write, tmp_path: Path, name):
    canary = tmp_path / "canary"
    folder = write.cifar10_python(tmp_path / "root")
    (folder / name).write_bytes(pickle.dumps(GOOD | {b"extra": _Hostile(canary)}, 2))
    with pytest.raises(UnsafeFileError, match=name):
        open_dataset(folder)
    assert not canary.exists()
