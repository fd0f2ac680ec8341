"""Pseudo-labelled images: our own file, and the published one of Carmon et al., a pickle that must not run."""

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as s

from shaketable.core.errors import DataError, InputError, ShaketableError, StorageError, UnsafeFileError
from shaketable.data import open_dataset, open_parts, parts_of, read_pseudolabelled, write_pseudolabelled
from shaketable.data.cifar import CIFAR10

CLASSES = ("ankle boot", "été", "日本")


def _write(path: Path, **changes: Any) -> str:
    values: dict[str, Any] = {
        "x": torch.arange(5 * 12, dtype=torch.uint8).view(5, 1, 4, 3).repeat(1, 3, 2, 2),
        "labels": torch.tensor([0, 2, 1, 0, 2]),
        "confidence": torch.tensor([0.5, 1.0, 0.0, 0.125, 0.75]),
        "classes": CLASSES,
        "source": "pictures, labelled by a net",
    } | changes
    return write_pseudolabelled(path, values.pop("x"), values.pop("labels"), **values)


@pytest.mark.parametrize("kind", ["uint8", "float32", "float64", "grey"])
def test_what_was_written_is_read(write, tmp_path: Path, kind):
    x = torch.from_numpy(write.images(5, 1 if kind == "grey" else 3, 8, 6))
    x = x if kind in ("uint8", "grey") else x.to(getattr(torch, kind)) / 255
    before = x.clone()
    _write(tmp_path / "folder" / "p.npz", x=x)
    data = open_dataset(tmp_path / "folder" / "p.npz")
    assert torch.equal(x, before)
    assert data.labels.tolist() == [0, 2, 1, 0, 2]
    assert data.classes == CLASSES
    expected = x.to(torch.float32) / (1 if x.is_floating_point() else 255)
    assert torch.equal(data.batch(range(5)).x, expected)
    assert data.pixels.read(torch.arange(5)).dtype == (torch.float32 if x.is_floating_point() else torch.uint8)
    assert parts_of(tmp_path / "folder" / "p.npz") == ()
    found = read_pseudolabelled(tmp_path / "folder" / "p.npz")
    assert found.data.fingerprint == data.fingerprint
    assert found.confidence.tolist() == [0.5, 1.0, 0.0, 0.125, 0.75]
    assert found.source == "pictures, labelled by a net"


def test_the_hash_is_the_files_and_the_same_values_give_the_same_bytes(tmp_path: Path):
    first, again = _write(tmp_path / "a.npz"), _write(tmp_path / "b.npz")
    other = _write(tmp_path / "c.npz", confidence=torch.full((5,), 0.5))
    assert first == again == hashlib.sha256((tmp_path / "a.npz").read_bytes()).hexdigest()
    assert first != other


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    _write(tmp_path / "p.npz")
    before = (tmp_path / "p.npz").read_bytes()
    with pytest.raises(InputError):
        _write(tmp_path / "p.npz", confidence=torch.ones(4))
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError):
        _write(tmp_path / "file" / "p.npz")
    assert (tmp_path / "p.npz").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "p.npz"]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "too few confidences": ({"confidence": torch.ones(4)}, r"\(4,\)"),
    "a confidence above 1": ({"confidence": torch.full((5,), 1.5)}, "1.5"),
    "a confidence that is NaN": ({"confidence": torch.full((5,), torch.nan)}, "nan"),
    "whole confidences": ({"confidence": torch.ones(5, dtype=torch.int64)}, "int64"),
    "too few labels": ({"labels": torch.zeros(4, dtype=torch.int64)}, "4 labels for 5 images"),
    "a label without a name": ({"labels": torch.tensor([0, 1, 2, 3, 0])}, "labels from 0 to 3"),
    "floating labels": ({"labels": torch.zeros(5)}, "float32"),
    "no classes": ({"classes": ()}, "names"),
    "one text for classes": ({"classes": "abc"}, "sequence of names"),
    "an empty name": ({"classes": ("a", "", "c")}, "names"),
    "a name that numpy would cut": ({"classes": ("a", "b\0", "c")}, "NUL"),
    "images in 0..255 as floats": ({"x": torch.full((5, 3, 8, 8), 200.0)}, "Divide by 255"),
    "NaN images": ({"x": torch.full((5, 3, 8, 8), torch.nan)}, "NaN"),
    "images of two channels": ({"x": torch.zeros(5, 2, 8, 8)}, "shape"),
    "no images": ({"x": torch.zeros(0, 3, 8, 8), "labels": torch.zeros(0, dtype=torch.int64)}, "at least one image"),
    "a source that is no text": ({"source": 3}, "source"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, case):
    changes, word = BAD[case]
    with pytest.raises(ShaketableError, match=word):
        _write(tmp_path / "p.npz", **changes)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"\.npz"):
        _write(tmp_path / "p.npy")


