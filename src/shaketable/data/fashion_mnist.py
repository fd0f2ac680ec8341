"""The embedded data set: a fixed, class-balanced subset of Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, MIT licence)."""

import hashlib
import json
from pathlib import Path

import torch

from ..core.errors import DataError
from .dataset import Dataset
from .fit import Fit
from .idx import FASHION_MNIST
from .layout import Part
from .npz import arrays_in
from .pixels import Stored

NAME = "fashion-mnist"
FOLDER = Path(__file__).parent / "embedded"
_REMEDY = "The installed package is damaged: install shaketable again."


def recognises(source: str) -> bool:
    """Whether the source is this set's name; a folder of the same name is given as ``./fashion-mnist``."""
    return source == NAME


def parts(source: str) -> tuple[Part, ...]:
    """Train (5000 images, 500 a class) and test (2000, 200 a class)."""
    return ("train", "test")


def load(source: str, wanted: tuple[Part, ...], fit: Fit) -> Dataset:
    """Read the embedded images, after the file's SHA-256 has been compared with the manifest's.

    28 x 28 grey, drawn once with seed 0 from the 60,000 and 10,000 images of the original, in their original order;
    ``embedded/manifest.json`` has the hashes of the source files and of the indices. tools/embed_fashion_mnist.py makes
    the file again.

    Raises:
        DataError: the file or its manifest is missing or damaged.

    Checked by tests/data/test_fashion_mnist.py.
    """
    import numpy as np

    manifest_path = FOLDER / "manifest.json"
    try:
        manifest = json.loads(manifest_path.read_text("utf-8"))
        path, expected = FOLDER / manifest["file"]["name"], manifest["file"]["sha256"]
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(str(manifest_path), "the embedded images' manifest and file", repr(error), _REMEDY) from error
    if found != expected:
        raise DataError(str(path), f"the SHA-256 {expected}", found, _REMEDY)
    names = tuple(f"{part}_{what}" for part in wanted for what in ("images", "labels"))
    arrays = arrays_in(path, names)
    images = torch.from_numpy(np.concatenate([arrays[f"{part}_images"] for part in wanted])).unsqueeze(1)
    labels = torch.from_numpy(np.concatenate([arrays[f"{part}_labels"] for part in wanted])).long()
    return Dataset(NAME, FASHION_MNIST, labels, Stored(fit.apply(images)))
