"""The result of a measure: equality, the split by correctness, profiles' costs."""

from dataclasses import replace

import pytest
import torch

from shaketable.core import Calls
from shaketable.flatness.result import Flatness, Profile
from shaketable.stats import mean


def result(correct: list[bool]) -> Flatness:
    rises = [0.5, 1.0, -0.25, 2.0][: len(correct)]
    return Flatness(
        "robust average", mean([0.4, 0.6]), 1.5, torch.tensor(rises, dtype=torch.float64), torch.tensor(correct),
        (0.4, 0.6), len(correct), Calls(10, 5), {"xi": 0.5, "constant": 0.0},
    )  # fmt: skip


def test_split_gives_both_parts_with_their_counts() -> None:
    found = result([True, True, False, True])
    split = found.split()
    assert split.correct is not None
    assert split.incorrect is not None
    assert (split.correct.n, split.incorrect.n) == (3, 1)
    assert split.correct.value == pytest.approx(3.5 / 3)
    assert split.incorrect.value == -0.25
    whole = (split.correct.n * split.correct.value + split.incorrect.n * split.incorrect.value) / 4
    assert whole == pytest.approx(float(found.per_image.mean()))


@pytest.mark.parametrize("right", [True, False])
def test_an_empty_part_is_none(right: bool) -> None:
    split = result([right] * 4).split()
    empty, full = (split.incorrect, split.correct) if right else (split.correct, split.incorrect)
    assert empty is None
    assert full is not None
    assert full.n == 4


def test_results_are_equal_if_all_of_their_fields_are() -> None:
    one = result([True, False, True, True])
    assert one == result([True, False, True, True])
    assert one != result([True, True, True, True])
    assert one != replace(one, per_image=one.per_image + 1e-15)
    assert one != replace(one, draws=(0.4, 0.61))
    assert one != "robust average"
    assert not one.constant
    assert replace(one, facts={"constant": 1.0}).constant


def test_a_profile_counts_its_reference_once() -> None:
    own = Calls(10, 5)
    results = tuple(replace(result([True]), calls=own + Calls(k, k)) for k in (1, 2, 3))
    assert Profile((0.1, 0.2, 0.3), results, own).calls == Calls(10 + 6, 5 + 6)
