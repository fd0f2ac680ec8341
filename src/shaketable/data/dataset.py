"""A data set: labelled images of one shape, with a fingerprint."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import DataError, InputError
from .pixels import Pixels, Stored


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """Images and labels as models take them: float32 in [0, 1] of shape (n, c, h, w), and int64 of shape (n,)."""

    x: Float[Tensor, "n c h w"]
    y: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(self.x.to(device), self.y.to(device))


@final
@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images of one shape. What every loader of this room returns.

    Args:
        name: what reports call it: the source, the part of it, and the size it was brought to.
        classes: the classes' names; label i is ``classes[i]``.
        labels: one label an image, int64 in 0..len(classes) - 1.
        pixels: the images, in memory (uint8 or float32) or in files that are decoded when read.

    It is immutable: `take` makes another, and nobody writes into `labels`. Reading a batch costs one copy in memory, or
    one decoding of each file. It may be sent to other processes (files are then opened anew there).

    Raises:
        DataError: no image; another number of labels than images; a label that is no whole number or out of range; an
            empty class name.

    Checked by tests/data/test_dataset.py and tests/data/test_bad_input.py.
    """

    name: str
    classes: tuple[str, ...]
    labels: Int[Tensor, " n"]
    pixels: Pixels

    def __post_init__(self) -> None:
        where = f"labels of {self.name}"
        if len(self.pixels) == 0:
            raise DataError(self.name, "at least one image", "none", "Check the path, the split and the counts.")
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            found = f"{str(self.labels.dtype).removeprefix('torch.')} of shape {tuple(self.labels.shape)}"
            raise DataError(where, "int64 of shape (n,)", found, "Pass class indices, one an image.")
        if len(self.labels) != len(self.pixels):
            found = f"{len(self.labels)} labels for {len(self.pixels)} images"
            raise DataError(where, "one label an image", found, "The two files do not belong together, or one is cut.")
        if not self.classes or not all(isinstance(name, str) and name for name in self.classes):
            raise DataError(f"classes of {self.name}", "non-empty names", repr(self.classes)[:80], "Name every class.")
        low, high = (int(value) for value in torch.aminmax(self.labels))
        if low < 0 or high >= len(self.classes):
            found = f"labels from {low} to {high}"
            remedy = "Number the classes from 0, and give a name for each."
            raise DataError(where, f"labels in 0..{len(self.classes) - 1} ({len(self.classes)} classes)", found, remedy)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.pixels.shape))
        return f"Dataset({self.name!r}, {len(self)} images of {shape}, {len(self.classes)} classes)"

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.pixels.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[1:]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many images each class has, in the order of `classes`."""
        return tuple(torch.bincount(self.labels, minlength=len(self.classes)).tolist())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of class names, labels, and images: pixels for those in memory, else the files and their fit.

        The name takes no part, so that a moved folder keeps its fingerprint. Reads every file once; then remembered.
        """
        digest = hashlib.sha256(json.dumps(["shaketable data set 1", len(self), self.classes]).encode())
        digest.update(self.labels.contiguous().numpy().data)
        self.pixels.hash_into(digest)
        return digest.hexdigest()

    def batch(self, indices: Int[Tensor, " k"] | Sequence[int]) -> Batch:
        """These images and labels, in this order; an index may be repeated. uint8 pixels are divided by 255.

        Raises:
            InputError: an index that is no whole number in 0..len - 1.
            DataError: a file that can no longer be decoded, named.
        """
        rows = self._rows(indices)
        images = self.pixels.read(rows)
        x = images if images.is_floating_point() else images.to(torch.float32).div_(255)
        return Batch(x.contiguous(), self.labels[rows])

    def take(self, indices: Int[Tensor, " k"] | Sequence[int]) -> "Dataset":
        """A data set of these images alone, in this order, with the same classes.

        Raises:
            InputError: an index that is no whole number in 0..len - 1.
            DataError: no index at all.
        """
        rows = self._rows(indices)
        if len(rows) == 0:
            raise DataError("indices", "at least one image", "none", "A data set is never empty: take one or more.")
        return replace(self, labels=self.labels[rows], pixels=self.pixels.take(rows))

    def in_memory(self) -> "Dataset":
        """The same images decoded once and kept as uint8: for many epochs over files that fit into memory.

        Costs ``len * channels * height * width`` bytes. The fingerprint is then that of pixels, no longer that of files.

        Raises:
            DataError: a file that cannot be decoded, named.
        """
        return replace(self, pixels=Stored(self.pixels.read(torch.arange(len(self)))))

    def batches(self, size: int, order: Int[Tensor, " k"] | Sequence[int] | None = None) -> Iterator[Batch]:
        """The images in batches of `size`, the last one smaller; in the given order, else as they are stored.

        Raises:
            InputError: a size below 1, or an index out of range; before the first batch.
        """
        if type(size) is not int or size < 1:
            raise InputError("size", "a batch size of at least 1", repr(size), "Pass size=128, for example.")
        rows = torch.arange(len(self)) if order is None else self._rows(order)
        return (self.batch(part) for part in rows.split(size) if len(part))

    def _rows(self, indices: Tensor | Sequence[int]) -> Tensor:
        try:
            rows = torch.as_tensor(indices)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError("indices", "whole numbers", repr(indices)[:80], "Pass a list or a tensor.") from error
        whole = not (rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool)
        if rows.ndim != 1 or not (whole or rows.numel() == 0):
            found = f"{str(rows.dtype).removeprefix('torch.')} of shape {tuple(rows.shape)}"
            raise InputError(
                "indices", "whole numbers of shape (k,)", found, "Pass indices; for a mask, its nonzero()."
            )
        rows = rows.to("cpu", torch.int64)
        if rows.numel() and (int(rows.min()) < 0 or int(rows.max()) >= len(self)):
            found = f"indices from {int(rows.min())} to {int(rows.max())}"
            raise InputError(
                "indices", f"indices in 0..{len(self) - 1}", found, "Count from 0; there is no wrap-around."
            )
        return rows
