"""One text for one value: JSON that is the same for equal values and gives each back to the bit."""

import json
import math
from collections.abc import Mapping
from typing import Any

from ..core.errors import InputError

_NUMBER = "$number"
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def plain(value: Any, argument: str) -> Any:
    """A copy of a value made of None, bool, int, float, str, list and dict alone: what `read(text(value))` gives.

    Tuples become lists and mappings dicts; the subclasses of numbers and texts (NumPy's float64, enumerations) become what
    they are a kind of.

    Args:
        argument: the name of the value, for errors.

    Raises:
        InputError: anything else (a tensor, a path, bytes), a key that is no text or begins with "$", a value within
            itself, a whole number of more than 4300 digits.
    """
    try:
        return read(text(value))
    except (TypeError, ValueError, RecursionError) as error:
        remedy = "Give None, booleans, numbers, texts, and lists and dicts of them: float(tensor), str(path)."
        raise InputError(argument, "a value that JSON holds", str(error)[:300], remedy) from error


def text(value: Any) -> str:
    """The canonical JSON of a value: keys sorted, no spaces, ASCII.

    1, 1.0 and true are three texts, and so are 0.0 and -0.0: what differs in kind may differ in meaning. Floats are
    written by `repr`, hence read back to the bit. JSON has no NaN and no infinities: they are written as objects,
    {"$number": "NaN"}, {"$number": "Infinity"}, {"$number": "-Infinity"}; every NaN is the same NaN.

    Raises:
        TypeError, ValueError, RecursionError: see `plain`.

    Checked by tests/runs/test_ledger.py (any value, there and back).
    """
    return json.dumps(_coded(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def read(content: str) -> Any:
    """The inverse of `text`.

    Raises:
        ValueError, RecursionError: it is no JSON, or has bare NaN, numbers too large for a float, or an unknown "$" key.
    """
    return json.loads(content, object_hook=_decoded, parse_constant=_refuse, parse_float=_finite)


def _coded(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_NUMBER: _word(value)}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list | tuple):
        return [_coded(item) for item in value]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key.startswith("$"):
                raise TypeError(f"the key {key!r}; keys are texts that do not begin with $")
        return {str(key): _coded(item) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} {str(value)[:80]}")


def _word(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _decoded(found: dict[str, Any]) -> Any:
    special = [key for key in found if key.startswith("$")]
    if not special:
        return found
    if list(found) != [_NUMBER] or found[_NUMBER] not in _WORDS:
        raise ValueError(f"an unknown key {special[0]!r}")
    return _WORDS[found[_NUMBER]]


def _refuse(name: str) -> float:
    raise ValueError(f"a bare {name}")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]}, which no float holds")
    return value
