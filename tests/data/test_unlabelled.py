"""open_unlabelled: sources that tell no classes; all others as open_dataset opens them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shaketable.core.errors import DataError, InputError
from shaketable.data import UNLABELLED, open_dataset, open_unlabelled


def test_an_npz_without_labels(write, tmp_path: Path):
    images = write.images(6, 3, 8, 8)
    np.savez(tmp_path / "x.npz", images=images)
    data = open_unlabelled(tmp_path / "x.npz")
    np.testing.assert_array_equal(data.batch(range(6)).x.numpy(), images / np.float32(255))
    assert (data.classes, data.labels.tolist(), data.name) == (UNLABELLED, [0] * 6, "x.npz")
    assert open_unlabelled(tmp_path / "x.npz", size=4, channels=1).name == "x.npz 4 px, 1 channel"
    with pytest.raises(DataError, match="'labels'"):
        open_dataset(tmp_path / "x.npz")
    with pytest.raises(DataError, match="not divided into parts"):
        open_unlabelled(tmp_path / "x.npz", split="train")


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_images_in_no_folder(write, tmp_path: Path, kind):
    files = write.image_files(["b.png", "a.png", "c.jpg"])
    source = write.folder(tmp_path / "x", files) if kind == "folder" else write.zip(tmp_path / "x.zip", files)
    data = open_unlabelled(source)
    assert (data.classes, len(data)) == (UNLABELLED, 3)
    expected = torch.from_numpy(write.images(8, 8, 3, seed=1)).permute(2, 0, 1) / np.float32(255)
    assert torch.equal(data.batch([0]).x[0], expected)  # a.png, which is written second
    assert open_unlabelled(source, size=4).size == (4, 4)
    with pytest.raises(DataError, match="no class folder"):
        open_dataset(source)


def test_every_other_source_is_opened_as_ever(write, tmp_path: Path):
    np.savez(tmp_path / "x.npz", images=write.images(4, 8, 8), labels=np.arange(4))
    folder = write.folder(tmp_path / "classes", write.image_files(["a/0.png", "b/1.png"]))
    flat = write.folder(tmp_path / "flat", write.image_files([f"{k:05d}_n0000000{k}_thing.png" for k in range(3)]))
    for source in (tmp_path / "x.npz", folder, flat, write.cifar10_python(tmp_path / "py"), "fashion-mnist"):
        for size in (None, 12):
            ours, theirs = open_unlabelled(source, size=size), open_dataset(source, split="all", size=size)
            assert (ours.name, ours.fingerprint) == (theirs.name, theirs.fingerprint)
    assert open_unlabelled(tmp_path / "py", split="test").name == "py test"


def test_what_cannot_be_opened_is_refused(write, tmp_path: Path):
    mixed = write.folder(tmp_path / "mixed", write.image_files(["a/0.png", "1.png"]))
    (tmp_path / "none").mkdir()
    (tmp_path / "bad.npz").write_bytes(b"<html>")
    np.savez(tmp_path / "empty.npz", images=write.images(4, 8, 8)[:0])
    np.savez(tmp_path / "scalar.npz", images=np.array(3))
    np.savez(tmp_path / "other.npz", pictures=write.images(4, 8, 8))
    for source in (mixed, *(tmp_path / name for name in ("none", "bad.npz", "empty.npz", "scalar.npz", "other.npz"))):
        with pytest.raises(DataError, match=source.name):
            open_unlabelled(source)
    with pytest.raises(DataError, match="does not exist"):
        open_unlabelled(tmp_path / "nowhere")
    with pytest.raises(InputError, match="data"):
        open_unlabelled("")
