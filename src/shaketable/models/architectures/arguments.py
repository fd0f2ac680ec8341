"""What the architectures' arguments may be: checked once, with errors that name the argument.

The upper limits are far above any published network; they keep a hostile specification in a file from asking for
millions of layers.
"""

import math
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from shaketable.core.errors import ModelError
from shaketable.plugins import nearest

T = TypeVar("T")

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "leaky_relu": nn.LeakyReLU,  # slope .01 below 0
}

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(math.gcd(8, channels), channels),
}


def whole(argument: str, value: object, low: int, high: int) -> int:
    """A whole number within [low, high]; raises ModelError."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ModelError(argument, f"a whole number from {low} to {high}", repr(value), f"Change {argument}.")
    return value


def multiple(argument: str, value: object, of: int, high: int) -> int:
    """A positive multiple of `of`, at most `high`; raises ModelError."""
    number = whole(argument, value, of, high)
    if number % of:
        raise ModelError(argument, f"a multiple of {of}", str(number), f"Use {number - number % of}.")
    return number


def probability(argument: str, value: object) -> float:
    """A number in [0, 1), for dropout; raises ModelError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ModelError(argument, "a number in [0, 1)", repr(value), f"Change {argument}; 0 switches it off.")
    return float(value)


def choice(argument: str, value: object, options: dict[str, T]) -> T:
    """The option of that name; raises ModelError, which suggests the nearest one."""
    if not isinstance(value, str) or value not in options:
        raise ModelError(argument, " or ".join(map(repr, options)), repr(value), nearest(value, options))
    return options[value]
