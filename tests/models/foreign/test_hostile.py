"""Files that are no weights, that are damaged, that run code, or that declare absurd sizes: each its typed error."""

import argparse
import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shaketable.core.errors import ModelError, UnsafeFileError
from shaketable.models.foreign import load
from shaketable.models.foreign.pickles import read
from shaketable.models.foreign.safety import memory_limit, scan, sniff
from shaketable.models.spec import ModelSpec, build

GIB = 2**30


def zipped(entries: dict[str, bytes]) -> bytes:
    """A zip archive of these entries, stored."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


STRANGERS: dict[str, tuple[bytes, str]] = {
    "html": (b"<!DOCTYPE html><html><title>Quota exceeded</title>", "a web page (HTML) instead of weights"),
    "html after blanks": (b"\n\n  <HTML lang=en>", "a web page (HTML) instead of weights"),
    "xml error": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "a web page (HTML) instead of weights"),
    "json": (b'{"message": "Not Found"}', "JSON text instead of weights"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "a git-LFS pointer"),
    "empty": (b"", "an empty file"),
    "zeros": (b"\0" * 4096, "a file of zero bytes"),
    "gzip": (b"\x1f\x8b\x08\0" + b"\0" * 64, "a tar or gzip archive"),
    "tar": (b"weights".ljust(257, b"\0") + b"ustar\x0000" + b"\0" * 248, "a tar or gzip archive"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "an HDF5 file"),
    "noise": (bytes(range(7, 200)), "an unknown format"),
    "other zip": (zipped({"a/readme": b"hello"}), "a zip archive without weights"),
    "torchscript": (
        zipped(
            {"m/data.pkl": b"\x80\x02}.", "m/constants.pkl": b"\x80\x02).", "m/code/__torch__.py": b"class M(Module):"}
        ),
        "a TorchScript archive",
    ),
}


@pytest.mark.parametrize("ending", [".pt", ".pt2", ".onnx", ".safetensors"])
@pytest.mark.parametrize("name", STRANGERS)
def test_strangers_are_named(name: str, ending: str, tmp_path: Path, small_spec: ModelSpec) -> None:
    content, found = STRANGERS[name]
    path = tmp_path / f"model{ending}"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load(str(path), spec=small_spec)
    assert found in caught.value.found
    assert caught.value.remedy


def _global(name: str) -> bytes:
    """A pickle that names a function and calls it without arguments."""
    module, _, attribute = name.rpartition(".")
    return b"\x80\x02c" + module.encode() + b"\n" + attribute.encode() + b"\n)R."


def _torch_zip(pickled: bytes, **storages: bytes) -> bytes:
    entries = {"a/data.pkl": pickled, "a/byteorder": b"little", "a/version": b"3\n"}
    return zipped(entries | {f"a/data/{key[1:]}": content for key, content in storages.items()})


def _storage(numel: int | str = 4, *, kind: str = "FloatStorage", key: str = "0") -> bytes:
    """Pickle instructions that push a storage of so many elements."""
    number = str(numel).encode()
    words = b"U\x07storagectorch\n" + kind.encode() + b"\nU" + bytes([len(key)]) + key.encode()
    return b"(" + words + b"U\x03cpuL" + number + b"L\ntQ"


def _tensor(storage: bytes, size: bytes = b"(K\x04t", stride: bytes = b"(K\x01t", offset: bytes = b"K\x00") -> bytes:
    """A pickle of {"w": tensor}."""
    head = b"\x80\x02}U\x01wctorch._utils\n_rebuild_tensor_v2\n("
    return head + storage + offset + size + stride + b"\x89ccollections\nOrderedDict\n)RtRs."


HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "os.system in a zip": (lambda canary: _torch_zip(pickle.dumps(_Touch(canary), 2)), "posix.system"),
    "eval": (lambda canary: _torch_zip(_global("builtins.eval")), "builtins.eval"),
    "python 2's eval": (lambda canary: _torch_zip(_global("__builtin__.eval")), "builtins.eval"),
    "getattr": (lambda canary: _torch_zip(_global("builtins.getattr")), "builtins.getattr"),
    "torch.load": (lambda canary: _torch_zip(_global("torch.load")), "torch.load"),
    "bytes of a storage": (lambda canary: _torch_zip(_global("torch.storage._load_from_bytes")), "_load_from_bytes"),
    "a module's method": (lambda canary: _torch_zip(_global("torch._utils.os.system")), "torch._utils.os.system"),
    "stack global": (lambda canary: _torch_zip(pickle.dumps(_Touch(canary), 4)), "posix.system"),
    "inst": (lambda canary: _torch_zip(b"(S'touch x'\nios\nsystem\n."), "INST"),
    "obj": (lambda canary: _torch_zip(b"(cos\nsystem\nS'touch x'\no."), "os.system"),
    "newobj": (lambda canary: _torch_zip(b"\x80\x02ccollections\nOrderedDict\n)\x81."), "NEWOBJ"),
    "extension": (lambda canary: _torch_zip(b"\x80\x02\x82\x01."), "EXT1"),
    "a namespace": (lambda canary: _torch_zip(pickle.dumps({"args": argparse.Namespace()}, 2)), "argparse.Namespace"),
    "bytearray of 1 TB": (lambda canary: _torch_zip(b"cbuiltins\nbytearray\n(L1000000000000L\ntR."), "bytearray"),
    "a called tensor": (lambda canary: _torch_zip(b"ctorch\nTensor\n(L1000000000000L\ntR."), "a call of torch.Tensor"),
    "a tensor that a function makes": (
        lambda canary: _torch_zip(b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch\nSize\nctorch\nTensor\n))tR."),
        "another function makes",
    ),
    "a called storage": (
        lambda canary: _torch_zip(b"ctorch\nFloatStorage\n(L1000000000000L\ntR."),
        "a call of torch.FloatStorage",
    ),
    "a codec": (lambda canary: _torch_zip(b"c_codecs\nencode\n(X\x01\0\0\0aX\x03\0\0\0ziptR."), "_codecs.encode"),
    "an object dtype": (lambda canary: _torch_zip(b"cnumpy\ndtype\n(U\x01OI00\nI01\ntR."), "NumPy dtype"),
    "a slow key": (lambda canary: _torch_zip(b"\x80\x02}" + b")" + b"\x85" * 40 + b"K\x01s."), "a dictionary key"),
    "legacy": (lambda canary: _legacy(pickle.dumps(_Touch(canary), 2)), "posix.system"),
    "a raw pickle": (lambda canary: pickle.dumps(_Touch(canary), 2), "posix.system"),
    "a raw pickle of protocol 5": (lambda canary: pickle.dumps(_Touch(canary), 5), "posix.system"),
    "a storage of petabytes": (lambda canary: _torch_zip(_tensor(_storage(10**15)), s0=b"\0" * 16), "4000000000000000"),
    "a storage larger than its entry": (lambda canary: _torch_zip(_tensor(_storage(1000)), s0=b"\0" * 16), "16 bytes"),
    "a storage without an entry": (lambda canary: _torch_zip(_tensor(_storage(4))), "no such entry"),
    "a negative storage": (lambda canary: _torch_zip(_tensor(_storage(-4)), s0=b"\0" * 16), "no storage of numbers"),
    "a tensor beyond its storage": (
        lambda canary: _torch_zip(_tensor(_storage(4), size=b"(K\x05t"), s0=b"\0" * 16),
        "over a storage of 16 bytes",
    ),
    "a tensor of a petabyte by stride 0": (
        lambda canary: _torch_zip(_tensor(_storage(4), b"(L1000000000000000L\nt", b"(K\x00t"), s0=b"\0" * 16),
        "over a storage of 16 bytes",
    ),
    "a tensor of negative size": (
        lambda canary: _torch_zip(_tensor(_storage(4), b"(J\xff\xff\xff\xfft"), s0=b"\0" * 16),
        "whose size or stride",
    ),
    "a storage of another type": (
        lambda canary: _torch_zip(_tensor(_storage(4).replace(b"FloatStorage", b"float32"), b"(K\x04t"), s0=b"\0" * 16),
        "no storage of numbers",
    ),
}


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def _legacy(pickled: bytes) -> bytes:
    """A file of torch before 1.6 with this as its object."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    return b"".join(pickle.dumps(value, 2) for value in head) + pickled + pickle.dumps(["0"], 2)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_weights_are_refused_before_anything_runs(name: str, tmp_path: Path, small_spec: ModelSpec) -> None:
    make, found = HOSTILE[name]
    canary = tmp_path / "canary"
    path = tmp_path / "model.pt"
    path.write_bytes(make(canary))
    with pytest.raises(UnsafeFileError) as caught:
        load(str(path), spec=small_spec, limit=GIB)
    assert found in str(caught.value)
    assert "Do not load" in caught.value.remedy or "Fetch" in caught.value.remedy
    assert not canary.exists()
    with pytest.raises(UnsafeFileError):  # also where no architecture was named, so nothing would be loaded
        load(str(path), limit=GIB)
    assert not canary.exists()