def test_files_of_other_arrays_are_refused(tmp_path: Path):
    arrays = {"images": np.full((2, 4, 4), 9, np.uint8), "labels": np.array([0, 1]), "classes": np.array(["a", "b"])}
    for more, word in [
        ({}, "'confidence'"),
        ({"confidence": np.ones(2)}, "'source'"),
        ({"confidence": np.ones(3), "source": np.array("x")}, r"\(3,\)"),
        ({"confidence": np.ones(2), "source": np.array([1, 2])}, "one text"),
        ({"confidence": np.ones(2), "source": np.array("x"), "classes": np.array([1, 2])}, "texts"),
    ]:
        np.savez(tmp_path / "x.npz", **(arrays | more))
        with pytest.raises(DataError, match=word):
            read_pseudolabelled(tmp_path / "x.npz")


def _pickled(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.fixture
def published(write) -> dict[str, Any]:
    """A small dict as the published file has it."""
    return {"data": write.images(12, 32, 32, 3), "extrapolated_targets": np.arange(12) % 10}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("suffix", [".pickle", ".pkl"])
@pytest.mark.parametrize("targets", ["int64", "int32", ">i8", ">i2", "uint8", "list"])
def test_the_published_file_is_read(tmp_path: Path, published, protocol, suffix, targets):
    y = published["extrapolated_targets"]
    content = published | {"extrapolated_targets": y.tolist() if targets == "list" else y.astype(targets)}
    path = _pickled(tmp_path / f"ti_500K_pseudo_labeled{suffix}", content, protocol)
    data = open_dataset(path)
    assert parts_of(path) == ("train",)
    assert data.name == f"ti_500K_pseudo_labeled{suffix} train"
    assert data.labels.tolist() == y.tolist()
    assert data.classes == CIFAR10
    assert data.pixels.read(torch.arange(12)).dtype == torch.uint8
    expected = published["data"].transpose(0, 3, 1, 2) / np.float32(255)
    np.testing.assert_array_equal(data.batch(range(12)).x.numpy(), expected)
    pair = open_parts(path)
    assert pair.test is None
    assert pair.train.fingerprint == open_dataset(path, split="all").fingerprint == data.fingerprint
    with pytest.raises(DataError, match="only train"):
        open_dataset(path, split="test")


def test_it_holds_what_cifars_own_batches_of_the_same_images_do(write, tmp_path: Path):
    folder = write.cifar10_python(tmp_path / "cifar")
    batch = pickle.loads((folder / "test_batch").read_bytes())
    images = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    path = _pickled(tmp_path / "x.pickle", {"data": images, "extrapolated_targets": np.array(batch[b"labels"])})
    assert open_dataset(path).fingerprint == open_dataset(folder, split="test").fingerprint


class Canary:
    """Pickles itself as a call."""

    def __init__(self, call: object, *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call, self.arguments  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("where", ["data", "extrapolated_targets", "extra", "everything"])
def test_a_hostile_file_runs_nothing(tmp_path: Path, published, protocol, where):
    canary = tmp_path / "canary"
    hostile = Canary(os.system, f"touch {canary}")
    content = hostile if where == "everything" else published | {where: hostile}
    path = _pickled(tmp_path / "ti.pickle", content, protocol)
    pickle.loads(path.read_bytes())
    assert canary.exists(), "the pickle is no threat, so the test shows nothing"
    canary.unlink()
    with pytest.raises(UnsafeFileError, match="system"):
        open_dataset(path)
    assert not canary.exists()


BAD_PICKLES: dict[str, tuple[dict[str, Any], str]] = {
    "no images": ({"data": None}, "NoneType"),
    "flat images": ({"data": np.zeros((12, 3072), np.uint8)}, r"\(12, 3072\)"),
    "channels first": ({"data": np.zeros((12, 3, 32, 32), np.uint8)}, r"\(12, 3, 32, 32\)"),
    "floating images": ({"data": np.zeros((12, 32, 32, 3))}, "uint8"),
    "whole images": ({"data": np.zeros((12, 32, 32, 3), np.int16)}, "int16"),
    "too few labels": ({"extrapolated_targets": np.arange(11) % 10}, "11 labels for 12 images"),
    "floating labels": ({"extrapolated_targets": np.zeros(12)}, "whole numbers"),
    "text labels": ({"extrapolated_targets": ["cat"] * 12}, "numbers"),
    "labels out of range": ({"extrapolated_targets": np.arange(12)}, "labels from 0 to 11"),
    "negative labels": ({"extrapolated_targets": np.arange(12) - 1}, "labels from -1"),
}


@pytest.mark.parametrize("case", BAD_PICKLES)
def test_other_contents_are_refused(tmp_path: Path, published, case):
    changes, word = BAD_PICKLES[case]
    with pytest.raises(DataError, match=word):
        open_dataset(_pickled(tmp_path / "ti.pickle", published | changes))


@pytest.mark.parametrize("key", ["data", "extrapolated_targets"])
def test_a_missing_key_is_named(tmp_path: Path, published, key):
    del published[key]
    with pytest.raises(DataError, match=f"the key '{key}'"):
        open_dataset(_pickled(tmp_path / "ti.pickle", published))


def test_damaged_and_absurd_files_are_refused(tmp_path: Path, published, monkeypatch: pytest.MonkeyPatch):
    path = _pickled(tmp_path / "ti.pickle", published)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"ti\.pickle"):
        open_dataset(path)
    path.write_bytes(b"\x80\x04}\x8c\x04data\x8e" + (1 << 50).to_bytes(8, "little") + b"xyz")  # claims a petabyte
    with pytest.raises(DataError, match=r"ti\.pickle"):
        open_dataset(path)
    path.write_bytes(content)
    monkeypatch.setattr("shaketable.data.unpickle.MAX_FILE_BYTES", len(content) - 1)
    with pytest.raises(UnsafeFileError, match=f"{len(content)} bytes"):
        open_dataset(path)


@settings(max_examples=150, deadline=None)
@given(s.data())
def test_flipped_bytes_give_a_data_set_or_a_typed_error(tmp_path_factory, data):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    content = bytearray(pickle.dumps({"data": images, "extrapolated_targets": np.array([3, 4])}, 4))
    ends = [*range(200), *range(len(content) - 300, len(content))]  # all but the pixels
    for _ in range(data.draw(s.integers(1, 3))):
        content[data.draw(s.sampled_from(ends))] = data.draw(s.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.pickle"
    path.write_bytes(content)
    try:
        found = open_dataset(path)
    except ShaketableError:
        return
    assert len(found) == 2


MEMORY = """
import resource, sys
import numpy
from shaketable.data import open_dataset
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = open_dataset(sys.argv[1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (len(data) * 3072))
"""


def test_a_large_file_is_in_memory_twice_at_most(write, tmp_path: Path):
    """As uint8; as float32 it would be there four times, and once more for each careless copy."""
    images = write.images(10_000, 32, 32, 3)
    path = _pickled(tmp_path / "ti.pickle", {"data": images, "extrapolated_targets": np.arange(10_000) % 10})
    made = subprocess.run([sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, check=True)
    assert float(made.stdout) < 2.6
