"""Opening images that may have no labels: for what needs the pictures alone."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from . import image_folder, image_zip, npz
from .archives import Folder, Zip
from .arrays import from_arrays
from .dataset import Dataset
from .fit import Fit
from .image_folder import shape_of
from .layout import loose_images
from .opening import Split, loader_of, open_dataset, source_text
from .pixels import Decoded

UNLABELLED = ("unlabelled",)
"""The classes of a source without labels; every image's label is then 0."""


def open_unlabelled(
    source: str | os.PathLike[str], *, split: Split | None = "all", size: int | None = None, channels: int | None = None
) -> Dataset:
    """As `open_dataset`, and also a source that tells no classes: its `classes` are then `UNLABELLED`.

    These are an ``.npz`` with ``images`` and no ``labels``, and a folder or zip whose images all lie in no folder and are
    not named by ImageNet's classes.

    Args:
        source: see `open_dataset`.
        split: the part; "all" by default. A source without labels has no parts.
        size, channels: see `open_dataset`.

    Raises:
        DataError, UnsafeFileError, InputError: as `open_dataset`.

    Checked by tests/data/test_unlabelled.py.
    """
    text, fit = source_text(source), Fit(size, channels)
    data = _without_labels(text, fit) if split in (None, "all") else None
    if data is None:
        return open_dataset(source, split=split, size=size, channels=channels)
    return replace(data, name=f"{data.name or Path(text).absolute().name}{fit.label}")


def _without_labels(source: str, fit: Fit) -> Dataset | None:
    """The images of a source without labels; None for any other."""
    loader, path = loader_of(source), Path(source)
    if loader is npz and "labels" not in npz.names_in(path):
        images = npz.arrays_in(path, ("images",))["images"]
        labels = torch.zeros(len(images) if images.ndim else 0, dtype=torch.int64)
        return from_arrays(images, labels, classes=UNLABELLED, name=path.name, fit=fit)
    if loader is not image_folder and loader is not image_zip:
        return None
    archive = Folder(path) if loader is image_folder else Zip(path)
    members = loose_images(archive.listing())
    if not members:
        return None
    pixels = Decoded(archive, members, shape_of(archive, members, fit), fit)
    return Dataset(archive.name, UNLABELLED, torch.zeros(len(members), dtype=torch.int64), pixels)
