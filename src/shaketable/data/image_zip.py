"""Zips of image folders, read in place."""

import zipfile
from pathlib import Path

from .archives import Zip
from .dataset import Dataset
from .fit import Fit
from .image_folder import dataset_in, parts_in
from .layout import Part


def recognises(source: str) -> bool:
    """Whether the source is a zip file (NumPy's .npz are zips too, and asked first)."""
    path = Path(source)
    return path.is_file() and (path.suffix.lower() == ".zip" or zipfile.is_zipfile(path))


def parts(source: str) -> tuple[Part, ...]:
    """The parts that the names tell of; none for a zip without train/ and test/."""
    return parts_in(Zip(Path(source)).listing(), source)


def load(source: str, wanted: tuple[Part, ...], fit: Fit) -> Dataset:
    """Open a zip with the layout of an image folder; nothing is extracted, images are decoded when a batch is read.

    Raises:
        DataError: as for image folders; a damaged or encrypted archive; a file whose checksum is wrong, when it is read.
        UnsafeFileError: a name that leads out of the archive ("../", absolute), overlapping or absurdly large files.

    Checked by tests/data/test_image_zip.py.
    """
    archive = Zip(Path(source))
    return dataset_in(archive, archive.listing(), wanted, fit)
