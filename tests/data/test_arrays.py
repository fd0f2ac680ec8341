"""from_arrays: layouts, dtypes and ranges."""

from typing import Any

import numpy as np
import pytest
import torch

from shaketable.core.errors import DataError
from shaketable.data import Fit, from_arrays

LABELS = [0, 1, 0, 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_every_layout_gives_the_same_images(write, channels):
    first = write.images(4, channels, 6, 5)
    expected = from_arrays(first, LABELS)
    layouts = [first.transpose(0, 2, 3, 1), torch.from_numpy(first), np.asfortranarray(first), first.astype(np.int64)]
    layouts += [first[:, 0]] if channels == 1 else []
    layouts += [first.astype(">u2"), first.tolist(), first[:, :, ::-1][:, :, ::-1]]
    for images in layouts:
        assert from_arrays(images, LABELS).fingerprint == expected.fingerprint
    assert expected.pixels.shape == (channels, 6, 5)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4", np.longdouble])
def test_floats_become_float32(dtype):
    x = from_arrays(np.full((4, 3, 3), 0.25, dtype), LABELS).batch([0]).x
    assert x.dtype == torch.float32
    assert (x == 0.25).all()


def test_nothing_is_shared_with_the_arrays_given():
    for images in (
        np.full((4, 3, 3), 7, np.uint8),
        torch.full((4, 3, 3), 7, dtype=torch.uint8),
        torch.full((4, 1, 5, 5), 0.5),
    ):
        data = from_arrays(images, LABELS)
        before = data.batch([0]).x
        images[:] = 0
        assert torch.equal(data.batch([0]).x, before)


def test_labels_and_names():
    images = np.full((4, 3, 3), 9, np.uint8)
    assert from_arrays(images, np.array([[0], [4], [1], [0]], np.uint8)).classes == ("0", "1", "2", "3", "4")
    assert from_arrays(images, LABELS, classes=["x", "y", "z"]).classes == ("x", "y", "z")


def _images(value: float = 9, dtype: Any = np.uint8, shape: tuple[int, ...] = (4, 5, 5)) -> np.ndarray:
    return np.full(shape, value, dtype)


BAD = {
    "NaN": (_images(np.nan, np.float32), LABELS, "NaN"),
    "infinite": (_images(np.inf, np.float32), LABELS, "infinite"),
    "minus infinite": (_images(-np.inf, np.float32), LABELS, "infinite"),
    "negative": (_images(-0.01, np.float32), LABELS, "normalisation"),
    "floats in 0..255": (_images(200.0, np.float32), LABELS, "Divide by 255"),
    "just above 1": (_images(1.0001, np.float32), LABELS, "Divide by 255"),
    "just below 0": (_images(-1e-6, np.float32), LABELS, "normalisation"),
    "floats above 255": (_images(300.0, np.float32), LABELS, "Scale the pixels"),
    "float64 beyond float32": (_images(1e300, np.float64), LABELS, "infinite"),
    "whole numbers above 255": (_images(256, np.int32), LABELS, r"0\.\.255"),
    "negative whole numbers": (_images(-1, np.int32), LABELS, r"0\.\.255"),
    "binary uint8": (_images(1), LABELS, "binary"),
    "bool": (_images(True, bool), LABELS, "bool"),
    "complex": (_images(1, complex), LABELS, "complex"),
    "objects": (_images(1, object), LABELS, "object"),
    "texts": (np.array(["a"] * 4), LABELS, "U1"),
    "ragged": ([[[1]], [[1, 2]]], [0, 1], "unequal"),
    "huge uint64": (_images(2**64 - 1, np.uint64), LABELS, "int64"),
    "flat vectors": (_images(shape=(4, 9)), LABELS, "shape"),
    "two channels": (_images(shape=(4, 2, 9, 9)), LABELS, "channels"),
    "four channels": (_images(shape=(4, 9, 9, 4)), LABELS, "channels"),
    "ambiguous": (_images(shape=(4, 3, 9, 3)), LABELS, "ambiguous"),
    "no images": (_images(shape=(0, 3, 3)), [], "at least one"),
    "no pixels": (_images(shape=(4, 0, 3)), LABELS, "at least one"),
    "too few labels": (_images(), LABELS[:3], "3 labels for 4 images"),
    "negative label": (_images(), [0, -1, 0, 0], "labels from -1"),
    "one-hot": (_images(), np.eye(4, dtype=int), "argmax"),
    "float labels": (_images(), [0.0, 1.0, 0.0, 1.0], "whole numbers"),
    "absurd label": (_images(), [0, 1, 2, 10**9], "1000000000"),
    "text labels": (_images(), ["a", "b", "a", "b"], "numbers"),
    "scalar label": (_images(), 3, "shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused(case):
    images, labels, word = BAD[case]
    with pytest.raises(DataError, match=word):
        from_arrays(images, labels)


@pytest.mark.parametrize("case", ["negative", "floats in 0..255", "NaN"])
@pytest.mark.parametrize("fit", [Fit(size=2), Fit(channels=1), Fit(channels=3)])
def test_resizing_does_not_hide_a_bad_range(case, fit):
    images, labels, word = BAD[case]
    with pytest.raises(DataError, match=word):
        from_arrays(np.repeat(images[:, None], 3, 1) if fit.channels == 1 else images, labels, fit=fit)


def test_labels_beyond_the_names_are_refused():
    with pytest.raises(DataError, match="labels from 0 to 1"):
        from_arrays(_images(), LABELS, classes=["only"])
    with pytest.raises(DataError, match="classes"):
        from_arrays(_images(), LABELS, classes="ab")
