"""What a pickle of weights may name and call, and what each call makes, as inert values with their sizes."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

STORAGES: dict[str, int] = {
    **{f"torch.{n}Storage": 8 for n in ("Double", "Long", "ComplexFloat")},
    **{f"torch.{n}Storage": 4 for n in ("Float", "Int")},
    **{f"torch.{n}Storage": 2 for n in ("Half", "BFloat16", "Short")},
    **{f"torch.{n}Storage": 1 for n in ("Byte", "Char", "Bool")},
    "torch.ComplexDoubleStorage": 16,
    "torch.storage.UntypedStorage": 1,
}
"""The storage types that a weights file may name, with the bytes of an element."""

DTYPES: dict[str, int] = {
    **{f"torch.{n}": 1 for n in ("uint8", "int8", "bool", "float8_e4m3fn", "float8_e5m2")},
    **{f"torch.{n}": 1 for n in ("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")},
    **{f"torch.{n}": 2 for n in ("int16", "uint16", "float16", "bfloat16")},
    **{f"torch.{n}": 4 for n in ("int32", "uint32", "float32", "complex32")},
    **{f"torch.{n}": 8 for n in ("int64", "uint64", "float64", "complex64")},
    "torch.complex128": 16,
}
"""torch's number types, with the bytes of an element."""

TENSORS = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
SCALARS = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
SUBCLASSED = "torch._tensor._rebuild_from_type_v2"
TYPES = {"torch.Tensor", "torch.nn.parameter.Parameter"}
"""Types that may be named as an argument of `SUBCLASSED` (a tensor with attributes), but not called."""

PLAIN = {"torch.device", "torch.serialization._get_layout", "builtins.set", "builtins.complex"}
CALLED = TENSORS | PARAMETERS | SCALARS | PLAIN
CALLED |= {SUBCLASSED, "torch.Size", "collections.OrderedDict", "numpy.dtype", "_codecs.encode"}
"""The functions that a weights file may call. `bytearray`, `torch.Tensor` and calls of storage types are not among them:
they allocate whatever number the file names."""

NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


@dataclass(frozen=True)
class Name:
    """A function or class that the pickle names, "module.attribute"."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A storage that the file declares: its key, how many elements, and the bytes of one."""

    key: str
    numel: int
    itemsize: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.itemsize


@dataclass(frozen=True)
class TensorEntry:
    """A tensor that the file declares: its shape and the bytes of an element."""

    shape: tuple[int, ...]
    itemsize: int


@dataclass(frozen=True)
class Made:
    """A harmless value of another kind (a device, a number of NumPy's, ...)."""

    kind: str


class RefusedError(Exception):
    """A call or value that no file of weights needs; the text says what it was."""


DTYPE = Made("numpy.dtype")


def call(function: Any, arguments: Any, limit: int) -> Any:
    """What a pickle's call makes, as an inert value.

    Args:
        function: a `Name`, if the pickle is honest.
        arguments: a tuple of inert values.
        limit: the most bytes that a tensor may declare.

    Raises:
        RefusedError: the function is not on the list, or its arguments are not what it is for.
    """
    if not isinstance(function, Name) or function.name not in CALLED or not isinstance(arguments, tuple):
        raise RefusedError(f"a call of {getattr(function, 'name', 'something that is no function')}")
    name = function.name
    if name in TENSORS:
        return _tensor(name, arguments, limit)
    if name in PARAMETERS:
        return arguments[0]
    if name == SUBCLASSED:
        return _with_attributes(arguments, limit)
    return _OTHERS[name](arguments) if name in _OTHERS else Made(name)


def pairs_into(target: Any, pairs: Iterable[Any]) -> None:
    """Set a dictionary's entries; only text and numbers may be keys, since others can be made to hash for ever."""
    if not isinstance(target, dict):
        raise RefusedError("a value set in something that is no dictionary")
    for key, value in pairs:
        if not isinstance(key, str | int | float | bytes | None):
            raise RefusedError(f"a dictionary key of kind {type(key).__name__}")
        target[key] = value


def may_set_state(target: Any, state: Any) -> bool:
    """Whether a pickle may set this state: attributes of a dictionary (a state dict's metadata), or a plain dtype's."""
    plain = ((3, "<", None, None, None, -1, -1, 0), (3, "|", None, None, None, -1, -1, 0))
    return (target == DTYPE and state in plain) or (isinstance(target, dict) and isinstance(state, dict))


def _tensor(name: str, arguments: tuple[Any, ...], limit: int) -> TensorEntry:
    storage, offset, size, stride = arguments[:4]
    if not isinstance(storage, Storage):
        raise RefusedError("a tensor without a storage")
    itemsize = DTYPES[arguments[6].name] if name.endswith("_v3") else storage.itemsize
    numbers = (offset, *size, *stride)
    if not all(type(n) is int and n >= 0 for n in numbers) or len(size) != len(stride) or len(size) > 64:
        raise RefusedError("a tensor whose size or stride are no numbers")
    span = 0 if 0 in size else offset + 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if span * itemsize > storage.nbytes or math.prod(size) * itemsize > limit:
        raise RefusedError(f"a tensor of size {tuple(size)} over a storage of {storage.nbytes} bytes")
    return TensorEntry(tuple(size), itemsize)


def _with_attributes(arguments: tuple[Any, ...], limit: int) -> TensorEntry:
    """A tensor that has attributes of its own; these are plain values, or they would have been refused."""
    function, kind, inner, _ = arguments
    if not isinstance(function, Name) or function.name not in TENSORS | PARAMETERS:
        raise RefusedError("a tensor with attributes that another function makes")
    if not isinstance(kind, Name) or kind.name not in TYPES:
        raise RefusedError("a tensor of a class of its own")
    return call(function, inner, limit)


def _ordered(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    pairs_into(made, arguments[0] if arguments else ())
    return made


def _dtype(arguments: tuple[Any, ...]) -> Made:
    if not isinstance(arguments[0], str) or arguments[0] not in NUMBERS:
        raise RefusedError("a NumPy dtype that is no number")
    return DTYPE


def _scalar(arguments: tuple[Any, ...]) -> Made:
    if arguments[0] != DTYPE:
        raise RefusedError("a NumPy scalar that is no number")
    return Made("number")


def _encoded(arguments: tuple[Any, ...]) -> bytes:
    if not isinstance(arguments[0], str) or arguments[1:] not in ((), ("latin1",)):
        raise RefusedError("a call of _codecs.encode with another codec than latin1")
    return arguments[0].encode("latin1")


_OTHERS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _ordered,
    "torch.Size": lambda arguments: tuple(arguments[0]),
    "numpy.dtype": _dtype,
    "_codecs.encode": _encoded,
    **dict.fromkeys(SCALARS, _scalar),
}
