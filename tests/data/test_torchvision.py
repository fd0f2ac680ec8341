"""torchvision's data sets: objects that look like them always, the library itself where it can be imported."""

import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, Subset, TensorDataset

from shaketable.core.errors import DataError, UnsafeFileError
from shaketable.data import Fit, Split, from_arrays, from_torchvision, open_dataset, parts_of
from shaketable.data.pixels import Decoded


def _usable() -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("torchvision")
    except Exception:  # built for another torch, it fails with RuntimeError
        return False
    return True


USABLE = _usable()
real = pytest.mark.skipif(not USABLE, reason="needs torchvision, in a release that fits this torch")


class Like:
    """An object with the attributes of one of torchvision's data sets."""

    def __init__(self, **attributes: object) -> None:
        self.__dict__.update({"transform": None, "target_transform": None, "transforms": None} | attributes)


class Items:
    """A map-style data set of pairs."""

    def __init__(self, items: list[object], classes: object = None) -> None:
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


class Stream(IterableDataset[object]):
    """A data set without a length."""

    def __iter__(self) -> Iterator[object]:
        return iter(())


def default_loader(path: str) -> object:
    raise AssertionError("the adapter decodes by itself")


def test_cifar_mnist_and_svhn_give_their_arrays(write):
    images, labels = write.images(4, 3, 8, 8), [0, 1, 2, 1]
    names = ["a", "b", "c"]
    expected = from_arrays(images, labels, classes=names)
    cifar = Like(data=images.transpose(0, 2, 3, 1), targets=labels, classes=names)
    assert from_torchvision(cifar).fingerprint == expected.fingerprint
    svhn = Like(data=images, labels=np.array(labels))
    assert from_torchvision(svhn).classes == ("0", "1", "2")
    assert torch.equal(from_torchvision(svhn).batch([3]).x, expected.batch([3]).x)
    mnist = Like(data=torch.from_numpy(images[:, 0]), targets=torch.tensor(labels), classes=names)
    found = from_torchvision(mnist, name="mnist", fit=Fit(channels=3, size=4))
    assert (found.pixels.shape, found.name, found.classes) == ((3, 4, 4), "mnist", ("a", "b", "c"))
    subset = from_torchvision(Subset(cifar, [2, 0]))  # pyright: ignore[reportArgumentType]
    assert subset.fingerprint == expected.take([2, 0]).fingerprint


def test_an_image_folder_is_read_from_its_files(write, tmp_path: Path):
    root = write.folder(tmp_path, write.image_files(["a/0.png", "b/1.png"]))
    samples = [(str(root / "a/0.png"), 0), (str(root / "b/1.png"), 1)]
    folder = Like(root=str(root), samples=samples, targets=[0, 1], classes=["a", "b"], loader=default_loader)
    data = from_torchvision(folder)
    assert isinstance(data.pixels, Decoded)
    assert data.fingerprint == open_dataset(root).fingerprint
    imagenet = Like(root=str(root), samples=samples, classes=[("a", "A"), ("b",)], loader=default_loader)
    assert from_torchvision(imagenet).classes == ("a, A", "b")


def test_anything_else_is_read_item_by_item(write):
    images, labels = write.images(4, 8, 8, 3), [0, 1, 2, 1]
    expected = from_arrays(images, labels, classes=["a", "b", "c"])
    pictures = Items(
        [(Image.fromarray(image), label) for image, label in zip(images, labels, strict=True)], ["a", "b", "c"]
    )
    assert from_torchvision(pictures).fingerprint == expected.fingerprint
    arrays = Items([[image, np.int64(label)] for image, label in zip(images, labels, strict=True)], ["a", "b", "c"])
    assert from_torchvision(arrays).fingerprint == expected.fingerprint
    tensors = TensorDataset(expected.batch(range(4)).x, expected.labels)
    assert torch.equal(from_torchvision(tensors).batch([1]).x, expected.batch([1]).x)
    mixed = Items([(Image.fromarray(images[0]), 0), (Image.new("L", (20, 12), 7), 1)])
    assert from_torchvision(mixed, fit=Fit(size=8, channels=3)).batch([1]).x.shape == (1, 3, 8, 8)


