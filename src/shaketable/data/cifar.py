"""What the two file formats of CIFAR-10 and CIFAR-100 share: which files make up which part."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from ..core.errors import DataError
from .layout import Part

PIXELS = 3 * 32 * 32
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = tuple(str(label) for label in range(100))  # the names are in a file beside the images


@final
@dataclass(frozen=True)
class Version:
    """One of the two data sets in one of the two formats.

    Args:
        folder: the folder that its archive unpacks to.
        files: the files of each part, all of which are needed.
        classes: the class names, where no file tells them.
        names: the file that tells them.
        key: where the labels are: the last of so many label bytes, or a dict's key.
    """

    folder: str
    files: dict[Part, tuple[str, ...]]
    classes: tuple[str, ...]
    names: str
    key: int | str


@final
@dataclass(frozen=True)
class Place:
    """A version and the folder in which it was found."""

    folder: Path
    version: Version

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of which at least one file is there."""
        files = self.version.files
        return tuple(part for part in files if any((self.folder / name).is_file() for name in files[part]))

    def paths(self, wanted: tuple[Part, ...]) -> list[Path]:
        """The files of some parts, in order."""
        return [self.folder / name for part in wanted for name in self.version.files[part]]


def find(source: str, versions: tuple[Version, ...]) -> Place | None:
    """Which version is in a folder, or in the one that the archive unpacks to below it; None if there is none."""
    places = [Place(folder, v) for v in versions for folder in (Path(source), Path(source) / v.folder)]
    return next((place for place in places if place.parts), None)


def need(source: str, versions: tuple[Version, ...]) -> Place:
    """As `find`, for a source that was recognised.

    Raises:
        DataError: the files are gone.
    """
    place = find(source, versions)
    if place is None:
        raise DataError(source, "a folder of CIFAR's batches", "none of its files", "Check the path.")
    return place


def content_of(path: Path) -> bytes:
    """A whole file.

    Raises:
        DataError: it is missing or may not be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        found = error.strerror or str(error)
        raise DataError(str(path), "a readable file", found, "Unpack the archive again.") from error
