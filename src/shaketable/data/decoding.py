"""Image files, decoded under limits: PNG, JPEG, BMP and WebP, 8 bits a channel."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, final

import torch
from jaxtyping import UInt8
from torch import Tensor

from ..core.errors import DataError, InputError, UnsafeFileError
from ..plugins import nearest_file
from .fit import MAX_PIXELS

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_CHANNELS = {"1": 1, "L": 1, "LA": 1, "La": 1, "P": 3, "PA": 3, "RGB": 3, "RGBA": 3, "RGBX": 3, "CMYK": 3, "YCbCr": 3}


@final
@dataclass(frozen=True)
class Header:
    """What an image file says of itself before it is decoded: channels (1 or 3), height and width in pixels."""

    channels: int
    height: int
    width: int


def header(stream: IO[bytes], where: str) -> Header:
    """Read an image file's header: the first few kilobytes, as a rule; nothing is decoded.

    Raises:
        DataError: no image of the four formats, or one with 16 bits or floats a channel.
        UnsafeFileError: more pixels than `MAX_PIXELS`: a decompression bomb.

    Checked by tests/data/test_decoding.py.
    """
    with _opened(stream, where) as image:
        return header_of(image, where)


def image_at(path: str | Path, *, channels: int) -> UInt8[Tensor, "c h w"]:
    """The image in a file; see `decoded`.

    Raises:
        InputError: no such file, or one that cannot be read.
        DataError, UnsafeFileError: see `decoded`.

    Checked by tests/attacks/test_regions.py.
    """
    place = Path(path)
    try:
        content = place.read_bytes()
    except OSError as error:
        found = error.strerror or type(error).__name__
        raise InputError("path", f"an image at {place}", found, nearest_file(place)) from error
    return decoded(content, str(place), channels=channels)


def decoded(content: bytes, where: str, *, channels: int) -> UInt8[Tensor, "c h w"]:
    """Decode an image file to 1 (grey) or 3 (RGB) channels.

    Colour becomes grey by ITU-R 601 luma; transparency is dropped; an EXIF orientation is not applied; of an animation
    the first picture is taken: all as torchvision's ``ImageFolder`` does, so that numbers can be compared.

    Raises:
        DataError: a file that is damaged or cut off, named; or what `header` refuses.
        UnsafeFileError: a decompression bomb; before it is decoded.

    Checked by tests/data/test_decoding.py.
    """
    with _opened(io.BytesIO(content), where) as image:
        return pixels_of(image, channels)


def pixels_of(picture: Any, channels: int) -> UInt8[Tensor, "c h w"]:
    """The pixels of a Pillow image, as 1 or 3 channels."""
    picture = picture.convert("L" if channels == 1 else "RGB")
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, channels).permute(2, 0, 1)


def header_of(picture: Any, where: str) -> Header:
    """The header of a Pillow image, with the same limits as a file's."""
    _check(picture.width, picture.height, picture.mode, where)
    return Header(_CHANNELS[picture.mode], picture.height, picture.width)


@contextmanager
def _opened(stream: IO[bytes], where: str) -> Iterator[Any]:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's bomb warning comes later than our own limit
            with Image.open(stream, formats=_FORMATS) as image:
                header_of(image, where)
                yield image
    except (DataError, UnsafeFileError):
        raise
    except Image.DecompressionBombError as error:
        raise _bomb(where, "an image that Pillow calls a decompression bomb") from error
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        reason = "no image in one of these formats" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        expected = f"a whole {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} image"
        found = reason or type(error).__name__
        raise DataError(where, expected, found, "Replace the file, or remove it from the data set.") from error


def _check(width: int, height: int, mode: str, where: str) -> None:
    if width * height > MAX_PIXELS:
        raise _bomb(where, f"{width} x {height} pixels")
    if mode not in _CHANNELS:
        remedy = "Convert it to 8 bits a channel; how to scale its values is a choice only you can make."
        raise DataError(where, "8 bits a channel", f"Pillow's mode {mode}", remedy)


def _bomb(where: str, found: str) -> UnsafeFileError:
    expected = f"an image of at most {MAX_PIXELS} pixels"
    return UnsafeFileError(where, expected, found, "Remove the file, or shrink it if it is genuine.")
