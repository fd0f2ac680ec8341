"""CropFlip: every image is a shifted, perhaps mirrored copy. Cutout: a square is covered. Chain: one after the other."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as s

from shaketable.core.errors import InputError
from shaketable.data import Chain, CropFlip, Cutout


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(n: int, c: int, h: int, w: int) -> torch.Tensor:
    return torch.rand(n, c, h, w, generator=_generator(n)) + 0.01


def _all_views(image: torch.Tensor, pad: int, flip: bool) -> list[torch.Tensor]:
    """Oracle: every crop of the padded image, and its mirror images, one after the other."""
    _, height, width = image.shape
    padded = torch.nn.functional.pad(image, (pad,) * 4)
    views = [padded[:, i : i + height, j : j + width] for i in range(2 * pad + 1) for j in range(2 * pad + 1)]
    return views + ([view.flip(2) for view in views] if flip else [])


@settings(max_examples=40, deadline=None)
@given(
    s.integers(1, 4),
    s.sampled_from([1, 3]),
    s.integers(1, 6),
    s.integers(1, 6),
    s.integers(0, 3),
    s.booleans(),
    s.integers(0, 99),
)
def test_every_image_is_one_of_its_views(n, c, h, w, pad, flip, seed):
    x = _images(n, c, h, w)
    before = x.clone()
    y = CropFlip(pad, flip)(x, _generator(seed))
    assert torch.equal(x, before)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.is_contiguous()
    for image, view in zip(x, y, strict=True):
        assert any(torch.equal(view, other) for other in _all_views(image, pad, flip))


def test_every_view_turns_up_about_equally_often():
    image = _images(1, 1, 4, 4)
    y = CropFlip(1)(image.expand(18_000, 1, 4, 4), _generator(0))
    views = torch.stack(_all_views(image[0], 1, True))
    counts = (y[:, None] == views).flatten(2).all(2).sum(0)
    assert counts.sum() == 18_000
    assert counts.min() > 850
    assert counts.max() < 1150


def test_images_have_places_of_their_own():
    image = _images(1, 3, 8, 8)
    y = CropFlip()(image.expand(50, 3, 8, 8), _generator(1))
    assert len({view.numpy().tobytes() for view in y}) > 30


@pytest.mark.parametrize("augment", [CropFlip(), Cutout(3), Chain([Cutout(3), CropFlip()])])
def test_the_seed_decides_and_the_global_generator_is_left_alone(augment):
    x, state = _images(5, 3, 8, 8), torch.get_rng_state()
    first, again, other = (augment(x, _generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_the_generator_ends_in_the_same_state_whatever_is_done():
    states = []
    for augment in (CropFlip(), CropFlip(flip=False), CropFlip(pad=2)):
        generator = _generator(0)
        augment(_images(4, 1, 5, 5), generator)
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_nothing_to_do_is_the_identity_and_an_empty_batch_is_fine():
    x = _images(3, 1, 5, 5)
    assert torch.equal(CropFlip(0, False)(x, _generator(0)), x)
    assert CropFlip()(x[:0], _generator(0)).shape == (0, 1, 5, 5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8])
def test_dtypes_are_kept(dtype):
    assert CropFlip()(torch.ones(2, 1, 4, 4, dtype=dtype), _generator(0)).dtype == dtype


@pytest.mark.parametrize(("pad", "flip"), [(-1, True), (1.0, True), (True, True), (4, 1), (4, None)])
def test_bad_values_are_refused(pad, flip):
    with pytest.raises(InputError):
        CropFlip(pad, flip)


@pytest.mark.parametrize("augment", [CropFlip(), Cutout(), Chain([CropFlip()])])
def test_bad_images_are_refused(augment):
    with pytest.raises(InputError, match="x"):
        augment(torch.rand(3, 8, 8), _generator(0))


@settings(max_examples=60, deadline=None)
@given(
    s.integers(0, 4), s.sampled_from([1, 3]), s.integers(1, 7), s.integers(1, 7), s.integers(1, 9), s.integers(0, 99)
)
def test_cutout_covers_one_square_about_a_pixel(n, c, h, w, size, seed):
    """Oracle: an image is one of those in which the square about some pixel is covered, cut off at the border."""
    x = _images(n, c, h, w)
    before = x.clone()
    y = Cutout(size, fill=0.0)(x, _generator(seed))
    assert torch.equal(x, before)
    assert y.shape == x.shape
    for image, covered in zip(x, y, strict=True):
        views = []
        for i in range(h):
            for j in range(w):
                view, top, left = image.clone(), i - size // 2, j - size // 2
                view[:, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0.0
                views.append(view)
        assert any(torch.equal(covered, view) for view in views)


@pytest.mark.parametrize("size", [1, 8, 9, 16, 64])
def test_the_covered_share_is_that_of_uniform_centres(size):
    side, n = 32, 4000
    covered = (Cutout(size, fill=0.0)(torch.ones(n, 1, side, side), _generator(0)) == 0).flatten(1).sum(1).double()
    spans = [min(i - size // 2 + size, side) - max(i - size // 2, 0) for i in range(side)]
    mean, square = sum(spans) / side, sum(v * v for v in spans) / side
    deviation = math.sqrt(square**2 - mean**4)
    assert abs(covered.mean().item() - mean**2) <= 4 * deviation / math.sqrt(n) + 1e-9
    assert covered.max() == min(size, side) ** 2
    if 1 < size <= side:
        assert covered.min() < 0.35 * size**2  # a corner: the border cuts the square, and does not push it inside


def test_cutout_fills_with_one_number_or_one_a_channel():
    x = torch.ones(5, 3, 4, 4)
    assert torch.equal(
        Cutout(9, fill=(0.1, 0.2, 0.3))(x, _generator(0))[:, :, 2, 2], torch.tensor([[0.1, 0.2, 0.3]] * 5)
    )
    assert (Cutout(9)(x, _generator(0))[:, :, 2, 2] == 0.5).all()
    assert Cutout(fill=[0.1, 0.2, 0.3]) == Cutout(fill=(0.1, 0.2, 0.3))
    with pytest.raises(InputError, match="3 numbers for 1 channels"):
        Cutout(fill=(0.1, 0.2, 0.3))(x[:, :1], _generator(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_cutout_keeps_dtypes_and_refuses_whole_numbers(dtype):
    assert Cutout()(torch.ones(2, 1, 4, 4, dtype=dtype), _generator(0)).dtype == dtype
    with pytest.raises(InputError, match="uint8"):
        Cutout()(torch.ones(2, 1, 4, 4, dtype=torch.uint8), _generator(0))


BAD_CUTOUTS: list[dict[str, Any]] = [
    {"size": 0}, {"size": 8.0}, {"size": True}, {"fill": 1.5}, {"fill": -0.1}, {"fill": "grey"}, {"fill": ()},
    {"fill": (0.5, math.nan)}, {"fill": True}, {"fill": None},
]  # fmt: skip


@pytest.mark.parametrize("values", BAD_CUTOUTS)
def test_bad_cutouts_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        Cutout(**values)


def test_a_chain_is_its_parts_one_after_the_other_from_one_generator():
    x, together, apart = _images(6, 3, 9, 9), _generator(3), _generator(3)
    expected = Cutout(3)(CropFlip(2)(x, apart), apart)
    assert torch.equal(Chain([CropFlip(2), Cutout(3)])(x, together), expected)
    assert torch.equal(together.get_state(), apart.get_state())
    assert Chain([CropFlip(2), Cutout(3)]) == Chain((CropFlip(2), Cutout(3)))
    assert not torch.equal(Chain([Cutout(3), CropFlip(2)])(x, _generator(3)), expected)


@pytest.mark.parametrize("parts", [[], (), [CropFlip(), None], [CropFlip], "cutout", None, CropFlip()])
def test_bad_chains_are_refused(parts):
    with pytest.raises(InputError, match="parts"):
        Chain(parts)
