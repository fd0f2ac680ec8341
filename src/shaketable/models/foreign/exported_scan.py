"""Scanning a `.pt2` archive, and writing the clean copy that is loaded in its place.

`torch.export.load` runs code that a file brings, in at least these ways (torch 2.13): weights and constants marked
`use_pickle`, or in the older layout, and sample inputs, are unpickled, with `weights_only=False` as the fallback; custom
and opaque objects are unpickled; size expressions are given to SymPy's `sympify`, which evaluates them; operator names are
resolved from the top of `torch`; names become Python source; guards are given to `exec`; container types are imported;
compiled libraries are linked in.

So the archive is scanned and then written anew, in memory, from what was checked: the program's document as
`exported_graph` rewrote it, the raw bytes of its weights and constants, and a sample input of zeros. torch reads that copy
and never the file. A difference between two readers of zip or JSON therefore gives an attacker nothing.
"""

import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from shaketable.core.errors import ModelError, UnsafeFileError

from . import exported_text as text
from .archives import open_zip, read_entry
from .exported_graph import FLOATS, ITEMSIZE, MAX_DOCUMENT, Program, check_document
from .pickle_calls import RefusedError
from .pickles import read
from .safety import MAX_PICKLE, memory_limit

_BREAKS = (zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError)
_BREAKS += (RuntimeError, MemoryError)
_MARKERS = {"archive_format", "archive_version", "byteorder", "version", ".data/version", ".data/serialization_id"}
_MARKERS |= {".format_version", ".storage_alignment"}


@dataclass(frozen=True)
class Scanned:
    """An archive that was found harmless.

    Args:
        program: what it declares.
        archive: the clean copy, for `torch.export.load`.
        parameters: how many of its weights are parameters.
        buffers: how many floating-point weights are buffers or constants, and so out of reach for weight-space code.
    """

    program: Program
    archive: bytes
    parameters: int
    buffers: int


def scan_program(path: Path, *, limit: int | None = None) -> Scanned:
    """Check every entry of a `.pt2` archive and write the clean copy.

    Args:
        path: the archive.
        limit: the most bytes that it may hold or declare; see `safety.memory_limit`.

    Raises:
        UnsafeFileError: an entry that would run code, that no program of images needs, or of absurd size.
        ModelError: the archive is damaged or of an older layout.

    Cost: reads the file once, and needs its size again in memory. Checked by tests/models/foreign/test_exported_scan.py.
    """
    allowed = memory_limit(limit)
    entries = open_zip(path, limit=allowed)
    try:
        with zipfile.ZipFile(path) as archive:
            return _scan(archive, entries, allowed)
    except RefusedError as refusal:
        _unsafe(path, str(refusal))
    except (ModelError, UnsafeFileError):
        raise
    except _BREAKS as error:
        found = f"one that cannot be read ({type(error).__name__}: {str(error)[:120]})"
        remedy = "Fetch the file again, or export the model again with torch.export.save."
        raise ModelError(str(path), "an exported program", found, remedy) from error


def _unsafe(path: Path, found: str) -> NoReturn:
    remedy = (
        "Do not load it. If you know where it comes from, export the model again, or lift this check with --trust, which "
        "runs what the file brings."
    )
    raise UnsafeFileError(str(path), "a program of tensors and operators alone", found, remedy)


def _scan(archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], limit: int) -> Scanned:
    path = str(archive.filename)
    inner = _inner_names(path, entries)

    def content(name: str, most: int) -> bytes:
        return read_entry(archive, entries[inner[name]], most=most)

    for name in inner:
        _known_entry(name)
    sample = content("data/sample_inputs/model.pt", MAX_PICKLE)
    if sample:
        _check_sample(sample, path, limit)
    program = check_document(content("models/model.json", MAX_DOCUMENT), limit)
    clean = {"models/model.json": json.dumps(program.document).encode()}
    counts = [0, 0]
    for folder, kind in (("data/weights/", "weights"), ("data/constants/", "constants")):
        name = f"{folder}model_{kind}_config.json"
        config = json.loads(content(name, MAX_DOCUMENT))["config"]
        payloads = {text.path(key): _payload(payload, folder, inner, entries, limit) for key, payload in config.items()}
        clean[name] = json.dumps({"config": payloads}).encode()
        for payload in payloads.values():
            entry = folder + payload["path_name"]
            clean[entry] = clean.get(entry) or content(entry, limit)
            if payload["tensor_meta"]["dtype"] in FLOATS:
                counts[not payload["is_param"]] += 1
    clean["data/sample_inputs/model.pt"] = _zeros(program, limit)
    if content("archive_version", 16).strip() != b"0":
        raise ModelError(path, "an archive of version 0", "another version", "Export it again with a current torch.")
    order = content("byteorder", 16) if "byteorder" in inner else b"little"
    return Scanned(program, _write(clean, order), counts[0], counts[1])


