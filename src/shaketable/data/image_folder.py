"""Image folders: a folder for each class, ImageNet's train/val/test, or flat files named by class index."""

from collections import Counter
from pathlib import Path

import torch

from ..core.errors import DataError
from .archives import Archive, Folder, Listing
from .dataset import Dataset
from .decoding import header
from .fit import Fit
from .layout import Labelled, Part, layout
from .pixels import Decoded


def recognises(source: str) -> bool:
    """Whether the source is a folder; the other kinds of folder are asked first."""
    return Path(source).is_dir()


def parts(source: str) -> tuple[Part, ...]:
    """The parts that the folder's names tell of; none for a folder without train/ and test/."""
    return parts_in(Folder(Path(source)).listing(), source)


def load(source: str, wanted: tuple[Part, ...], fit: Fit) -> Dataset:
    """Open a folder of images (PNG, JPEG, BMP, WebP); they are decoded when a batch is read.

    Every file's header is read now, so that what cannot be an image, and images of several sizes or channels, are found
    at once. `shaketable.data.layout` says which names are understood.

    Raises:
        DataError: no image; a file that is none, named; several sizes without ``size=``; grey and colour images mixed
            without ``channels=``; names that do not tell the classes.
        UnsafeFileError: a decompression bomb, named.

    Checked by tests/data/test_image_folder.py.
    """
    folder = Folder(Path(source))
    return dataset_in(folder, folder.listing(), wanted, fit)


def parts_in(listing: Listing, where: str) -> tuple[Part, ...]:
    """The parts in a listing, for folders and zips alike."""
    return tuple(part for part in layout(listing, where).parts if part is not None)


def dataset_in(archive: Archive, listing: Listing, wanted: tuple[Part, ...], fit: Fit) -> Dataset:
    """The data set of some parts of a listing (of everything if none is named), in the parts' order."""
    found = layout(listing, archive.name)
    chosen: list[Labelled] = [found.parts[part] for part in wanted] if wanted else list(found.parts.values())
    members = tuple(member for part in chosen for member in part.members)
    labels = torch.tensor([label for part in chosen for label in part.labels], dtype=torch.int64)
    return Dataset(archive.name, found.classes, labels, Decoded(archive, members, shape_of(archive, members, fit), fit))


def shape_of(archive: Archive, members: tuple[str, ...], fit: Fit) -> tuple[int, int, int]:
    """The one shape that these image files have after the fit; reads every header.

    Raises:
        DataError: a file that is no image, named; several sizes, or grey and colour mixed, where the fit leaves them.
        UnsafeFileError: a decompression bomb, named.
    """
    channels: Counter[int] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    for member in members:
        with archive.stream(member) as stream:
            said = header(stream, f"{archive.name}/{member}")
        channels[said.channels] += 1
        sizes[said.height, said.width] += 1
    if fit.channels is None and len(channels) > 1:
        found = f"{channels[1]} grey and {channels[3]} colour images"
        remedy = "Pass channels=3 (--channels 3) to make them all RGB, or channels=1."
        raise DataError(archive.name, "images of one number of channels", found, remedy)
    if fit.size is None and len(sizes) > 1:
        (height, width), count = sizes.most_common(1)[0]
        found = f"{len(sizes)} sizes (most often {width} x {height}, {count} of {len(members)})"
        remedy = "Pass size= (--size), the side in pixels that they are all resized and cropped to."
        raise DataError(archive.name, "images of one size", found, remedy)
    return fit.shape_of(next(iter(channels)), *next(iter(sizes)))
