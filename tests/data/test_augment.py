"""CropFlip: every image is a shifted, perhaps mirrored copy, drawn from the generator."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as s

from shaketable.core.errors import InputError
from shaketable.data import CropFlip


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


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    x, state = _images(5, 3, 8, 8), torch.get_rng_state()
    first, again, other = (CropFlip()(x, _generator(seed)) for seed in (0, 0, 1))
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


def test_bad_images_are_refused():
    with pytest.raises(InputError, match="x"):
        CropFlip()(torch.rand(3, 8, 8), _generator(0))
