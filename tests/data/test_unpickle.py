"""The restricted unpickler: NumPy arrays yes, anything that runs no."""

import importlib
import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as s

from shaketable.core.errors import DataError, ShaketableError, UnsafeFileError
from shaketable.data.unpickle import unpickled


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_containers_come_through(write, protocol):
    array = write.images(4, 6)
    value = {
        b"data": array,
        "turned": np.asfortranarray(array),
        "cube": write.images(2, 3, 4),
        b"labels": [3, 1, 2],
        "names": [b"\xe9t\xe9", "b"],
        "note": b"text",
        "none": None,
        "number": 1.5,
    }
    found = unpickled(pickle.dumps(value, protocol), "x")
    assert list(found) == ["data", "turned", "cube", "labels", "names", "note", "none", "number"]
    for key in ("data", "turned", "cube"):
        assert found[key].dtype == torch.uint8
        np.testing.assert_array_equal(found[key].numpy(), value[key if key != "data" else b"data"])
    assert found["labels"] == [3, 1, 2]
    assert found["names"] == ["été", "b"]
    assert found["note"] == "text"
    assert (found["none"], found["number"]) == (None, 1.5)


def test_a_pickle_of_python_2():
    """As CIFAR's files are: protocol 2, byte strings (SHORT_BINSTRING, BINSTRING), numpy.core names."""
    raw = bytes(range(256)) * 2
    parts = [
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87R",
        b"(K\x01K\x02M\x00\x01\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
        b"T" + struct.pack("<i", len(raw)) + raw + b"tbU\x06labels](K\x06K\x09eu.",
    ]
    found = unpickled(b"".join(parts), "x")
    assert bytes(found["data"].flatten().tolist()) == raw
    assert found["data"].shape == (2, 256)
    assert found["labels"] == [6, 9]


class Canary:
    """Pickles itself as a call."""

    def __init__(self, call: object, *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("where", ["value", "key-array", "nested"])
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, protocol, where):
    canary = tmp_path / "canary"
    hostile = Canary(os.system, f"touch {canary}")
    value = {"value": {b"data": hostile}, "key-array": [hostile], "nested": {b"a": [({},), {b"b": hostile}]}}[where]
    content = pickle.dumps(value, protocol)
    pickle.loads(content)
    assert canary.exists(), "the pickle is no threat, so the test shows nothing"
    canary.unlink()
    with pytest.raises(UnsafeFileError, match="system"):
        unpickled(content, "data_batch_1")
    assert not canary.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "builtins getattr",
        "numpy load",
        "numpy.core.multiarray fromfile",
        "torch load",
        "_codecs decode",
        "numpy.ma.core _mareconstruct",
        "copyreg _reconstructor",
        "shaketable.data.unpickle _Array",
        "numpy dtype.type",
    ],
)
def test_any_other_name_is_refused(name):
    module, _, attribute = name.partition(" ")
    with pytest.raises(UnsafeFileError, match=attribute):
        unpickled(b"\x80\x02" + f"c{module}\n{attribute}\n.".encode(), "x")


OPCODES = {
    "an old instance": b"(ios\nsystem\n.",
    "a new object": b"\x80\x02}cnumpy\nndarray\n)\x81.",
    "a persistent id": b"Pevil\n.",
    "a binary persistent id": b"\x80\x02K\x01Q.",
    "an extension": b"\x80\x02\x82\x01.",
    "an out-of-band buffer": b"\x80\x05\x97.",
    "an absurd memo number": b"\x80\x02}r\xff\xff\xff\x7f.",
}


@pytest.mark.parametrize("case", OPCODES)
def test_opcodes_that_make_objects_or_eat_memory_are_refused(case):
    with pytest.raises(UnsafeFileError):
        unpickled(OPCODES[case], "x")


def _array_state(shape: object, dtype: object, raw: object) -> bytes:
    class Fake:
        def __reduce__(self) -> tuple[object, ...]:
            make = np.empty(0, np.uint8).__reduce__()
            return make[0], make[1], (1, shape, dtype, False, raw)

    return pickle.dumps({"data": Fake()}, 2)


BROKEN = {
    "empty": b"",
    "no pickle": b"<html>",
    "cut off": pickle.dumps({b"data": np.zeros((5, 5), np.uint8)}, 2)[:-20],
    "a list": pickle.dumps([1, 2]),
    "a text": pickle.dumps("x"),
    "floats": pickle.dumps({"data": np.zeros(3)}, 2),
    "objects": pickle.dumps({"data": np.array([[1], "a"], dtype=object)}, 2),
    "a shape beyond the bytes": _array_state((10**6, 10**6), np.dtype("u1"), b"\0" * 4),
    "a negative shape": _array_state((-2, -2), np.dtype("u1"), b"\0" * 4),
    "no bytes": _array_state((2, 2), np.dtype("u1"), [0, 0, 0, 0]),
    "no dtype": _array_state((2, 2), "u1", b"\0" * 4),
    "an array called": b"\x80\x02}U\x04datacnumpy\nndarray\n\x8a\x05\x00\x00\x00\x00\x01\x85\x85Rs.",
    "an unset array": b"\x80\x02}U\x04datacnumpy\nndarray\n)Rs.",
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_batch_is_refused(case):
    with pytest.raises(DataError, match="data_batch_1") as caught:
        unpickled(BROKEN[case], "data_batch_1")
    if "shape" in case:
        assert "bytes for the shape" in caught.value.found


def test_a_file_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr("shaketable.data.unpickle.MAX_BYTES", 10)
    with pytest.raises(UnsafeFileError, match="11 bytes"):
        unpickled(b"x" * 11, "x")


@settings(max_examples=300, deadline=None)
@given(s.data())
def test_flipped_bytes_give_a_value_or_a_typed_error(data):
    content = bytearray(pickle.dumps({b"data": np.arange(12, dtype=np.uint8).reshape(3, 4), b"labels": [1, 2, 3]}, 2))
    for _ in range(data.draw(s.integers(1, 4))):
        content[data.draw(s.integers(0, len(content) - 1))] = data.draw(s.integers(0, 255))
    try:
        found = unpickled(bytes(content), "x")
    except ShaketableError:
        return
    assert isinstance(found, dict)


def test_the_stand_ins_reach_nothing_of_numpy(monkeypatch):
    """Not even NumPy's own functions are called while a pickle is read."""
    content = pickle.dumps({"data": np.zeros((2, 2), np.uint8)}, 2)

    def fail(*_: object) -> None:
        raise AssertionError("called")

    module = importlib.import_module(np.zeros(1).__reduce__()[0].__module__)
    monkeypatch.setattr(module, "_reconstruct", fail)
    with pytest.raises(AssertionError):
        pickle.load(io.BytesIO(content))
    assert unpickled(content, "x")["data"].shape == (2, 2)