def test_the_canary_works(tmp_path: Path) -> None:
    """The files of the table would run their code if they were unpickled: else the table would prove nothing."""
    canary = tmp_path / "canary"
    path = tmp_path / "model.pt"
    torch.save({"state_dict": _Touch(canary)}, path)
    with pytest.raises(UnsafeFileError, match="system"):
        load(str(path))
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()


def test_trust_runs_the_code_and_says_so(tmp_path: Path, small_spec: ModelSpec, saved: Callable[..., bytes]) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "model.pt"
    path.write_bytes(saved({"state_dict": build(small_spec, 1).network.state_dict(), "extra": _Touch(canary)}))
    with pytest.raises(UnsafeFileError):
        load(str(path), spec=small_spec)
    assert not canary.exists()
    loaded = load(str(path), spec=small_spec, trust=True)
    assert canary.exists()
    assert any("code" in note for note in loaded.notes)


def test_a_known_hash_lifts_the_check_of_that_file_alone(tmp_path: Path, saved: Callable[..., bytes]) -> None:
    path, other = tmp_path / "model.pt", tmp_path / "other.pt"
    path.write_bytes(saved(torch.nn.Linear(2, 2)))
    other.write_bytes(saved(torch.nn.Linear(3, 3)))
    known = {hashlib.sha256(path.read_bytes()).hexdigest()}
    assert isinstance(load(str(path), trust=known).model, torch.nn.Linear)
    with pytest.raises(UnsafeFileError, match=r"torch\.nn\.modules\.linear\.Linear"):
        load(str(other), trust=known)


