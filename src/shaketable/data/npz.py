"""NumPy archives: ``images``, ``labels`` and perhaps ``classes`` in one ``.npz``."""

import math
import zipfile
from pathlib import Path
from typing import Any

from ..core.errors import DataError, UnsafeFileError
from .arrays import from_arrays
from .dataset import Dataset
from .fit import Fit
from .layout import Part

MAX_BYTES = 1 << 34
_REMEDY = "Save it anew: numpy.savez_compressed(path, images=images, labels=labels), with plain arrays."


def recognises(source: str) -> bool:
    """Whether the source is an ``.npz`` file."""
    return Path(source).suffix.lower() == ".npz" and Path(source).is_file()


def parts(source: str) -> tuple[Part, ...]:
    """None: such a file has no parts of its own."""
    return ()


def load(source: str, wanted: tuple[Part, ...], fit: Fit) -> Dataset:
    """Read ``images`` (any layout of `from_arrays`), ``labels``, and the optional ``classes`` (texts).

    Pickles are never read. Each array's header is compared with the size of its file before memory is asked for.

    Raises:
        DataError: no zip, a damaged one, a missing array, arrays of objects, or what `from_arrays` refuses.
        UnsafeFileError: an array of more than 16 GiB.

    Checked by tests/data/test_npz.py.
    """
    arrays = arrays_in(Path(source), ("images", "labels"), optional=("classes",))
    classes = arrays.get("classes")
    if classes is not None and (classes.dtype.kind != "U" or classes.ndim != 1):
        found = f"dtype {classes.dtype} of shape {classes.shape}"
        raise DataError(f"classes of {source}", "texts of shape (k,)", found, _REMEDY)
    names = None if classes is None else [str(name) for name in classes]
    return from_arrays(arrays["images"], arrays["labels"], classes=names, name=Path(source).name, fit=fit)


def names_in(path: Path) -> tuple[str, ...]:
    """The names of an .npz's arrays, from its table of contents; none for a file that has no such table."""
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(info.filename.removesuffix(".npy") for info in archive.infolist())
    except Exception:  # what is wrong with it is said by who reads it
        return ()


def arrays_in(path: Path, names: tuple[str, ...], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """The named arrays of an .npz, checked before they are read, without pickles."""
    try:
        with zipfile.ZipFile(path) as archive:
            present = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if missing := [name for name in names if name not in present]:
                found = f"{sorted(present)}"[:120]
                raise DataError(str(path), f"an array {missing[0]!r}", found, _REMEDY)
            chosen = [name for name in (*names, *optional) if name in present]
            return {name: _array(archive, present[name], f"{path}, {name}") for name in chosen}
    except (DataError, UnsafeFileError):
        raise
    except Exception as error:  # zip, zlib and NumPy raise whatever damaged bytes lead them to
        found = str(error)[:160] or type(error).__name__
        raise DataError(str(path), "an undamaged .npz file", found, "Fetch the file again, or save it anew.") from error


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> Any:
    from numpy.lib import format as npy

    with archive.open(info) as stream:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(stream)
        if dtype.hasobject:
            raise DataError(where, "plain numbers or texts", "Python objects, which only a pickle can hold", _REMEDY)
        need = math.prod(shape) * dtype.itemsize
        if need > MAX_BYTES:
            remedy = "Split the file, or store uint8."
            raise UnsafeFileError(where, f"at most {MAX_BYTES} bytes", f"{need} bytes", remedy)
        if need != info.file_size - stream.tell():
            found = f"{info.file_size - stream.tell()} bytes for the shape {shape}"
            raise DataError(where, f"{need} bytes", found, "Fetch the file again, or save it anew.")
    with archive.open(info) as stream:
        return npy.read_array(stream, allow_pickle=False)
