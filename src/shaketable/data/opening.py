"""Opening a data set by its name or path, whatever its format."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, final

from ..core.errors import DataError, InputError
from ..plugins import nearest, nearest_file
from .dataset import Dataset
from .fit import Fit
from .layout import Part

Split = Literal["train", "validation", "test", "all"]


class Loader(Protocol):
    """What a module must have to be a loader: the three functions that `LOADERS` expects of each format."""

    def recognises(self, source: str) -> bool:
        """Whether this is the format of the source; looks at names, never at whole files."""
        ...

    def parts(self, source: str) -> tuple[Part, ...]:
        """The parts that the source itself is divided into; none if it is not."""
        ...

    def load(self, source: str, wanted: tuple[Part, ...], fit: Fit) -> Dataset:
        """The images of these parts, in this order; of everything if the source has no parts."""
        ...


@final
@dataclass(frozen=True)
class Parts:
    """A source's training images, and its test images if it has a test part of its own."""

    train: Dataset
    test: Dataset | None


def open_dataset(
    source: str | os.PathLike[str],
    *,
    split: Split | None = None,
    size: int | None = None,
    channels: int | None = None,
    crop: float = 1.0,
) -> Dataset:
    """Open a data set: an embedded one by its name, any other by its path.

    Args:
        source: "fashion-mnist" (embedded); a folder of idx files, of CIFAR's binary or python batches, of SVHN's
            ``.mat``, of images, or a zip of images; an ``.npz``; Carmon et al.'s ``.pickle`` of pseudo-labelled images
            (a training part alone); ``torchvision:CLASS:ROOT``; ``hf:FOLDER``.
        split: the part; "all" is every part, one after the other. None is the test part, or everything where the
            source has no parts.
        size: side in pixels that images are resized and cropped to; None leaves them. See `Fit`.
        channels: 1 or 3; None leaves them.
        crop: the share of the shorter side that is kept when a size is given.

    The part, the size and the channels are in the data set's name; its fingerprint depends on what they select.

    Raises:
        DataError: a path that does not exist, with the nearest names; a format that is not known; a part that the source
            does not have; damaged or unusable contents, with the file's name.
        UnsafeFileError: contents that would run code or take absurd memory.
        InputError: a split, size, channel count or crop that cannot be.

    Checked by tests/data/test_opening.py.
    """
    fit = Fit(size, channels, crop)
    text = source_text(source)
    if split not in (None, "train", "validation", "test", "all"):
        remedy = nearest(split, ("train", "validation", "test", "all"))
        raise InputError("split", "'train', 'validation', 'test', 'all' or None", repr(split), remedy)
    loader = loader_of(text)
    parts = loader.parts(text)
    wanted = _wanted(text, parts, split)
    dataset = loader.load(text, wanted, fit)
    part = "" if not parts else " all" if split == "all" else f" {wanted[0]}"
    name = dataset.name or Path(text).absolute().name
    return replace(dataset, name=f"{name}{part}{fit.label}")


def open_parts(
    source: str | os.PathLike[str], *, size: int | None = None, channels: int | None = None, crop: float = 1.0
) -> Parts:
    """Open what a training run needs: the training part and the test part, or everything and None.

    Arguments and errors are `open_dataset`'s; a source with a test part alone is refused.

    Checked by tests/data/test_opening.py.
    """
    parts = parts_of(source)
    train = open_dataset(source, split="train" if parts else "all", size=size, channels=channels, crop=crop)
    if "test" not in parts:
        return Parts(train, None)
    return Parts(train, open_dataset(source, split="test", size=size, channels=channels, crop=crop))


def parts_of(source: str | os.PathLike[str]) -> tuple[Part, ...]:
    """The parts that a source is itself divided into; none if it is not.

    Raises:
        DataError: as `open_dataset`, for a source that is not found or not understood.

    Checked by tests/data/test_opening.py.
    """
    text = source_text(source)
    return loader_of(text).parts(text)


def source_text(source: str | os.PathLike[str]) -> str:
    """A source as a text; raises InputError unless it is one, or a path."""
    text = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text.strip():
        remedy = "Pass a path, or 'fashion-mnist'."
        raise InputError("data", "a path or the name of an embedded data set", repr(source)[:80], remedy)
    return text


def _wanted(source: str, parts: tuple[Part, ...], split: Split | None) -> tuple[Part, ...]:
    if not parts:
        if split in (None, "all"):
            return ()
        found = "one that is not divided into parts"
        remedy = "Pass split='all' and divide it with shaketable.data.split (training does so by itself)."
        raise DataError(source, f"a source with a {split} part of its own", found, remedy)
    if split == "all":
        return parts
    part = split or ("test" if "test" in parts else parts[0])
    if part not in parts:
        found = f"only {' and '.join(parts)}"
        raise DataError(source, f"a {part} part", found, "Put its files beside the others, or ask for another split.")
    return (part,)


def loader_of(source: str) -> Loader:
    """The first loader that recognises a source.

    Raises:
        DataError: as `open_dataset`, for a source that is not found or not understood.
    """
    from . import EMBEDDED, LOADERS

    path = Path(source)
    try:
        for loader in LOADERS.values():
            if loader.recognises(source):
                return loader
        exists = path.exists()
    except OSError as error:  # a name that is too long, a folder without rights
        found = error.strerror or type(error).__name__
        raise DataError("data", "a path that can be looked at", found, "Check the path and its rights.") from error
    if exists:
        known = ", ".join(name for name in LOADERS if name not in EMBEDDED)
        unpack = path.name.lower().endswith((".tar", ".tar.gz", ".tgz", ".gz", ".7z", ".rar", ".bz2", ".xz"))
        remedy = "Unpack the archive and give the folder." if unpack else "Give the folder that holds the data set."
        raise DataError(source, f"a data set in a known format ({known})", "a file of another kind", remedy)
    expected = f"a path that exists, or one of the embedded sets: {', '.join(EMBEDDED)}"
    raise DataError("data", expected, f"{source!r}, which does not exist", nearest_file(path, EMBEDDED))
