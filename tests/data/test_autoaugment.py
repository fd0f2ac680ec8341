"""AutoAugment over Kornia: drawn from the generator alone, one sub-policy an image, images in and images out."""

import random
import subprocess
import sys
from typing import Any, get_args

import numpy as np
import pytest
import torch

from shaketable.core.errors import InputError
from shaketable.data import AutoAugment
from shaketable.data.autoaugment import Policy

pytest.importorskip("kornia", reason="needs the extra 'augment'")


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(n: int, c: int = 3, side: int = 16) -> torch.Tensor:
    """Smooth pictures, each its own, from black to white."""
    coarse = torch.rand(n, c, 4, 4, generator=_generator(n))
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").clamp(0, 1)


@pytest.mark.parametrize("policy", get_args(Policy))
def test_the_generator_decides_and_nothing_global_moves(policy):
    x, augment = _images(32), AutoAugment(policy)
    before, numpy_state = x.clone(), np.random.get_state()
    state, python_state = torch.get_rng_state(), random.getstate()
    first, again, other = (augment(x, _generator(seed)) for seed in (0, 0, 1))
    torch.manual_seed(5)
    moved = augment(x, _generator(0))
    torch.set_rng_state(state)
    assert torch.equal(first, again)
    assert torch.equal(first, moved)
    assert not torch.equal(first, other)
    assert torch.equal(x, before)
    augment(x, _generator(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])  # pyright: ignore[reportArgumentType]


def test_a_second_batch_from_one_generator_is_another_draw():
    x, generator = _images(16), _generator(0)
    assert not torch.equal(AutoAugment()(x, generator), AutoAugment()(x, generator))


def test_what_is_drawn_from_the_generator_does_not_depend_on_the_images():
    states = []
    for x, policy in ((_images(8), "cifar10"), (torch.zeros(8, 1, 5, 9), "svhn")):
        generator = _generator(4)
        AutoAugment(policy)(x, generator)
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1])


@pytest.mark.parametrize("policy", get_args(Policy))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_dtype_and_range_are_kept(policy, dtype, channels):
    x = _images(40, channels).to(dtype)
    y = AutoAugment(policy)(x, _generator(0))
    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)
    assert torch.isfinite(y).all()
    assert 0 <= y.min() < y.max() <= 1
    assert y.is_contiguous()
    assert AutoAugment(policy)(x[:0], _generator(0)).shape == (0, channels, 16, 16)
    assert AutoAugment(policy)(x[:1], _generator(0)).shape == (1, channels, 16, 16)


@pytest.mark.parametrize("policy", get_args(Policy))
def test_every_image_draws_its_own_sub_policy(policy):
    """Copies of one image become many different ones; one sub-policy for them all would leave a handful."""
    y = AutoAugment(policy)(_images(1).expand(200, 3, 16, 16), _generator(0))
    assert len({image.numpy().tobytes() for image in y}) > 60


def test_every_image_stays_in_its_place():
    """Where both operations of an image's sub-policy were skipped it is unchanged, bit for bit, at its own row."""
    x = _images(400)
    y = AutoAugment("cifar10")(x, _generator(0))
    unchanged = (y == x).flatten(1).all(1).float().mean().item()
    assert 0.1 < unchanged < 0.5
    distances = torch.cdist(y.flatten(1) - y.flatten(1).mean(1, True), x.flatten(1) - x.flatten(1).mean(1, True))
    assert (distances.argmin(1) == torch.arange(400)).float().mean() > 0.5


def test_grey_images_become_what_grey_pictures_in_colour_become():
    x = _images(60, 1)
    grey, colour = AutoAugment()(x, _generator(0)), AutoAugment()(x.expand(-1, 3, -1, -1), _generator(0))
    assert torch.equal(grey, colour.mean(1, keepdim=True))


BAD: list[tuple[Any, str]] = [
    (torch.rand(3, 8, 8), "shape"),
    (torch.rand(2, 2, 8, 8), "2 channels"),
    (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "uint8"),
]


@pytest.mark.parametrize(("x", "word"), BAD)
def test_bad_images_are_refused(x, word):
    with pytest.raises(InputError, match=word):
        AutoAugment()(x, _generator(0))


@pytest.mark.parametrize(("policy", "word"), [("cifar", "Did you mean 'cifar10'"), ("", "policy"), (None, "policy")])
def test_unknown_policies_are_refused(policy, word):
    with pytest.raises(InputError, match=word):
        AutoAugment(policy)


WITHOUT = """
import sys
sys.modules["kornia"] = None  # what Python takes for a package that is not there
from shaketable.core.errors import ConfigError
from shaketable.data import AutoAugment
try:
    AutoAugment()
except ConfigError as error:
    print(error)
"""


@pytest.mark.full
def test_without_kornia_the_error_names_the_extra():
    made = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=120, check=True)
    assert "pip install 'shaketable[augment]'" in made.stdout


def test_importing_the_room_does_not_import_kornia():
    code = "import sys, shaketable.data; assert 'kornia' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
