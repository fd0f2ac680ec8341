"""CIFAR-10 and CIFAR-100, binary version (``.bin``)."""

from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from ..core.errors import DataError
from .cifar import CIFAR10, CIFAR100, PIXELS, Place, Version, content_of, find, need
from .dataset import Dataset
from .fit import Fit
from .layout import Part
from .pixels import Stored

_BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_VERSIONS = (
    Version("cifar-10-batches-bin", {"train": _BATCHES, "test": ("test_batch.bin",)}, CIFAR10, "batches.meta.txt", 1),
    Version("cifar-100-binary", {"train": ("train.bin",), "test": ("test.bin",)}, CIFAR100, "fine_label_names.txt", 2),
)


def recognises(source: str) -> bool:
    """Whether a folder, or the one that the archive unpacks to below it, holds CIFAR's ``.bin`` files."""
    return find(source, _VERSIONS) is not None


def parts(source: str) -> tuple[Part, ...]:
    """Train and test, as far as their files are there."""
    return need(source, _VERSIONS).parts


def load(source: str, wanted: tuple[Part, ...], fit: Fit) -> Dataset:
    """Read the records of CIFAR-10 (label, 3072 pixels) or CIFAR-100 (coarse label, fine label, 3072 pixels).

    CIFAR-100's labels are the fine ones. Class names are read from the text file beside the records, if it is there.

    Raises:
        DataError: a batch that is missing, of a length that is no whole number of records, or with a label out of range.

    Checked by tests/data/test_cifar.py.
    """
    place = need(source, _VERSIONS)
    skip = int(place.version.key)
    records = torch.cat([_records(path, place.version) for path in place.paths(wanted)])
    images, labels = records[:, skip:].reshape(-1, 3, 32, 32), records[:, skip - 1].to(torch.int64)
    return Dataset(Path(source).name, _classes(place), labels, Stored(fit.apply(images)))


def _records(path: Path, version: Version) -> UInt8[Tensor, "n bytes"]:
    skip, content = int(version.key), content_of(path)
    width = skip + PIXELS
    if len(content) == 0 or len(content) % width:
        expected = f"a multiple of {width} bytes ({version.folder})"
        raise DataError(str(path), expected, f"{len(content)} bytes", "Unpack the archive again.")
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, width)
    highest = int(records[:, skip - 1].max())
    if highest >= len(version.classes):
        expected = f"labels below {len(version.classes)}"
        raise DataError(str(path), expected, f"the label {highest}", "The file is damaged: unpack the archive again.")
    return records


def _classes(place: Place) -> tuple[str, ...]:
    path = place.folder / place.version.names
    if not path.is_file():
        return place.version.classes
    lines = content_of(path).decode("utf-8", "replace").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != len(place.version.classes):
        expected = f"{len(place.version.classes)} class names, one a line"
        raise DataError(str(path), expected, f"{len(names)} names", "Unpack the archive again.")
    return names
