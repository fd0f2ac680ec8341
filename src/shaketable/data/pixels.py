"""Where a data set keeps its pixels: in memory, or in files that are decoded when they are read."""

import hashlib
import json
from dataclasses import dataclass
from typing import Protocol, final

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from ..core.errors import DataError
from .archives import Archive, content_of
from .decoding import decoded
from .fit import Fit


class Pixels(Protocol):
    """The images of a data set, without their labels. The two that exist are `Stored` and `Decoded`."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        ...

    def __len__(self) -> int: ...

    def read(self, rows: Int[Tensor, " k"]) -> Shaped[Tensor, "k c h w"]:
        """These images, as uint8 or as float32 in [0, 1]."""
        ...

    def take(self, rows: Int[Tensor, " k"]) -> "Pixels":
        """These images alone, in this order."""
        ...

    def hash_into(self, digest: "hashlib._Hash") -> None:
        """Feed everything that determines the images to a hash."""
        ...


@final
@dataclass(frozen=True, eq=False)
class Stored:
    """Images in memory: uint8, or float32 in [0, 1].

    Raises:
        DataError: another dtype or shape, NaN or infinite values, negative values, values above 1.

    Checked by tests/data/test_dataset.py and tests/data/test_bad_input.py.
    """

    images: Shaped[Tensor, "n c h w"]

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
            expected = "a non-empty array (n, channels, height, width) with 1 or 3 channels"
            raise DataError("images", expected, f"shape {shape}", "Reshape the images, or convert them to RGB.")
        if self.images.dtype == torch.float32:
            _check_range(self.images)
        elif self.images.dtype != torch.uint8:
            found = str(self.images.dtype).removeprefix("torch.")
            raise DataError("images", "uint8, or float32 in [0, 1]", found, "Convert the images first.")

    @property
    def shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.images.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Int[Tensor, " k"]) -> Shaped[Tensor, "k c h w"]:
        return self.images[rows]

    def take(self, rows: Int[Tensor, " k"]) -> "Stored":
        return Stored(self.images[rows])

    def hash_into(self, digest: "hashlib._Hash") -> None:
        digest.update(json.dumps([str(self.images.dtype), *self.shape]).encode())
        for part in self.images.split(1024):
            digest.update(part.contiguous().numpy().data)


@final
@dataclass(frozen=True, eq=False)
class Decoded:
    """Images in files, decoded to uint8 each time they are read; only one batch is in memory.

    Args:
        archive: the folder, zip or table that holds the files.
        members: the files' names within it, one for each image.
        shape: (channels, height, width) after the fit.
        fit: the size and channels they are brought to.

    `read` raises a DataError that names the file which is missing, damaged, too large or of another size.
    Checked by tests/data/test_image_folder.py and tests/data/test_image_zip.py.
    """

    archive: Archive
    members: tuple[str, ...]
    shape: tuple[int, int, int]
    fit: Fit

    def __len__(self) -> int:
        return len(self.members)

    def read(self, rows: Int[Tensor, " k"]) -> Shaped[Tensor, "k c h w"]:
        images = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        for place, row in enumerate(rows.tolist()):
            name = self.members[row]
            where = f"{self.archive.name}/{name}"
            image = self.fit.apply(decoded(content_of(self.archive, name), where, channels=self.shape[0]).unsqueeze(0))
            if tuple(image.shape[1:]) != self.shape:
                found = f"{image.shape[3]} x {image.shape[2]}"
                expected = f"{self.shape[2]} x {self.shape[1]} pixels, as when the data set was opened"
                raise DataError(where, expected, found, "Open the data set again, with size= if sizes differ.")
            images[place] = image[0]
        return images

    def take(self, rows: Int[Tensor, " k"]) -> "Decoded":
        return Decoded(self.archive, tuple(self.members[row] for row in rows.tolist()), self.shape, self.fit)

    def hash_into(self, digest: "hashlib._Hash") -> None:
        digest.update(json.dumps(["files", *self.shape, self.fit.label]).encode())
        for name in self.members:
            digest.update(hashlib.sha256(content_of(self.archive, name)).digest())


def _check_range(images: Tensor) -> None:
    low, high = (float(value) for value in torch.aminmax(images))
    if low != low or high in (float("inf"), float("-inf")) or low == float("-inf"):
        bad = int((~torch.isfinite(images)).flatten(1).any(1).sum())
        found = f"NaN or infinite pixels in {bad} of {len(images)} images"
        raise DataError("images", "finite pixels in [0, 1]", found, "Mend or drop these images.")
    if low < 0:
        remedy = "Undo the normalisation (it is the model's first layer): pass pixels as uint8, or divided by 255."
        raise DataError("images", "pixels in [0, 1]", f"values from {low:.6g} to {high:.6g}", remedy)
    if high > 1:
        remedy = "Divide by 255, or pass the images as uint8." if high <= 255 else "Scale the pixels to [0, 1]."
        raise DataError("images", "pixels in [0, 1]", f"values from {low:.6g} to {high:.6g}", remedy)
