"""Data sets from arrays that are in memory already, whatever their layout."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from ..core.errors import DataError
from .dataset import Dataset
from .fit import AS_IS, Fit
from .pixels import Stored

MAX_CLASSES = 100_000  # more than any classification set has; a larger label is garbage


def from_arrays(
    images: Any,
    labels: Any,
    *,
    classes: Sequence[str] | None = None,
    name: str = "arrays",
    fit: Fit = AS_IS,
) -> Dataset:
    """A data set from arrays: tensors, NumPy arrays or nested lists.

    Args:
        images: (n, h, w), (n, h, w, c) or (n, c, h, w) with 1 or 3 channels; uint8, or whole numbers in 0..255, or floats
            in [0, 1] (kept as float32). Which axis holds the channels is read off its length; where both could, the
            array is refused.
        labels: n whole numbers, (n,) or (n, 1).
        classes: the classes' names; by default "0", "1", ... up to the largest label.
        name: what reports call it.
        fit: the size and channels to bring the images to.

    Raises:
        DataError: what `Dataset` and its pixels refuse (NaN, negative values, floats in 0..255, labels out of range,
            nothing at all), a layout that is ambiguous, or images that are binary (0 and 1) yet of a whole-number type.

    Checked by tests/data/test_arrays.py.
    """
    x = channels_first(tensor_of(images, f"images of {name}"), f"images of {name}")
    y = class_indices(labels, f"labels of {name}")
    if x.dtype == torch.uint8 and int(x.max()) == 1:
        remedy = "Pass binary images as floats; read as 0..255 they would be all but black."
        raise DataError(f"images of {name}", "uint8 pixels in 0..255", "whole numbers that are all 0 or 1", remedy)
    if classes is None:
        classes = numbered_classes(y, f"labels of {name}")
    elif isinstance(classes, str):
        raise DataError("classes", "a sequence of names", repr(classes), "Pass a list of strings.")
    return Dataset(name, tuple(classes), y, Stored(fit.apply(Stored(x).images)))


def channels_first(images: Shaped[Tensor, "..."], argument: str) -> Shaped[Tensor, "n c h w"]:
    """Images as (n, c, h, w), uint8 or float32, from any layout and dtype that leaves no doubt."""
    expected = "(n, h, w), (n, h, w, c) or (n, c, h, w) with 1 or 3 channels"
    shape = tuple(images.shape)
    if len(shape) == 3:
        images = images.unsqueeze(1)
    elif len(shape) == 4:
        first, last = shape[1] in (1, 3), shape[3] in (1, 3)
        if first and last:
            remedy = "Both axes could be the channels: make the images larger, or pass a set of another size."
            raise DataError(argument, expected, f"the ambiguous shape {shape}", remedy)
        if not first and not last:
            raise DataError(argument, expected, f"shape {shape}", "Convert the images to RGB or grey.")
        images = images if first else images.permute(0, 3, 1, 2)
    else:
        raise DataError(argument, expected, f"shape {shape}", "Reshape the images; flat vectors have no picture.")
    if images.numel() == 0:
        raise DataError(argument, "at least one image", f"shape {shape}", "Check how the array was made.")
    if images.dtype == torch.uint8 or images.is_floating_point():
        kept = images.contiguous() if images.dtype == torch.uint8 else images.to(torch.float32).contiguous()
    elif images.dtype == torch.bool or images.is_complex():
        found = str(images.dtype).removeprefix("torch.")
        raise DataError(argument, "uint8, or floats in [0, 1]", found, "Convert the images to floats in [0, 1].")
    else:
        low, high = (int(value) for value in torch.aminmax(images))
        if low < 0 or high > 255:
            found = f"whole numbers from {low} to {high}"
            raise DataError(
                argument, "whole numbers in 0..255", found, "Scale to 0..255 as uint8, or to floats in [0, 1]."
            )
        kept = images.to(torch.uint8).contiguous()
    return kept


def class_indices(labels: Any, argument: str) -> Int[Tensor, " n"]:
    """Labels as int64 of shape (n,)."""
    y = tensor_of(labels, argument)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        found = f"shape {tuple(y.shape)}"
        raise DataError(argument, "class indices of shape (n,)", found, "For one-hot labels pass their argmax(1).")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        found = str(y.dtype).removeprefix("torch.")
        raise DataError(argument, "whole numbers", found, "Convert the labels to integers.")
    return y.to(torch.int64)


def numbered_classes(labels: Int[Tensor, " n"], argument: str) -> tuple[str, ...]:
    """The names "0", "1", ... up to the largest label."""
    highest = int(labels.max()) if labels.numel() else 0
    if highest >= MAX_CLASSES:
        remedy = "Number the classes from 0 without gaps."
        raise DataError(argument, f"labels below {MAX_CLASSES}", f"the label {highest}", remedy)
    return tuple(str(label) for label in range(max(highest, 0) + 1))


def tensor_of(values: Any, argument: str) -> Tensor:
    """A copy of an array as a tensor on the CPU; refuses objects, texts and ragged rows."""
    if isinstance(values, Tensor):
        return values.detach().cpu().clone()
    import numpy as np

    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        remedy = "Give every image the same shape."
        raise DataError(argument, "a regular array", "rows of unequal shape", remedy) from error
    if array.dtype.kind not in "uifb":
        remedy = "Pass numbers in a regular array; arrays of objects or texts are not read."
        raise DataError(argument, "an array of numbers", f"dtype {array.dtype}", remedy)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        highest = array.max(initial=0)
        if highest > np.iinfo(np.int64).max:
            raise DataError(argument, "numbers that fit int64", f"{highest}", "Check how the array was made.")
        array = array.astype(np.int64)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=True))
