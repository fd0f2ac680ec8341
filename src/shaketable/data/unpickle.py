"""Reading pickled dicts of arrays, as CIFAR's python batches are, without running anything that they name.

`pickle.load` calls whatever a file names. Here the names that NumPy's arrays need lead to inert stand-ins, which only
note what they are given; every other name is refused. The arrays are then made from the notes, after their dtype and
shape have been compared with the bytes that are there. So a hostile file can neither call anything nor ask for memory.
"""

import io
import math
import pickle
import pickletools
import sys
from pathlib import Path
from typing import IO, Any, final

import torch
from jaxtyping import Shaped
from torch import Tensor

from ..core.errors import DataError, UnsafeFileError

MAX_BYTES = 1 << 30
MAX_FILE_BYTES = 1 << 32
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
    _limit(len(content), MAX_BYTES, where)
    return _dict_in(io.BytesIO(content), where, _UINT8)


def unpickled_file(path: Path) -> dict[str, Any]:
    """As `unpickled`, for a large file, with arrays of signed whole numbers too (as tensors of their own dtype).

    The file is read twice: looked through, then loaded. Memory: twice the largest array, while that is made.

    Raises:
        UnsafeFileError, DataError: as `unpickled`; the limit is 4 GiB. DataError too for a file that cannot be read.

    Checked by tests/data/test_pseudolabelled.py.
    """
    try:
        with path.open("rb") as stream:
            _limit(stream.seek(0, io.SEEK_END), MAX_FILE_BYTES, str(path))
            stream.seek(0)
            return _dict_in(stream, str(path), _WHOLE)
    except OSError as error:
        found = error.strerror or type(error).__name__
        raise DataError(str(path), "a readable file", found, "Check the path and its rights.") from error


def _limit(size: int, limit: int, where: str) -> None:
    if size > limit:
        raise UnsafeFileError(where, f"at most {limit} bytes", f"{size} bytes", _REMEDY)


def _dict_in(stream: IO[bytes], where: str, dtypes: dict[str, torch.dtype]) -> dict[str, Any]:
    """The dict in a stream, from where it stands; arrays may be of these dtypes alone."""
    try:
        start = stream.tell()
        _scan(stream, where)
        stream.seek(start)
        value = _Unpickler(stream, where).load()
        if not isinstance(value, dict):
            found = f"a {type(value).__name__.lstrip('_')}"
            raise DataError(where, "a pickled dict, as CIFAR's batches", found, "Give another file.")
        return {_text(key): _plain(item, where, dtypes) for key, item in value.items()}
    except (DataError, UnsafeFileError, OSError):
        raise
    except Exception as error:  # the pickle machine fails on damaged bytes in whatever way they lead to
        found = f"{type(error).__name__}: {error}"[:120]
        raise DataError(where, "a whole pickle file", found, "Fetch or unpack the file again.") from error


def _scan(content: IO[bytes], where: str) -> None:
    """Refuse opcodes that make objects, and memo numbers that would make the machine allocate gigabytes."""
    for steps, (code, argument, _) in enumerate(pickletools.genops(content)):
        if code.name in _REFUSED:
            raise UnsafeFileError(where, "builtin containers and NumPy arrays", f"the opcode {code.name}", _REMEDY)
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= steps:
            raise UnsafeFileError(where, "memo numbers that count up", f"the memo number {argument}", _REMEDY)


@final
class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: IO[bytes], where: str) -> None:
        super().__init__(stream, encoding="latin1")
        self.where = where

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STANDINS:
            found = f"the name {f'{module}.{name}'!r}, which loading would run or look up"
            raise UnsafeFileError(self.where, "builtin containers and NumPy arrays", found[:200], _REMEDY)
        return _STANDINS[module, name]


@final
class _DType:
    """Stands for `numpy.dtype`: keeps the type's code and byte order, ignores its alignment."""

    order: Any = "="

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = _text(code)

    def __setstate__(self, state: Any) -> None:
        self.order = _text(state[1])


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


def _plain(value: Any, where: str, dtypes: dict[str, torch.dtype]) -> Any:
    if isinstance(value, _Array):
        return _tensor(value, where, dtypes)
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, (list, tuple)):
        return [_text(item) if isinstance(item, bytes) else item for item in value]
    return value


_UINT8 = {"u1": torch.uint8, "uint8": torch.uint8}
_WHOLE = _UINT8 | {"i1": torch.int8, "i2": torch.int16, "i4": torch.int32, "i8": torch.int64}
_FOREIGN = ">" if sys.byteorder == "little" else "<"


def _tensor(array: _Array, where: str, dtypes: dict[str, torch.dtype]) -> Shaped[Tensor, "..."]:
    _, shape, dtype, fortran, raw = array.state[-5:]
    array.state = ()  # so that the bytes are freed as soon as they are copied
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    kind = dtypes.get(dtype.code.lstrip("|<")) if isinstance(dtype, _DType) else None
    if kind is None:
        found = f"dtype {getattr(dtype, 'code', dtype)!r}"[:80]
        expected = "arrays of uint8" if dtypes is _UINT8 else "arrays of uint8 or signed whole numbers"
        raise DataError(where, expected, found, "Give CIFAR's own batches, or save the arrays as .npz.")
    shape = tuple(int(length) for length in shape)
    need = math.prod(shape) * kind.itemsize
    if min(shape, default=0) < 1 or not isinstance(raw, (bytes, bytearray)) or need != len(raw):
        found = f"{len(raw)} bytes for the shape {shape}"
        raise DataError(where, "as many bytes as the shape tells", found, "Fetch or unpack the file again.")
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    if dtype.order == _FOREIGN and kind.itemsize > 1:
        flat = flat.view(-1, kind.itemsize).flip(1).flatten()
    flat = flat.view(kind)
    return flat.view(shape[::-1]).permute(*reversed(range(len(shape)))).contiguous() if fortran else flat.view(shape)
