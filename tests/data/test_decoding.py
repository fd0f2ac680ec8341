"""Image files: what is decoded to what, and what is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from shaketable.core.errors import DataError, UnsafeFileError
from shaketable.data.decoding import Header, decoded, header


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["png", "bmp", "webp"])
def test_lossless_formats_are_exact(write, kind):
    array = write.images(7, 9, 3)
    content = write.encoded(array, kind)
    assert header(io.BytesIO(content), "x") == Header(3, 7, 9)
    image = decoded(content, "x", channels=3)
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), array)


def test_jpeg_is_pillows(write):
    content = write.encoded(write.images(16, 24, 3), "jpeg")
    expected = np.asarray(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(decoded(content, "x", channels=3).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("mode", "kind", "channels"),
    [("1", "png", 1), ("L", "png", 1), ("LA", "png", 1), ("P", "png", 3), ("RGBA", "png", 3), ("CMYK", "jpeg", 3)],
)
def test_other_modes_are_converted(write, mode, kind, channels):
    picture = Image.fromarray(write.images(6, 6, 3)).convert(mode)
    content = _saved(picture, kind)
    assert header(io.BytesIO(content), "x").channels == channels
    again = Image.open(io.BytesIO(content))
    for wanted, target in ((1, "L"), (3, "RGB")):
        image = decoded(content, "x", channels=wanted)
        assert image.shape == (wanted, 6, 6)
        expected = np.asarray(again.convert(target)).reshape(6, 6, wanted)
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)


BAD = {
    "cut JPEG": lambda w: w.encoded(w.images(64, 64, 3), "jpeg")[:700],
    "cut PNG": lambda w: w.encoded(w.images(64, 64, 3), "png")[:-3000],
    "damaged PNG": lambda w: w.encoded(w.images(64, 64, 3), "png").replace(b"IDAT", b"IDAT\0\0", 1),
    "cut WebP": lambda w: w.encoded(w.images(64, 64, 3), "webp")[:500],
    "HTML": lambda w: b"<!DOCTYPE html><html>not found</html>",
    "empty": lambda w: b"",
    "GIF": lambda w: _saved(Image.new("L", (4, 4)), "gif"),
    "TIFF": lambda w: _saved(Image.new("L", (4, 4)), "tiff"),
    "16 bits": lambda w: _saved(Image.fromarray(np.full((4, 4), 4000, np.uint16)), "png"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_decoded_is_named(write, case):
    with pytest.raises(DataError, match=r"folder/cat\.jpg") as caught:
        decoded(BAD[case](write), "folder/cat.jpg", channels=3)
    assert caught.value.argument == "folder/cat.jpg"


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (9000, 9000)])
def test_decompression_bombs_are_refused_by_their_header(width, height):
    content = _png(width, height)
    with pytest.raises(UnsafeFileError, match="pixels"):
        header(io.BytesIO(content), "bomb.png")
    with pytest.raises(UnsafeFileError, match=r"bomb\.png"):
        decoded(content, "bomb.png", channels=3)
