"""From the name of an architecture to the function that makes its network."""

from collections.abc import Callable
from typing import cast

from torch import nn

from shaketable.core.errors import ModelError
from shaketable.plugins import load, names_code, nearest

from .architectures import ARCHITECTURES


def find_factory(name: str) -> Callable[..., nn.Module]:
    """The function that makes an architecture's network. `module:name` and `file.py:name` import, hence run, that code.

    Your own factory is called with those of `channels`, `classes` and `size` that its signature names, and the spec's
    arguments.

    Raises:
        ModelError: nothing of that name.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    check_name(name)
    found = load(name, "architecture", error=ModelError)
    if not callable(found):
        raise ModelError("architecture", "a function or class", f"{name}, a {type(found).__name__}", "Name a factory.")
    return cast(Callable[..., nn.Module], found)


def check_name(name: object) -> None:
    """Raises ModelError unless the name is an architecture of ours or may be one of the user's."""
    if not isinstance(name, str) or (name not in ARCHITECTURES and not names_code(name)):
        expected = f"one of {', '.join(ARCHITECTURES)}, module:name or file.py:name"
        raise ModelError("architecture", expected, repr(name), nearest(name, ARCHITECTURES))
