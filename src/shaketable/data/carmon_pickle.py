"""The published 500k pseudo-labelled images of Carmon et al. (NeurIPS 2019), read without running what a pickle names.

`ti_500K_pseudo_labeled.pickle` is a pickled dict of `data`, uint8 (n, 32, 32, 3), and `extrapolated_targets`, n whole
numbers: 80 Million Tiny Images that resemble CIFAR-10, labelled by a CIFAR-10 classifier.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import DataError
from .arrays import channels_first, class_indices
from .cifar import CIFAR10
from .dataset import Dataset
from .fit import Fit
from .layout import Part
from .pixels import Stored
from .unpickle import unpickled_file

_REMEDY = "Give the file of Carmon et al., or save arrays of your own as .npz."


def recognises(source: str) -> bool:
    """Whether the source is a ``.pickle`` or ``.pkl`` file."""
    return Path(source).suffix.lower() in (".pickle", ".pkl") and Path(source).is_file()


def parts(source: str) -> tuple[Part, ...]:
    """Training images alone."""
    return ("train",)


def load(source: str, wanted: tuple[Part, ...], fit: Fit) -> Dataset:
    """Read the images and their pseudo-labels; the classes are CIFAR-10's. Memory: the images as uint8, twice for a moment.

    Raises:
        UnsafeFileError: a pickle that names anything but the making of NumPy arrays; nothing has been run. Or over 4 GiB.
        DataError: a file that is cut off or damaged, or holds other things than these two arrays.

    Checked by tests/data/test_pseudolabelled.py (pickles of every protocol, hostile ones, a large one's memory).
    """
    found = unpickled_file(Path(source))
    if missing := [key for key in ("data", "extrapolated_targets") if key not in found]:
        raise DataError(source, f"the key {missing[0]!r}", f"the keys {sorted(found)}"[:120], _REMEDY)
    labels = class_indices(found["extrapolated_targets"], f"extrapolated_targets of {source}")
    images = _images(found.pop("data"), source)
    return Dataset(Path(source).name, CIFAR10, labels, Stored(fit.apply(images)))


def _images(data: Any, source: str) -> Tensor:
    if not isinstance(data, Tensor) or data.dtype != torch.uint8 or data.shape[1:] != (32, 32, 3):
        shape = (
            f"{str(data.dtype).removeprefix('torch.')} of shape {tuple(data.shape)}" if isinstance(data, Tensor) else ""
        )
        raise DataError(source, "uint8 of shape (n, 32, 32, 3) as 'data'", shape or type(data).__name__, _REMEDY)
    return channels_first(data, f"data of {source}")