GOOD = (np.full((8, 8), 9, np.uint8), 0)
BAD = {
    "a transform": (Like(data=GOOD[0][None], targets=[0], transform=abs), "Make it without"),
    "a target transform": (Like(data=GOOD[0][None], targets=[0], target_transform=abs), "Make it without"),
    "no length": (Stream(), "length"),
    "nothing": (Items([]), "at least one"),
    "no pair": (Items([GOOD, GOOD[0]]), "pair"),
    "two sizes": (Items([GOOD, (np.full((9, 8), 9, np.uint8), 0)]), "one shape"),
    "a text label": (Items([(GOOD[0], "cat")]), "whole number"),
    "half a label": (Items([(GOOD[0], 0.5)]), "whole number"),
    "a boxes label": (Items([(GOOD[0], torch.zeros(2))]), "whole number"),
    "negative label": (Items([(GOOD[0], -1)]), "labels from -1"),
    "an image of objects": (Items([(np.array([[None]]), 0)]), "object"),
    "normalised": (Items([(torch.full((1, 8, 8), -0.5), 0)]), "normalisation"),
    "floats in 0..255": (Items([(torch.full((1, 8, 8), 200.0), 0)]), "Divide by 255"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_objects_are_refused(case):
    dataset, word = BAD[case]
    with pytest.raises(DataError, match=word):
        from_torchvision(dataset)


def test_a_range_is_checked_before_it_is_resized():
    with pytest.raises(DataError, match="Divide by 255"):
        from_torchvision(BAD["floats in 0..255"][0], fit=Fit(size=4))


def test_a_picture_beyond_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr("shaketable.data.decoding.MAX_PIXELS", 100)
    with pytest.raises(UnsafeFileError, match="pixels"):
        from_torchvision(Items([(Image.new("L", (20, 12), 7), 1)]))


@pytest.mark.parametrize(
    "source", ["torchvision:", "torchvision:CIFAR10", "torchvision::/root", "torchvision:CIFAR10:"]
)
def test_half_an_address_is_refused(source):
    with pytest.raises(DataError, match="torchvision:CLASS:ROOT"):
        open_dataset(source)


@pytest.mark.skipif(USABLE, reason="torchvision can be imported here")
def test_a_missing_library_is_named_with_its_extra(tmp_path: Path):
    with pytest.raises(DataError, match=r"pip install 'shaketable\[torchvision\]'"):
        open_dataset(f"torchvision:CIFAR10:{tmp_path}")


@real
def test_the_library_reads_mnist(write, tmp_path: Path):
    write.idx_folder(tmp_path / "MNIST" / "raw", end="")
    source = f"torchvision:MNIST:{tmp_path}"
    assert parts_of(source) == ("train", "test")
    counts: dict[Split, int] = {"train": 20, "test": 10, "all": 30}
    for split, count in counts.items():
        theirs, ours = open_dataset(source, split=split), open_dataset(tmp_path, split=split)
        assert len(theirs) == count
        assert torch.equal(theirs.batch(range(count)).x, ours.batch(range(count)).x)
        assert torch.equal(theirs.labels, ours.labels)
    assert open_dataset(source, size=4).name == "MNIST test 4 px"


@real
def test_the_library_reads_an_image_folder(write, tmp_path: Path):
    write.folder(tmp_path, write.image_files(["a/0.png", "b/1.png"]))
    source = f"torchvision:ImageFolder:{tmp_path}"
    assert parts_of(source) == ()
    assert open_dataset(source).fingerprint == open_dataset(tmp_path).fingerprint


@real
@pytest.mark.parametrize("name", ["CIFAR10", "SVHN", "MNIST"])
def test_the_library_finds_nothing_and_nothing_is_downloaded(tmp_path: Path, name):
    with pytest.raises(DataError, match="Fetch it first"):
        open_dataset(f"torchvision:{name}:{tmp_path}", split="train")
    assert not list(tmp_path.rglob("*.*"))


@real
def test_the_library_has_no_such_class(tmp_path: Path):
    with pytest.raises(DataError, match="Did you mean 'CIFAR10"):
        open_dataset(f"torchvision:CIFAR11:{tmp_path}")
