"""Fit: size, crop and channels, against Pillow."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as s
from PIL import Image

from shaketable.core.errors import DataError, InputError
from shaketable.data import Fit


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0)


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 20), (20, 20, 48), (37, 37, 8), (9, 9, 9)])
def test_resizing_is_pillows_bicubic_to_one_grey_level(write, height, width, size):
    array = write.images(height, width, 3)
    ours = Fit(size=size).apply(_tensor(array))[0].permute(1, 2, 0).numpy()
    pillows = np.asarray(Image.fromarray(array).resize((size, size), Image.Resampling.BICUBIC))
    assert np.abs(ours.astype(int) - pillows).max() <= 1


def test_the_shorter_side_is_resized_and_the_centre_cut_out(write):
    array = write.images(40, 60, 3)
    ours = Fit(size=14, crop=0.7).apply(_tensor(array))[0].permute(1, 2, 0).numpy()
    whole = Image.fromarray(array).resize((30, 20), Image.Resampling.BICUBIC)
    assert np.abs(ours.astype(int) - np.asarray(whole.crop((8, 3, 22, 17)))).max() <= 1


def test_grey_is_pillows_luma_exactly(write):
    array = write.images(50, 50, 3)
    ours = Fit(channels=1).apply(_tensor(array))[0, 0].numpy()
    np.testing.assert_array_equal(ours, np.asarray(Image.fromarray(array).convert("L")))


def test_grey_becomes_colour_by_repetition(write):
    grey = torch.from_numpy(write.images(2, 1, 5, 5))
    colour = Fit(channels=3).apply(grey)
    assert colour.shape == (2, 3, 5, 5)
    assert all(torch.equal(colour[:, i], grey[:, 0]) for i in range(3))


@settings(max_examples=30, deadline=None)
@given(s.integers(0, 255), s.integers(2, 40), s.integers(2, 40), s.integers(1, 40), s.floats(0.3, 1))
def test_a_constant_image_stays_constant_and_gets_the_size(value, height, width, size, crop):
    image = torch.full((1, 3, height, width), value, dtype=torch.uint8)
    fit = Fit(size=size, crop=crop)
    assert torch.equal(fit.apply(image), torch.full((1, 3, size, size), value, dtype=torch.uint8))
    assert fit.shape_of(3, height, width) == (3, size, size)
    real = fit.apply(image.float() / 255)
    assert real.dtype == torch.float32
    torch.testing.assert_close(real, torch.full((1, 3, size, size), value / 255), atol=1e-6, rtol=0)


@settings(max_examples=30, deadline=None)
@given(s.integers(0, 2**32), s.integers(1, 20))
def test_floats_stay_in_the_unit_interval(seed, size):
    x = torch.rand(2, 3, 11, 9, generator=torch.Generator().manual_seed(seed)).round()
    y = Fit(size=size, channels=1).apply(x)
    assert y.shape == (2, 1, size, size)
    assert 0 <= y.min() <= y.max() <= 1


def test_nothing_is_done_where_nothing_is_asked(write):
    images = torch.from_numpy(write.images(2, 3, 8, 8))
    assert Fit(size=8, channels=3).apply(images) is images
    assert Fit().label == ""
    assert Fit(size=8, channels=1, crop=0.5).label == " 8 px, crop 0.5, 1 channel"


def test_many_images_are_fitted_as_one_by_one(write):
    images = torch.from_numpy(write.images(300, 1, 6, 6))
    fit = Fit(size=4)
    assert torch.equal(fit.apply(images)[[0, 299]], torch.cat([fit.apply(images[:1]), fit.apply(images[-1:])]))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"size": 0}, "size"),
        ({"size": 9000}, "size"),
        ({"size": 2.0}, "size"),
        ({"size": True}, "size"),
        ({"channels": 2}, "channels"),
        ({"channels": True}, "channels"),
        ({"crop": 0.0, "size": 3}, "crop"),
        ({"crop": 1.1, "size": 3}, "crop"),
        ({"crop": float("nan"), "size": 3}, "crop"),
        ({"crop": "half", "size": 3}, "crop"),
        ({"crop": 0.5}, "size"),
    ],
)
def test_bad_values_are_refused(arguments, word):
    with pytest.raises(InputError, match=word):
        Fit(**arguments)


def test_a_thin_strip_cannot_explode():
    with pytest.raises(DataError, match="pixels"):
        Fit(size=4000).apply(torch.zeros(1, 1, 1, 60_000, dtype=torch.uint8))
