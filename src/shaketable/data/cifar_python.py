"""CIFAR-10 and CIFAR-100, python version (pickled batches), read without running what a pickle names."""

from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from ..core.errors import DataError
from .arrays import class_indices
from .cifar import CIFAR10, CIFAR100, PIXELS, Place, Version, content_of, find, need
from .dataset import Dataset
from .fit import Fit
from .layout import Part
from .pixels import Stored
from .unpickle import unpickled

_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_VERSIONS = (
    Version("cifar-10-batches-py", {"train": _BATCHES, "test": ("test_batch",)}, CIFAR10, "batches.meta", "labels"),
    Version("cifar-100-python", {"train": ("train",), "test": ("test",)}, CIFAR100, "meta", "fine_labels"),
)


def recognises(source: str) -> bool:
    """Whether a folder, or the one that the archive unpacks to below it, holds CIFAR's pickled batches."""
    return find(source, _VERSIONS) is not None


def parts(source: str) -> tuple[Part, ...]:
    """Train and test, as far as their files are there."""
    return need(source, _VERSIONS).parts


def load(source: str, wanted: tuple[Part, ...], fit: Fit) -> Dataset:
    """Read the pickled batches of CIFAR-10, or of CIFAR-100 (fine labels), with keys as bytes or as text.

    Raises:
        UnsafeFileError: a pickle that names anything but the making of NumPy arrays; nothing has been run.
        DataError: a batch that is missing, cut off, or holds other things than (n, 3072) uint8 and n labels.

    Checked by tests/data/test_cifar.py and tests/data/test_unpickle.py.
    """
    place = need(source, _VERSIONS)
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for path in place.paths(wanted):
        batch = unpickled(content_of(path), str(path))
        x = _images(batch.get("data"), str(path))
        if place.version.key not in batch:
            found = f"the keys {sorted(batch)}"[:120]
            raise DataError(str(path), f"the key {place.version.key!r}", found, "Give CIFAR's own batches.")
        y = class_indices(batch[str(place.version.key)], f"labels of {path}")
        if len(y) != len(x):
            found = f"{len(y)} labels for {len(x)} images"
            raise DataError(str(path), "one label an image", found, "Unpack the archive again.")
        images.append(x)
        labels.append(y)
    pixels = Stored(fit.apply(torch.cat(images)))
    return Dataset(Path(source).name, _classes(place), torch.cat(labels), pixels)


def _images(data: object, where: str) -> UInt8[Tensor, "n 3 32 32"]:
    if not isinstance(data, Tensor) or data.ndim != 2 or data.shape[1] != PIXELS:
        found = f"shape {tuple(data.shape)}" if isinstance(data, Tensor) else type(data).__name__
        raise DataError(where, f"uint8 of shape (n, {PIXELS}) as 'data'", found, "Give CIFAR's own batches.")
    return data.view(-1, 3, 32, 32)


def _classes(place: Place) -> tuple[str, ...]:
    path, expected = place.folder / place.version.names, len(place.version.classes)
    if not path.is_file():
        return place.version.classes
    key = "label_names" if place.version.key == "labels" else "fine_label_names"
    names = unpickled(content_of(path), str(path)).get(key)
    if not isinstance(names, list) or len(names) != expected:
        found = f"{len(names)} names" if isinstance(names, list) else type(names).__name__
        raise DataError(str(path), f"{expected} names as {key!r}", found, "Unpack the archive again.")
    return tuple(str(name) for name in names)
