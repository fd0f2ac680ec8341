"""The typed errors."""

import copy
import pickle

import pytest

from shaketable.core import errors

TYPES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ShaketableError)]


def test_all_of_them_are_here() -> None:
    assert len(TYPES) >= 9


@pytest.mark.parametrize("kind", TYPES)
def test_an_error_is_a_value_error_with_four_facts(kind: type[errors.ShaketableError]) -> None:
    error = kind("radius", "a number >= 0", "-1", "Give the size.")
    assert isinstance(error, ValueError)
    assert str(error) == "radius: expected a number >= 0, found -1. Give the size."
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(same) is kind
        assert str(same) == str(error)
        assert (same.argument, same.expected, same.found, same.remedy) == (
            "radius", "a number >= 0", "-1", "Give the size."
        )  # fmt: skip
