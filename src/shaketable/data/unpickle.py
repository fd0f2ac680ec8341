"""Reading pickled dicts of arrays, as CIFAR's python batches are, without running anything that they name.

`pickle.load` calls whatever a file names. Here the names that NumPy's arrays need lead to inert stand-ins, which only
note what they are given; every other name is refused. The arrays are then made from the notes, after their dtype and
shape have been compared with the bytes that are there. So a hostile file can neither call anything nor ask for memory.
"""

import io
import math
import pickle
import pickletools
from typing import Any, final

import torch
from jaxtyping import UInt8
from torch import Tensor

from ..core.errors import DataError, UnsafeFileError

MAX_BYTES = 1 << 30
_REFUSED = ("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER")
_REMEDY = "Do not use this file; fetch the data set from its own site."


def unpickled(content: bytes, where: str) -> dict[str, Any]:
    """The dict in a pickle: builtin containers, texts, numbers and uint8 arrays (as tensors); keys as text.

    Texts of Python 2 are read as latin-1.

    Raises:
        UnsafeFileError: a pickle that names anything but the making of NumPy arrays, or is over 1 GiB.
        DataError: a pickle that is cut off or damaged, holds no dict, or an array that is not uint8.

    Checked by tests/data/test_unpickle.py.
    """
    if len(content) > MAX_BYTES:
        raise UnsafeFileError(where, f"at most {MAX_BYTES} bytes", f"{len(content)} bytes", _REMEDY)
    try:
        _scan(content, where)
        value = _Unpickler(content, where).load()
        if not isinstance(value, dict):
            found = f"a {type(value).__name__.lstrip('_')}"
            raise DataError(where, "a pickled dict, as CIFAR's batches", found, "Give another file.")
        return {_text(key): _plain(item, where) for key, item in value.items()}
    except (DataError, UnsafeFileError):
        raise
    except Exception as error:  # the pickle machine fails on damaged bytes in whatever way they lead to
        found = f"{type(error).__name__}: {error}"[:120]
        raise DataError(where, "a whole pickle file", found, "Fetch or unpack the file again.") from error


def _scan(content: bytes, where: str) -> None:
    """Refuse opcodes that make objects, and memo numbers that would make the machine allocate gigabytes."""
    for steps, (code, argument, _) in enumerate(pickletools.genops(content)):
        if code.name in _REFUSED:
            raise UnsafeFileError(where, "builtin containers and NumPy arrays", f"the opcode {code.name}", _REMEDY)
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= steps:
            raise UnsafeFileError(where, "memo numbers that count up", f"the memo number {argument}", _REMEDY)


@final
class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, where: str) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self.where = where

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STANDINS:
            found = f"the name {f'{module}.{name}'!r}, which loading would run or look up"
            raise UnsafeFileError(self.where, "builtin containers and NumPy arrays", found[:200], _REMEDY)
        return _STANDINS[module, name]


@final
class _DType:
    """Stands for `numpy.dtype`: keeps the type's code, ignores byte order and alignment."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = _text(code)

    def __setstate__(self, state: Any) -> None:
        pass


@final
class _Array:
    """Stands for `numpy.ndarray`: keeps what `__setstate__` is given."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.state = (1, shape, dtype, order == "F", bytes(buffer))
    return array


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"the encoding {encoding!r}")
    return text.encode("latin1")


_STANDINS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encoded,
}


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, _Array):
        return _tensor(value, where)
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, (list, tuple)):
        return [_text(item) if isinstance(item, bytes) else item for item in value]
    return value


def _tensor(array: _Array, where: str) -> UInt8[Tensor, "..."]:
    _, shape, dtype, fortran, raw = array.state[-5:]
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(dtype, _DType) or dtype.code not in ("u1", "|u1", "uint8"):
        found = f"dtype {getattr(dtype, 'code', dtype)!r}"[:80]
        raise DataError(where, "arrays of uint8", found, "Give CIFAR's own batches, or save the arrays as .npz.")
    shape = tuple(int(length) for length in shape)
    if min(shape, default=0) < 1 or not isinstance(raw, (bytes, bytearray)) or math.prod(shape) != len(raw):
        found = f"{len(raw)} bytes for the shape {shape}"
        raise DataError(where, "as many bytes as the shape tells", found, "Fetch or unpack the file again.")
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    return flat.view(shape[::-1]).permute(*reversed(range(len(shape)))).contiguous() if fortran else flat.view(shape)
