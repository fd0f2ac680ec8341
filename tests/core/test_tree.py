"""Arithmetic on trees."""

import pytest
import torch

from shaketable import core as st
from shaketable.core import tree

ONE = {"b": torch.ones(2), "a": {"c": torch.zeros(1, 2), "d": torch.full((3,), 2.0)}}


def test_leaves_and_rebuild_are_inverse() -> None:
    parts = tree.leaves(ONE)
    assert [len(part) for part in parts] == [2, 1, 3]
    again = tree.rebuild(ONE, [part + 1 for part in parts])
    assert list(again) == ["b", "a"]
    assert again["a"]["d"].tolist() == [3, 3, 3]
    assert tree.leaves(torch.ones(1))[0].tolist() == [1]


def test_map_take_and_add() -> None:
    assert tree.add(ONE, ONE)["a"]["d"].tolist() == [4, 4, 4]
    rows = tree.take({"x": torch.arange(3), "y": torch.arange(6).reshape(3, 2)}, torch.tensor([2, 0]))
    assert rows["x"].tolist() == [2, 0]
    assert rows["y"].tolist() == [[4, 5], [0, 1]]
    assert tree.map_leaves(torch.mul, {"a": torch.tensor([2.0])}, {"a": torch.tensor([3.0])})["a"].tolist() == [6]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (torch.ones(2), "start"),
        ({"b": torch.ones(2)}, "start"),
        ({"b": torch.ones(3), "a": ONE["a"]}, r"start\['b'\]"),
        ({"b": torch.ones(2), "a": {"c": torch.ones(1, 2), "d": 3}}, r"start\['a'\]\['d'\]"),
    ],
)
def test_require_alike_names_the_part(other: object, named: str) -> None:
    with pytest.raises(st.InputError, match=named):
        tree.require_alike("start", other, ONE)
    tree.require_alike("start", ONE, ONE)


def test_ordinary_is_detached_and_can_be_saved_by_autograd() -> None:
    grown = torch.ones(2, requires_grad=True) * 2
    assert not tree.ordinary(grown).requires_grad
    assert tree.ordinary(grown).data_ptr() == grown.data_ptr()
    with torch.inference_mode():
        frozen = torch.ones(2)
        inside = tree.ordinary(frozen)
    for found in (inside, tree.ordinary(frozen)):
        assert not found.is_inference()
        assert found.tolist() == [1, 1]