def _inner_names(path: str, entries: Mapping[str, zipfile.ZipInfo]) -> dict[str, str]:
    """The archive's entries by their name below its root folder."""
    roots = {name.partition("/")[0] for name in entries}
    if "serialized_exported_program.json" in roots:
        remedy = "Load it with the torch that wrote it and export it again with a current one."
        raise ModelError(path, "a program in torch's current layout", "the older one, which holds pickles", remedy)
    inner = {name.partition("/")[2]: name for name in entries}
    if len(roots) != 1 or "models/model.json" not in inner:
        found = "several programs or none" if len(roots) == 1 else "several root folders"
        raise ModelError(path, "an archive of one program named model", found, "Save it with torch.export.save.")
    for name in ("data/sample_inputs/model.pt", *(f"data/{k}/model_{k}_config.json" for k in ("weights", "constants"))):
        if name not in inner:
            remedy = "Fetch the file again, or export it again with a current torch."
            raise ModelError(path, f"an archive with {name}", "none", remedy)
    return inner


def _known_entry(name: str) -> None:
    """Refuse entries that are code, or of a kind that a program of tensors does not have."""
    folder, _, last = name.rpartition("/")
    number = last.rpartition("_")[2].isdecimal()
    config = name in ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
    if name in _MARKERS or config or name in ("models/model.json", "data/sample_inputs/model.pt"):
        return
    if folder == "data/weights" and last.startswith("weight_") and number:
        return
    if folder == "data/constants" and last.startswith("tensor_") and number:
        return
    if name.startswith("extra/"):
        return
    if name.startswith("data/aotinductor"):
        raise RefusedError(f"a compiled library ({name})")
    raise RefusedError(f"the entry {name!r}, an object of a custom class, a pickle or a further program")


def _check_sample(content: bytes, argument: str, limit: int) -> None:
    """The sample inputs are an archive of torch.save; its pickle is read symbolically, and is not handed on."""
    if not content.startswith(b"PK"):
        stream = io.BytesIO(content)
        for _ in range(4):  # the fourth pickle is the object, in torch's layout before 1.6
            read(stream, argument=f"{argument} (its sample inputs)", limit=limit)
        raise RefusedError("sample inputs in an old layout")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        entry = archive.getinfo(names[0])
        if len(names) != 1 or entry.file_size > MAX_PICKLE:
            raise RefusedError("sample inputs with several pickles or one of absurd size")
        read(io.BytesIO(archive.read(entry)), argument=f"{argument} (its sample inputs)", limit=limit)


def _payload(
    payload: Any, folder: str, inner: Mapping[str, str], entries: Mapping[str, zipfile.ZipInfo], limit: int
) -> dict[str, Any]:
    """A weight's or constant's entry: raw bytes, described by a size that fits them."""
    if payload["use_pickle"] is not False:
        raise RefusedError("a weight or constant that is a pickle (use_pickle)")
    name, meta = payload["path_name"], payload["tensor_meta"]
    _known_entry(folder + name)
    sizes, strides = ([_whole(n["as_int"]) for n in meta[key]] for key in ("sizes", "strides"))
    offset, itemsize = _whole(meta["storage_offset"]["as_int"]), ITEMSIZE[meta["dtype"]]
    stored = entries[inner[folder + name]].file_size
    span = 0 if 0 in sizes else offset + 1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    if span * itemsize > stored or stored % itemsize or math.prod(sizes) * itemsize > limit:
        raise RefusedError(f"a tensor of size {sizes} over {stored} bytes")
    return {
        "path_name": name,
        "is_param": bool(payload["is_param"]),
        "use_pickle": False,
        "tensor_meta": {
            "dtype": int(meta["dtype"]),
            "sizes": [{"as_int": n} for n in sizes],
            "strides": [{"as_int": n} for n in strides],
            "storage_offset": {"as_int": offset},
            "requires_grad": bool(payload["is_param"] and meta["requires_grad"] and meta["dtype"] in FLOATS),
            "device": {"type": "cpu", "index": None},
            "layout": int(meta["layout"]),
        },
    }


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise RefusedError("a size that is no number")
    return value


def _zeros(program: Program, limit: int) -> bytes:
    """A sample input of zeros, as torch.save writes it; torch needs one to name the input in its guards."""
    import torch

    shape = [max(program.batch[0], 1), *(n or 1 for n in program.shape[1:])]
    if math.prod(shape) * 4 > min(limit, 2**30):
        raise RefusedError(f"an input of size {shape}")
    buffer = io.BytesIO()
    torch.save(((torch.zeros(shape),), {}), buffer)
    return buffer.getvalue()


def _write(clean: dict[str, bytes], order: bytes) -> bytes:
    buffer = io.BytesIO()
    marks = {"archive_format": b"pt2", "archive_version": b"0", ".data/version": b"6\n", "byteorder": order}
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (marks | clean).items():
            archive.writestr(f"model/{name}", content)
    return buffer.getvalue()
