"""SVHN's MATLAB files."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from shaketable.core.errors import DataError
from shaketable.data import open_dataset, parts_of


def _save(path: Path, write, *, labels: tuple[int, ...] = (10, 1, 9), **changed: object) -> Path:
    images = write.images(len(labels), 3, 32, 32)
    variables = {"X": images.transpose(2, 3, 1, 0), "y": np.array(labels, np.uint8)[:, None]} | changed
    savemat(path, {key: value for key, value in variables.items() if value is not None}, do_compression=True)
    return path


def test_images_are_turned_and_label_10_is_digit_0(write, tmp_path: Path):
    _save(tmp_path / "train_32x32.mat", write)
    _save(tmp_path / "test_32x32.mat", write, labels=(2, 10))
    assert parts_of(tmp_path) == ("train", "test")
    train = open_dataset(tmp_path, split="train")
    assert train.labels.tolist() == [0, 1, 9]
    assert train.classes == tuple("0123456789")
    np.testing.assert_array_equal(train.batch([0, 1, 2]).x.numpy(), write.images(3, 3, 32, 32) / np.float32(255))
    assert open_dataset(tmp_path).labels.tolist() == [2, 0]
    assert len(open_dataset(tmp_path, split="all")) == 5


def test_a_single_file_has_no_parts(write, tmp_path: Path):
    path = _save(tmp_path / "extra_32x32.mat", write)
    assert parts_of(path) == ()
    assert open_dataset(path, size=16).pixels.shape == (3, 16, 16)


def test_labels_as_doubles_are_read(write, tmp_path: Path):
    path = _save(tmp_path / "x.mat", write, y=np.array([[10.0], [1.0], [3.0]]))
    assert open_dataset(path).labels.tolist() == [0, 1, 3]


BAD = {
    "no X": ({"X": None}, "variables"),
    "no y": ({"y": None}, "variables"),
    "float images": ({"X": np.zeros((32, 32, 3, 3))}, "double"),
    "three axes": ({"X": np.zeros((32, 32, 3), np.uint8)}, "shape"),
    "label 11": ({"y": np.array([[11], [1], [2]], np.uint8)}, "11"),
    "half a label": ({"y": np.array([[0.5], [1], [2]])}, "whole numbers"),
    "fewer labels": ({"y": np.array([[1], [2]], np.uint8)}, "2 labels for 3 images"),
    "a cell": ({"y": np.array([[1], ["a"], ["b"]], dtype=object)}, "cell"),
}


@pytest.mark.parametrize("case", BAD)
def test_other_variables_are_refused(write, tmp_path: Path, case):
    changed, word = BAD[case]
    path = _save(tmp_path / "x.mat", write, **changed)
    with pytest.raises(DataError, match=word):
        open_dataset(path)


@pytest.mark.parametrize("case", ["cut", "html", "empty", "v7.3"])
def test_damaged_files_are_named(write, tmp_path: Path, case):
    path = _save(tmp_path / "x.mat", write)
    content = path.read_bytes()
    version_7_3 = bytearray(content[:128])
    version_7_3[124:126] = b"\x00\x02"
    new = {"cut": content[:3000], "html": b"<html>" * 100, "empty": b"", "v7.3": bytes(version_7_3) + b"\x89HDF" * 100}
    path.write_bytes(new[case])
    with pytest.raises(DataError, match=r"x\.mat") as caught:
        open_dataset(path)
    if case == "v7.3":
        assert "7.3" in caught.value.found
