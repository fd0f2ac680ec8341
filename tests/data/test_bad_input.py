"""The table of bad data sets: each gives one typed error that names the file or argument, and ends in what to do.

The loaders' own files have longer tables; here everything goes through `open_dataset`, as from the command line. At the
end, files of every format are damaged at random: only typed errors may come out.
"""

import gzip
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as s

from shaketable.core.errors import DataError, ShaketableError, UnsafeFileError
from shaketable.data import open_dataset


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def _truncated_idx(write: Any, root: Path) -> Path:
    path = write.idx_folder(root) / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    return root


def _wrong_magic(write: Any, root: Path) -> Path:
    write.idx(write.idx_folder(root) / "t10k-images-idx3-ubyte.gz", write.images(10, 6, 5), magic=0x0D03)
    return root


def _absurd_idx(write: Any, root: Path) -> Path:
    path = write.idx_folder(root) / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">4I", 0x0803, 2**31, 2**31, 2**31)))
    return root


def _hostile_cifar(write: Any, root: Path) -> Path:
    write.cifar10_python(root)
    content = {b"data": np.zeros((1, 3072), np.uint8), b"labels": [Hostile(root / "canary")]}
    (root / "test_batch").write_bytes(pickle.dumps(content, 2))
    return root


def _npz(**arrays: Any) -> Callable[[Any, Path], Path]:
    def make(write: Any, root: Path) -> Path:
        root.mkdir()
        np.savez(root / "set.npz", **({"images": write.images(4, 8, 8), "labels": np.arange(4)} | arrays))
        return root / "set.npz"

    return make


def _bomb(write: Any, root: Path) -> Path:
    content = bytearray(write.encoded(write.images(8, 8, 3), "bmp"))
    content[18:26] = (40_000).to_bytes(4, "little") * 2
    return write.folder(root, write.image_files(["a/0.png"]) | {"b/bomb.bmp": bytes(content)})


def _slip(write: Any, root: Path) -> Path:
    root.mkdir()
    return write.zip(root / "set.zip", write.image_files(["a/0.png", "b/1.png"]) | {"../../evil.png": b"x"})


def _empty(write: Any, root: Path) -> Path:
    root.mkdir()
    return root


def _cut_jpeg(write: Any, root: Path) -> Path:
    files = write.image_files(["a/0.jpg", "b/broken.jpg"], shape=(64, 64, 3))
    return write.folder(root, files | {"b/broken.jpg": files["b/broken.jpg"][:900]})


TABLE: dict[str, tuple[Callable[[Any, Path], Path], type[ShaketableError], str]] = {
    "truncated gzip idx": (_truncated_idx, DataError, "t10k-images-idx3-ubyte.gz"),
    "idx of another type": (_wrong_magic, DataError, "t10k-images-idx3-ubyte.gz"),
    "idx with an absurd header": (_absurd_idx, DataError, "t10k-images-idx3-ubyte.gz"),
    "CIFAR batch that runs a command": (_hostile_cifar, UnsafeFileError, "test_batch"),
    "npz with object arrays": (_npz(images=np.array([[1], "a"], dtype=object)), DataError, "set.npz, images"),
    "npz with NaN": (_npz(images=np.full((4, 8, 8), np.nan, np.float32)), DataError, "images"),
    "npz with floats in 0..255": (_npz(images=np.full((4, 8, 8), 255.0)), DataError, "images"),
    "npz with normalised pixels": (_npz(images=np.linspace(-2, 2, 256).reshape(4, 8, 8)), DataError, "images"),
    "npz with labels out of range": (_npz(labels=np.array([0, 1, 2, -1])), DataError, "labels of set.npz"),
    "npz with labels beyond its names": (_npz(classes=np.array(["a", "b"])), DataError, "labels of set.npz"),
    "npz with too few labels": (_npz(labels=np.arange(3)), DataError, "labels of set.npz"),
    "npz without images": (_npz(images=np.zeros((0, 8, 8), np.uint8), labels=np.arange(0)), DataError, "set.npz"),
    "folder with a broken JPEG": (_cut_jpeg, DataError, "b/broken.jpg"),
    "folder with a decompression bomb": (_bomb, UnsafeFileError, "b/bomb.bmp"),
    "zip with ../ names": (_slip, UnsafeFileError, "set.zip"),
    "empty folder": (_empty, DataError, "set"),
    "no such path": (lambda write, root: root / "none", DataError, "data"),
}


@pytest.mark.parametrize("case", TABLE)
def test_each_gives_its_error(write, tmp_path: Path, case):
    make, error, named = TABLE[case]
    source = make(write, tmp_path / "set")
    with pytest.raises(error) as caught:
        list(open_dataset(source).batches(4))
    assert named in caught.value.argument
    for part in (caught.value.expected, caught.value.found, caught.value.remedy):
        assert part.strip()
    assert caught.value.remedy.endswith(".")
    assert not list(tmp_path.rglob("canary"))
    assert not (tmp_path / "evil.png").exists()


def test_the_hostile_batch_is_hostile(write, tmp_path: Path):
    root = _hostile_cifar(write, tmp_path / "set")
    pickle.loads((root / "test_batch").read_bytes())
    assert (root / "canary").exists()


def _svhn(write: Any, root: Path) -> Path:
    from scipy.io import savemat

    root.mkdir()
    variables = {"X": write.images(8, 8, 3, 4), "y": np.array([[10], [1], [2], [3]], np.uint8)}
    savemat(root / "set.mat", variables, do_compression=True)
    return root / "set.mat"


def _zip(write: Any, root: Path) -> Path:
    root.mkdir()
    return write.zip(root / "set.zip", write.image_files(["a/0.png", "b/1.jpg", "b/2.bmp", "b/3.webp"]))


def _folder(write: Any, root: Path) -> Path:
    return write.folder(root, write.image_files(["a/0.png", "b/1.jpg", "b/2.bmp", "b/3.webp"]))


FORMATS: dict[str, Callable[[Any, Path], Path]] = {
    "idx": lambda write, root: write.idx_folder(root, end=""),
    "idx.gz": lambda write, root: write.idx_folder(root),
    "cifar-binary": lambda write, root: write.cifar10_binary(root, count=1),
    "cifar-python": lambda write, root: write.cifar10_python(root, count=1),
    "svhn": _svhn,
    "npz": _npz(),
    "image-zip": _zip,
    "image-folder": _folder,
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # what SciPy says of a damaged file
@pytest.mark.parametrize("kind", FORMATS)
def test_random_damage_gives_typed_errors_only(write, tmp_path: Path, monkeypatch, kind):
    monkeypatch.setattr("shaketable.data.decoding.MAX_PIXELS", 1 << 20)
    source = FORMATS[kind](write, tmp_path / "set")
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    whole = {path: path.read_bytes() for path in files}

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(s.data())
    def damage(data: s.DataObject) -> None:
        path = data.draw(s.sampled_from(files))
        content = bytearray(whole[path])
        near = s.integers(0, min(len(content), 400) - 1)
        for _ in range(data.draw(s.integers(1, 3))):
            place = data.draw(s.one_of(near, s.integers(0, len(content) - 1)))
            content[place] = data.draw(s.integers(0, 255))
        if data.draw(s.booleans()):
            del content[data.draw(s.integers(0, len(content))) :]
        path.write_bytes(content)
        try:
            dataset = open_dataset(source, split="all")
            for batch in dataset.batches(4):
                assert torch.isfinite(batch.x).all()
                assert 0 <= batch.x.min() <= batch.x.max() <= 1
        except (DataError, UnsafeFileError):
            pass
        finally:
            path.write_bytes(whole[path])

    damage()