def _bomb(size: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/data/0", b"\0" * size)
    return buffer.getvalue()


def _patched(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    assert len(old) == len(new)
    return content.replace(old, new)


def _declared(content: bytes, size: int) -> bytes:
    """An archive whose directory declares another size for its last entry."""
    at = content.rindex(b"PK\x01\x02")
    return content[: at + 24] + struct.pack("<I", size) + content[at + 28 :]


def _overlapping() -> bytes:
    """Two directory entries that share the bytes of one (large) file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}." + b"\0" * 5000)
        twin = zipfile.ZipInfo("a/data/1")
        twin.header_offset, twin.CRC = archive.filelist[0].header_offset, archive.filelist[0].CRC
        twin.compress_size = twin.file_size = archive.filelist[0].file_size
        archive.filelist.append(twin)
    return buffer.getvalue()


ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a bomb": (lambda: _bomb(20_000_000), "a zip bomb"),
    "a size beyond the limit": (lambda: _declared(_torch_zip(b"\x80\x02}.", s0=b"\0" * 16), 2**31), "a zip bomb"),
    "overlapping entries": (_overlapping, "share their bytes"),
    "path traversal": (lambda: _patched(_torch_zip(b"\x80\x02}."), b"a/version", b"../ersion"), "leads out"),
    "an absolute path": (lambda: _patched(_torch_zip(b"\x80\x02}."), b"a/version", b"/etc/pass"), "leads out"),
    "a backslash": (lambda: _patched(_torch_zip(b"\x80\x02}."), b"a/version", b"..\\ersion"), "leads out"),
    "a drive": (lambda: _patched(_torch_zip(b"\x80\x02}."), b"a/version", b"C:version"), "leads out"),
    "a NUL": (lambda: _patched(_torch_zip(b"\x80\x02}."), b"a/version", b"a/ver\0ion"), "leads out"),
    "doubled": (lambda: _patched(_torch_zip(b"\x80\x02}.", sb=b"x", sc=b"x"), b"a/data/c", b"a/data/b"), "two entries"),
    "doubled but for case": (
        lambda: _patched(_torch_zip(b"\x80\x02}.", sb=b"x", sc=b"x"), b"a/data/c", b"a/data/B"),
        "two entries",
    ),
    "a prefix": (lambda: b"PK\x03\x04" + b"\0" * 60 + _torch_zip(b"\x80\x02}."), "bytes around"),
    "encrypted": (lambda: _encrypted(_torch_zip(b"\x80\x02}.")), "encrypted"),
}


def _encrypted(content: bytes) -> bytes:
    at = content.index(b"PK\x01\x02")
    return content[: at + 8] + b"\x01" + content[at + 9 :]


@pytest.mark.parametrize("name", ARCHIVES)
def test_traps_in_archives_are_refused(name: str, tmp_path: Path) -> None:
    make, found = ARCHIVES[name]
    path = tmp_path / "model.pt"
    path.write_bytes(make())
    with pytest.raises(UnsafeFileError, match=found):
        scan(path, limit=GIB)


def test_absurd_sizes_are_refused_without_allocating(tmp_path: Path) -> None:
    """In a process that may hold 1.5 GB: declared petabytes end in our error, not in the system's."""
    path = tmp_path / "model.pt"
    path.write_bytes(_torch_zip(_tensor(_storage(10**15)), s0=b"\0" * 16))
    legacy = tmp_path / "legacy.pt"
    legacy.write_bytes(_legacy(_tensor(_storage(10**10))))
    code = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from shaketable.models.foreign.safety import scan\n"
        "from shaketable.core.errors import UnsafeFileError\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        scan(Path(name))\n"
        "    except UnsafeFileError:\n        print('refused')\n"
        "print(peak() - before < 50_000)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(legacy)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["refused", "refused", "True"]


def test_a_limit_is_an_argument(tmp_path: Path, saved: Callable[..., bytes]) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(saved({"w": torch.zeros(1000)}))
    assert scan(path).kind == "torch-zip"
    assert scan(path, limit=10_000).value["w"].shape == (1000,)
    with pytest.raises(UnsafeFileError, match="3000"):
        scan(path, limit=3000)
    assert 0 < memory_limit() <= 20 * GIB
    assert memory_limit(5) == 5


def test_sizes_beyond_the_file_are_refused_before_they_are_allocated(tmp_path: Path, small_spec: ModelSpec) -> None:
    """In torch's layout before 1.6, within the limit: cut short or a lie, which cannot be told apart."""
    path = tmp_path / "model.pt"
    path.write_bytes(_legacy(_tensor(_storage(10**8))))
    with pytest.raises(ModelError, match="400000008 bytes of tensors"):
        load(str(path), spec=small_spec, limit=GIB)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_named(
    legacy: bool, part: float, tmp_path: Path, saved: Callable[..., bytes], small_spec: ModelSpec
) -> None:
    content = saved({"w": torch.zeros(100), "b": torch.ones(7)}, _use_new_zipfile_serialization=not legacy)
    path = tmp_path / "model.pt"
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ModelError, match="Fetch"):
        load(str(path), spec=small_spec)


def _marked(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with an attribute of its own, as torch.export's are."""
    tensor.note = {"sizes": [1, 2], "set": {3}}  # type: ignore[attr-defined]
    return tensor


@pytest.mark.parametrize("legacy", [False, True])
def test_what_training_loops_save_is_read_symbolically(
    legacy: bool, tmp_path: Path, saved: Callable[..., bytes]
) -> None:
    """Parameters, metadata, views, half precision, NumPy numbers, sizes: read without loading, with the right shapes."""
    shared = torch.zeros(6, 4)
    value = {
        "epoch": 3,
        "best": np.float64(0.5),
        "lr": np.float32(0.1),
        "size": torch.Size([3, 8, 8]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "bytes": b"abc",
        "state_dict": OrderedDict(
            w=torch.nn.Parameter(torch.zeros(2, 3)),
            half=torch.zeros(5).half(),
            view=shared[1:3].t(),
            flag=torch.tensor(True),
        ),
        "modules": torch.nn.BatchNorm2d(3).state_dict(),
        "marked": _marked(torch.zeros(2, 2)),
        "optimizer": torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1).state_dict(),
    }
    path = tmp_path / "model.pt"
    path.write_bytes(saved(value, _use_new_zipfile_serialization=not legacy))
    found = scan(path).value
    assert {name: entry.shape for name, entry in found["state_dict"].items()} == {
        "w": (2, 3),
        "half": (5,),
        "view": (4, 2),
        "flag": (),
    }
    assert found["epoch"] == 3
    assert found["marked"].shape == (2, 2)
    assert found["modules"]["running_mean"].shape == (3,)
    assert sniff(path) == ("torch-legacy" if legacy else "torch-zip")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_symbolic_reading_agrees_with_unpickling(protocol: int) -> None:
    value = {"a": [1, -2, 2**70, 1.5, None, True, "text", b"bytes"], "b": (1, (2, 3), {}), 3: {"x": []}, "ü": "€"}
    found = read(io.BytesIO(pickle.dumps(value, protocol)), argument="x", limit=GIB)
    assert found.value == value
    assert not found.storages
