"""Images with the labels that a model gave them, in one ``.npz`` that `open_dataset` opens like any other."""

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ..core.errors import DataError, InputError
from ..files import write_atomically
from .arrays import from_arrays, tensor_of
from .dataset import Dataset
from .npz import arrays_in

_REMEDY = "Write it by shaketable.data.write_pseudolabelled or `shaketable pseudolabel`."


@final
@dataclass(frozen=True, eq=False)
class PseudoLabelled:
    """What a file of pseudo-labelled images holds.

    Args:
        data: the images with their pseudo-labels.
        confidence: the probability of each image's label, as the model had it.
        source: what was labelled, and by what.
    """

    data: Dataset
    confidence: Float[Tensor, " n"]
    source: str


def write_pseudolabelled(
    path: str | os.PathLike[str],
    x: Shaped[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    *,
    confidence: Float[Tensor, " n"],
    classes: Sequence[str],
    source: str,
) -> str:
    """Write images and the labels that a model gave them, atomically.

    Args:
        path: a ``.npz``; missing folders are made.
        x: (n, c, h, w), uint8 or floats in [0, 1] (kept as float32), c being 1 or 3.
        labels: the class indices that the model gave.
        confidence: the probability that it gave each of them, in [0, 1]; kept as float32.
        classes: the classes' names, in the order of the labels.
        source: what was labelled, and by what; one line for people.

    The arrays are ``images``, ``labels``, ``classes``, ``confidence`` and ``source``, compressed, without pickles. The same
    values give the same bytes. Memory: one copy of the images, and the file.

    Returns the file's SHA-256, as `sha256sum` prints it.

    Raises:
        InputError: another suffix than ``.npz``, a source that is no text, or confidences that do not fit.
        DataError: images, labels or classes that `from_arrays` would refuse when the file is read.
        StorageError: the place cannot be written; an older file stays as it was.

    Checked by tests/data/test_pseudolabelled.py.
    """
    import numpy as np

    file = Path(path)
    if file.suffix.lower() != ".npz":
        raise InputError("path", "a name that ends in .npz", file.name, "Write pseudolabelled.npz, for example.")
    if not isinstance(source, str):
        raise InputError("source", "a text", type(source).__name__, "Say what was labelled, and by what.")
    data = from_arrays(x, labels, classes=classes, name=file.name)
    names = np.array(data.classes)
    if tuple(str(name) for name in names) != data.classes:
        raise DataError("classes", "texts that do not end in NUL", repr(data.classes)[:80], "Rename the class.")
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=data.pixels.read(torch.arange(len(data))).numpy(),
        labels=data.labels.numpy(),
        classes=names,
        confidence=_confidences(confidence, len(data)).numpy(),
        source=np.array(source),
    )
    content = buffer.getvalue()
    write_atomically(file, content)
    return hashlib.sha256(content).hexdigest()


def read_pseudolabelled(path: str | os.PathLike[str]) -> PseudoLabelled:
    """Read what `write_pseudolabelled` wrote, with the confidences; `open_dataset` reads the images and labels alone.

    Raises:
        DataError: an array is missing or of another kind, or what `open_dataset` refuses.

    Checked by tests/data/test_pseudolabelled.py.
    """
    file = Path(path)
    arrays = arrays_in(file, ("images", "labels", "classes", "confidence", "source"))
    if arrays["source"].dtype.kind != "U" or arrays["source"].ndim:
        found = f"dtype {arrays['source'].dtype} of shape {arrays['source'].shape}"
        raise DataError(f"source of {path}", "one text", found, _REMEDY)
    names = arrays["classes"]
    if names.dtype.kind != "U" or names.ndim != 1:
        raise DataError(f"classes of {path}", "texts of shape (k,)", f"dtype {names.dtype}", _REMEDY)
    data = from_arrays(arrays["images"], arrays["labels"], classes=[str(name) for name in names], name=file.name)
    try:
        confidence = _confidences(arrays["confidence"], len(data))
    except InputError as error:
        raise DataError(f"confidence of {path}", error.expected, error.found, _REMEDY) from error
    return PseudoLabelled(data, confidence, str(arrays["source"]))


def _confidences(values: Any, count: int) -> Float[Tensor, " n"]:
    """Confidences as float32, one an image."""
    found = tensor_of(values, "confidence")
    if tuple(found.shape) != (count,) or not found.is_floating_point():
        said = f"{str(found.dtype).removeprefix('torch.')} of shape {tuple(found.shape)}"
        raise InputError("confidence", f"floats of shape ({count},)", said, "Give one probability an image.")
    low, high = (float(value) for value in torch.aminmax(found))
    if not (low >= 0 and high <= 1):
        raise InputError("confidence", "probabilities in [0, 1]", f"{low:.6g} to {high:.6g}", "Apply a softmax first.")
    return found.to(torch.float32)
