"""Generators by name, and the sheltered global state."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from shaketable import core as st
from shaketable.core.seeds import own_random_state


def test_the_streams_are_fixed_for_ever() -> None:
    """A change here would change every published number: it needs a new major version."""
    assert st.generator(0).initial_seed() == 0x334DA612649AB875
    assert st.generator(7, "attack", 3, 1).initial_seed() == 0x39728FA8F2EF9134
    assert torch.rand(2, generator=st.generator(0)).tolist() == [0.05380171537399292, 0.059579670429229736]


paths = some.lists(some.integers(-5, 5) | some.sampled_from(["a", "b", "ab", "1", ""]), max_size=3)


@settings(deadline=None, derandomize=True)
@given(some.integers(0, 3), paths, some.integers(0, 3), paths)
def test_other_paths_give_other_streams(a: int, one: list[int | str], b: int, two: list[int | str]) -> None:
    same = st.generator(a, *one).initial_seed() == st.generator(b, *two).initial_seed()
    assert same == ((a, *one) == (b, *two))


def test_a_numpy_integer_is_the_integer() -> None:
    assert st.generator(int(np.int64(5)), 2).initial_seed() == st.generator(np.int64(5), np.int32(2)).initial_seed()
    assert st.generator(1).initial_seed() != st.generator("1").initial_seed()  # pyright: ignore


@pytest.mark.parametrize("path", [(1.0,), (None,), (0, 2.5), (0, ("a",))])
def test_what_names_no_stream_is_an_error(path: tuple[object, ...]) -> None:
    with pytest.raises(st.InputError, match="seed: expected integers"):
        st.generator(*path)  # pyright: ignore


def test_the_global_state_is_given_back_and_no_generator_is_consumed() -> None:
    source, before = st.generator(1), torch.get_rng_state()
    own = source.get_state()
    drawn = []
    for _ in range(2):
        with own_random_state([torch.ones(1)], source):
            drawn.append(torch.rand(3))
    with own_random_state([], st.generator(2)):
        other = torch.rand(3)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], other)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(source.get_state(), own)


def test_after_an_exception_too() -> None:
    before = torch.get_rng_state()
    with pytest.raises(KeyError), own_random_state([], st.generator(2)):
        raise KeyError(float(torch.rand(1)))
    assert torch.equal(torch.get_rng_state(), before)


def test_other_devices_are_not_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.manual_seed would seed every accelerator of the machine, of which only the tensors' own are given back."""
    touched: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", touched.append)
    with own_random_state([torch.ones(1)], st.generator(2)):
        pass
    assert touched == []
