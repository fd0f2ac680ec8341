"""NumPy archives."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from shaketable.core.errors import DataError, UnsafeFileError
from shaketable.data import npz, open_dataset, parts_of


def test_every_layout(write, tmp_path: Path):
    images, labels = write.images(4, 3, 8, 6), np.array([0, 1, 2, 1])
    expected = images / np.float32(255)
    for name, array in {"first": images, "last": images.transpose(0, 2, 3, 1)}.items():
        np.savez_compressed(tmp_path / f"{name}.npz", images=array, labels=labels)
        data = open_dataset(tmp_path / f"{name}.npz")
        np.testing.assert_array_equal(data.batch(range(4)).x.numpy(), expected)
        assert data.classes == ("0", "1", "2")
    np.savez(tmp_path / "grey.npz", images=images[:, 0], labels=labels, classes=np.array(["a", "b", "c", "d"]))
    grey = open_dataset(tmp_path / "grey.npz", channels=3, size=4)
    assert grey.pixels.shape == (3, 4, 4)
    assert grey.classes == ("a", "b", "c", "d")
    assert grey.name == "grey.npz 4 px, 3 channels"
    assert parts_of(tmp_path / "grey.npz") == ()


def test_real_mnist(extra):
    data = open_dataset(extra("mnist-10k.npz"))
    assert (len(data), data.pixels.shape, data.classes) == (10_000, (1, 28, 28), tuple("0123456789"))
    assert min(data.counts) > 800


IMAGES, LABELS = np.full((3, 5, 5), 9, np.uint8), np.arange(3)
BAD = {
    "no labels": ({"images": IMAGES}, "'labels'"),
    "no images": ({"x": IMAGES, "labels": LABELS}, r"\['labels', 'x'\]"),
    "object images": ({"images": np.array([IMAGES[0], "a", None], dtype=object), "labels": LABELS}, "pickle"),
    "object labels": ({"images": IMAGES, "labels": np.array([0, 1, None])}, "pickle"),
    "object classes": ({"images": IMAGES, "labels": LABELS, "classes": np.array(["a", None, 1])}, "pickle"),
    "byte classes": ({"images": IMAGES, "labels": LABELS, "classes": np.array([b"a", b"b", b"c"])}, "texts"),
    "too few classes": ({"images": IMAGES, "labels": LABELS, "classes": np.array(["a", "b"])}, "labels from 0 to 2"),
    "structured": ({"images": np.zeros(3, [("a", "u1")]), "labels": LABELS}, "numbers"),
    "floats in 0..255": ({"images": IMAGES.astype(np.float32), "labels": LABELS}, "Divide by 255"),
    "NaN": ({"images": np.full((3, 5, 5), np.nan), "labels": LABELS}, "NaN"),
    "labels out of range": ({"images": IMAGES, "labels": LABELS - 1}, "labels from -1"),
    "too few labels": ({"images": IMAGES, "labels": LABELS[:2]}, "2 labels for 3 images"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused(tmp_path: Path, case):
    arrays, word = BAD[case]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=word):
        open_dataset(tmp_path / "x.npz")


class _Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.system, (f"touch {self.path}",)


def _zip(path: Path, images: bytes) -> Path:
    labels = io.BytesIO()
    np.save(labels, LABELS)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", images)
        archive.writestr("labels.npy", labels.getvalue())
    return path


def test_a_hostile_pickle_is_not_run(tmp_path: Path):
    canary = tmp_path / "canary"
    array = io.BytesIO()
    np.save(array, np.array([_Hostile(canary)] * 3, dtype=object), allow_pickle=True)
    plain = tmp_path / "plain.npz"
    plain.write_bytes(pickle.dumps(_Hostile(canary)))
    for path in (_zip(tmp_path / "x.npz", array.getvalue()), plain, _zip(tmp_path / "y.npz", plain.read_bytes())):
        with pytest.raises(DataError):
            open_dataset(path)
    assert not canary.exists()


def _header(shape: tuple[int, ...], content: bytes = b"\0" * 75) -> bytes:
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return array.getvalue() + content


@pytest.mark.parametrize(
    ("shape", "error"),
    [
        ((10**6, 10**6, 10**6), UnsafeFileError),
        ((3, 5, 500), DataError),
        ((3, 5, 4), DataError),
        ((-3, 5, 5), DataError),
    ],
)
def test_a_header_that_claims_another_size_is_refused(tmp_path: Path, shape, error):
    with pytest.raises(error, match="bytes"):
        open_dataset(_zip(tmp_path / "x.npz", _header(shape)))


def test_a_large_array_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(npz, "MAX_BYTES", 74)
    with pytest.raises(UnsafeFileError, match="75 bytes"):
        open_dataset(_zip(tmp_path / "x.npz", _header((3, 5, 5))))


@pytest.mark.parametrize("case", ["cut", "html", "flipped"])
def test_damaged_files_are_named(write, tmp_path: Path, case):
    path = tmp_path / "x.npz"
    np.savez(path, images=write.images(3, 20, 20), labels=LABELS)
    content = bytearray(path.read_bytes())
    content[600] ^= 4
    path.write_bytes({"cut": content[:500], "html": b"<html></html>", "flipped": content}[case])
    with pytest.raises(DataError, match=r"x\.npz"):
        open_dataset(path)
