"""SVHN's cropped digits, in MATLAB files."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import DataError
from .arrays import class_indices
from .dataset import Dataset
from .fit import Fit
from .layout import Part
from .pixels import Stored

DIGITS = tuple("0123456789")
MAX_BYTES = 1 << 33  # the "extra" set, the largest, has 1.6 GB
_FILES: dict[Part, str] = {"train": "train_32x32.mat", "test": "test_32x32.mat"}


def recognises(source: str) -> bool:
    """Whether the source is a ``.mat`` file, or a folder with SVHN's."""
    path = Path(source)
    return (path.is_file() and path.suffix.lower() == ".mat") or bool(_parts(path))


def parts(source: str) -> tuple[Part, ...]:
    """Train and test of a folder, as far as their files are there; none of a single file."""
    return _parts(Path(source))


def load(source: str, wanted: tuple[Part, ...], fit: Fit) -> Dataset:
    """Read ``X`` (h, w, 3, n) and ``y`` (n, 1) of ``train_32x32.mat`` and ``test_32x32.mat``, or of one file.

    SVHN writes the digit 0 as the label 10; here it is label 0, as in torchvision.

    Raises:
        DataError: no MATLAB file of version 5 to 7.2, a damaged one, or one with other variables.

    Checked by tests/data/test_svhn.py.
    """
    path = Path(source)
    files = [path / _FILES[part] for part in wanted] if wanted else [path]
    read = [_read(file) for file in files]
    images = torch.cat([_images(variables["X"]) for variables in read])
    labels = torch.cat([_labels(v["y"], str(file)) for v, file in zip(read, files, strict=True)])
    return Dataset(path.name, DIGITS, labels, Stored(fit.apply(images)))


def _parts(path: Path) -> tuple[Part, ...]:
    return tuple(part for part, name in _FILES.items() if (path / name).is_file())


def _read(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat, whosmat

    try:
        declared = {name: (shape, kind) for name, shape, kind in whosmat(str(path))}
        for name, axes in (("X", 4), ("y", 2)):
            shape, kind = declared.get(name, ((), "missing"))
            numeric = kind in ("uint8", "double", "int32") if name == "y" else kind == "uint8"
            if len(shape) != axes or not numeric or math.prod(shape) > MAX_BYTES:
                found = f"{kind} of shape {tuple(shape)}" if shape else f"the variables {sorted(declared)}"[:120]
                expected = "uint8 'X' of shape (h, w, 3, n) and 'y' of shape (n, 1)"
                raise DataError(str(path), expected, found, "Give SVHN's cropped digits (format 2).")
        return loadmat(str(path), variable_names=["X", "y"])
    except DataError:
        raise
    except Exception as error:  # SciPy's reader raises whatever damaged bytes lead it to
        reason = "version 7.3 (HDF5)" if isinstance(error, NotImplementedError) else f"{error}"[:120]
        expected = "a whole MATLAB file of version 5 to 7.2"
        raise DataError(str(path), expected, reason or type(error).__name__, "Fetch the file again.") from error


def _images(array: Any) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.ascontiguousarray(array.transpose(3, 2, 0, 1)))


def _labels(array: Any, where: str) -> Tensor:
    import numpy as np

    whole = array.astype(np.int64)
    if not np.array_equal(whole, array) or array.min(initial=1) < 0 or array.max(initial=0) > 10:
        found = f"values from {array.min()} to {array.max()}"
        raise DataError(f"labels of {where}", "whole numbers in 0..10", found, "Fetch the file again.")
    labels = class_indices(whole.reshape(-1, 1), f"labels of {where}")
    return torch.where(labels == 10, 0, labels)
