"""Damaged at random: whatever the damage, a typed error or the model, never another exception, never another answer.

A flipped bit of a zip archive is caught by its checksums, so flips are also made within a program's document and a weights
file's pickle before the archive is written; what still loads then may differ, but must be a model.
"""

import contextlib
import copy
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shaketable.core.errors import ShaketableError
from shaketable.models.foreign import load
from shaketable.models.spec import Loaded, ModelSpec, build

SPEC = ModelSpec("mlp", classes=3, channels=1, size=(4, 4), arguments={"width": 5, "depth": 1})
FAST = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
SLOW = settings(FAST, max_examples=40)
Flips = list[tuple[float, int]]
FLIPS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4)


def flipped(content: bytes, flips: Flips) -> bytes:
    """Content with some bytes changed, at these parts of its length."""
    changed = bytearray(content)
    for at, mask in flips:
        changed[int(at * len(content))] ^= mask
    return bytes(changed)


def rewritten(content: bytes, ending: str, flips: Flips) -> bytes:
    """An archive written anew after the entry with this ending was damaged; its checksums fit."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            inner = old.read(entry)
            new.writestr(entry.filename, flipped(inner, flips) if entry.filename.endswith(ending) else inner)
    return buffer.getvalue()


def images(shape: tuple[int, int]) -> Tensor:
    return torch.linspace(0, 1, 2 * shape[0] * shape[1]).reshape(2, 1, *shape)


def weights(legacy: bool) -> bytes:
    buffer = io.BytesIO()
    values = {"state_dict": build(SPEC, 1).network.state_dict(), "epoch": 3}
    torch.save(values, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def attempt(path: Path, content: bytes, spec: ModelSpec | None) -> Loaded | None:
    """The model, or None after a typed error; any other exception fails the test."""
    path.write_bytes(content)
    try:
        return load(str(path), spec=spec, limit=2**28)
    except ShaketableError:
        return None


@pytest.mark.parametrize("legacy", [False, True])
def test_flips_in_weights(legacy: bool, tmp_path: Path) -> None:
    content = weights(legacy)
    whole = attempt(tmp_path / "model.pt", content, SPEC)
    assert whole is not None
    expected = whole.model(images((4, 4)))

    @FAST
    @given(FLIPS)
    def check(flips: Flips) -> None:
        found = attempt(tmp_path / "model.pt", flipped(content, flips), SPEC)
        if found is not None:
            answer = found.model(images((4, 4)))
            # the older format has no checksums: a flip within the numbers shows in nothing but the numbers
            assert answer.shape == (2, 3) if legacy else torch.equal(answer, expected)

    check()


@pytest.mark.parametrize("legacy", [False, True])
def test_cuts_of_weights(legacy: bool, tmp_path: Path) -> None:
    content = weights(legacy)

    @FAST
    @given(st.floats(0, 1, exclude_max=True))
    def check(part: float) -> None:
        assert attempt(tmp_path / "model.pt", content[: int(part * len(content))], SPEC) is None

    check()


def test_flips_within_the_pickle(tmp_path: Path) -> None:
    content = weights(False)

    @FAST
    @given(FLIPS)
    def check(flips: Flips) -> None:
        found = attempt(tmp_path / "model.pt", rewritten(content, "data.pkl", flips), SPEC)
        assert found is None or found.model(images((4, 4))).shape == (2, 3)

    check()


def test_flips_in_programs(exported_net: tuple[nn.Module, Path], tmp_path: Path) -> None:
    net, path = exported_net
    content, expected = path.read_bytes(), net(images((8, 8)))

    @SLOW
    @given(FLIPS)
    def check(flips: Flips) -> None:
        found = attempt(tmp_path / "model.pt2", flipped(content, flips), None)
        assert found is None or torch.equal(found.model(images((8, 8))), expected)

    check()


def test_cuts_of_programs(exported_net: tuple[nn.Module, Path], tmp_path: Path) -> None:
    content = exported_net[1].read_bytes()

    @SLOW
    @given(st.floats(0, 1, exclude_max=True))
    def check(part: float) -> None:
        assert attempt(tmp_path / "model.pt2", content[: int(part * len(content))], None) is None

    check()


@pytest.mark.parametrize("entry", ["models/model.json", "weights_config.json", "sample_inputs/model.pt"])
def test_flips_within_the_program(entry: str, exported_net: tuple[nn.Module, Path], tmp_path: Path) -> None:
    content = exported_net[1].read_bytes()

    @SLOW
    @given(FLIPS)
    def check(flips: Flips) -> None:
        found = attempt(tmp_path / "model.pt2", rewritten(content, entry, flips), None)
        if found is not None:
            try:
                answer = found.model(images((8, 8)))
            except ShaketableError:  # a flip may have changed the size that it takes
                return
            assert answer.ndim == 2

    check()


LEAVES = [None, -1, 0, 2**70, 1e308, True, "x", "", [], {}, [[]], {"a": 1}, "a.b", "cpu", "torch.os.system"]
LEAVES += ["__import__('os').system('touch CANARY')", "x=__import__('os').system('touch CANARY')", "Symbol('s0')"]


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values within nested JSON."""
    yield place
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*place, key))


def replaced(value: Any, place: tuple[Any, ...], by: Any) -> Any:
    if not place:
        return by
    changed = copy.copy(value)
    changed[place[0]] = replaced(value[place[0]], place[1:], by)
    return changed


@pytest.mark.parametrize("times", [30, pytest.param(120, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", ["models/model.json", "weights/model_weights_config.json"])
def test_values_within_the_program(
    name: str, times: int, exported_net: tuple[nn.Module, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any value of the document replaced by another, often of another kind: no other exception, and no code runs."""
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(exported_net[1]) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    full = next(entry for entry in entries if entry.endswith(name))
    document = json.loads(entries[full])
    places = list(leaves(document))

    @settings(FAST, max_examples=times)
    @given(st.sampled_from(places), st.sampled_from(LEAVES))
    def check(place: tuple[Any, ...], by: Any) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for entry, content in entries.items():
                changed = json.dumps(replaced(document, place, by)).encode() if entry == full else content
                archive.writestr(entry, changed)
        found = attempt(tmp_path / "model.pt2", buffer.getvalue(), None)
        if found is not None:
            with contextlib.suppress(ShaketableError):
                found.model(images((8, 8)))
        assert not (tmp_path / "CANARY").exists()

    check()


@pytest.mark.full
@pytest.mark.parametrize("entry", ["models/model.json", "weights_config.json", "data.pkl", None])
def test_many_flips(entry: str | None, exported_net: tuple[nn.Module, Path], tmp_path: Path) -> None:
    content = weights(False) if entry == "data.pkl" else exported_net[1].read_bytes()
    spec, path = (SPEC, tmp_path / "m.pt") if entry == "data.pkl" else (None, tmp_path / "m.pt2")

    @settings(FAST, max_examples=3000, derandomize=False)
    @given(FLIPS)
    def check(flips: Flips) -> None:
        attempt(path, rewritten(content, entry, flips) if entry else flipped(content, flips), spec)

    check()
