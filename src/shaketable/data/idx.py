"""Folders of idx files: MNIST, Fashion-MNIST, KMNIST and what else uses their layout."""

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from ..core.errors import DataError
from .arrays import numbered_classes
from .dataset import Dataset
from .fit import Fit
from .layout import Part
from .pixels import Stored

FASHION_MNIST = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FASHION_LABELS = {  # SHA-256 of the label bytes: the files' names do not tell it from MNIST
    "train": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "test": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
}
_PREFIXES: dict[Part, str] = {"train": "train", "test": "t10k"}
_FOLDERS = ("", "raw", "MNIST/raw", "FashionMNIST/raw", "KMNIST/raw", "QMNIST/raw")
_DEFLATE = 1032  # no deflate stream expands by more
_DAMAGED = (OSError, EOFError, zlib.error)


def recognises(source: str) -> bool:
    """Whether a folder (or torchvision's ``raw`` below it) holds idx image files."""
    return any(_find(folder, part, "images") for folder in _candidates(source) for part in _PREFIXES)


def parts(source: str) -> tuple[Part, ...]:
    """Train and test, as far as their files are there."""
    return tuple(part for part in _PREFIXES if _find(_folder(source), part, "images"))


def load(source: str, wanted: tuple[Part, ...], fit: Fit) -> Dataset:
    """Read ``train-`` and ``t10k-images-idx3-ubyte`` with their labels, plain or ``.gz``.

    Class names are Fashion-MNIST's if the labels are (by their SHA-256), else "0", "1", ...

    Raises:
        DataError: a file that is missing, cut off, too long, or of another kind (magic number); labels that are not as
            many as the images. The file is named.

    Checked by tests/data/test_idx.py.
    """
    folder = _folder(source)
    labels: dict[Part, Tensor] = {part: read_idx(_need(folder, part, "labels"), 1) for part in parts(source)}
    images = [read_idx(_need(folder, part, "images"), 3) for part in wanted]
    chosen = [labels[part] for part in wanted]
    for part, x, y in zip(wanted, images, chosen, strict=True):
        if len(x) != len(y):
            where, found = str(_need(folder, part, "labels")), f"{len(y)} labels for {len(x)} images"
            raise DataError(where, "one label an image", found, "The two files do not belong together.")
    known = all(hashlib.sha256(bytes(y.tolist())).hexdigest() == _FASHION_LABELS[part] for part, y in labels.items())
    y = torch.cat(chosen).to(torch.int64)
    classes = FASHION_MNIST if known else numbered_classes(torch.cat(list(labels.values())).long(), source)
    return Dataset(Path(source).name, classes, y, Stored(fit.apply(torch.cat(images).unsqueeze(1))))


def read_idx(path: Path, dimensions: int) -> UInt8[Tensor, "..."]:
    """Read one idx file of unsigned bytes, plain or gzip (told by its first bytes, not its name).

    The length that the header claims is checked against the file's own before anything of that size is allocated.
    """
    remedy = "Fetch the file again."
    try:
        size = path.stat().st_size
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else path.open("rb") as stream:
            head = stream.read(4 + 4 * dimensions)
            magic = bytes((0, 0, 8, dimensions))
            if head[:4] != magic or len(head) < 4 + 4 * dimensions:
                expected = f"the magic number {magic.hex()} (unsigned bytes, {dimensions} axes)"
                raise DataError(str(path), expected, head[:4].hex() or "an empty file", remedy)
            shape = struct.unpack(f">{dimensions}I", head[4:])
            count = math.prod(shape)
            if count == 0 or count > (size * _DEFLATE if zipped else size):
                found = f"the shape {shape} in a file of {size} bytes"
                raise DataError(str(path), "a shape that fits the file", found, remedy)
            content = stream.read(count)
            if len(content) < count or stream.read(1):
                found = f"{len(content)} bytes" if len(content) < count else "more"
                raise DataError(str(path), f"{count} bytes after the header", found, remedy)
    except _DAMAGED as error:
        raise DataError(str(path), "a whole idx file", str(error) or type(error).__name__, remedy) from error
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(shape)


def _candidates(source: str) -> list[Path]:
    return [Path(source) / inner for inner in _FOLDERS] if Path(source).is_dir() else []


def _folder(source: str) -> Path:
    return next(f for f in _candidates(source) if any(_find(f, part, "images") for part in _PREFIXES))


def _find(folder: Path, part: Part, what: str) -> Path | None:
    axes = 3 if what == "images" else 1
    names = [f"{_PREFIXES[part]}-{what}{dot}idx{axes}-ubyte{end}" for end in ("", ".gz") for dot in "-."]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _need(folder: Path, part: Part, what: str) -> Path:
    found = _find(folder, part, what)
    if found is None:
        expected = f"{_PREFIXES[part]}-{what}-idx{3 if what == 'images' else 1}-ubyte, plain or .gz"
        raise DataError(str(folder), expected, "no such file", "Put the file beside the others.")
    return found
