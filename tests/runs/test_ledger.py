"""The ledger's files: one a cell, whole, the first one stays, and none that is damaged is believed."""

import errno
import json
import math
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from shaketable.core.errors import InputError, StorageError
from shaketable.runs import Cell, DamagedCellError, Ledger, LedgerError, canonical, cells

A, B = "a" * 64, "b" * 64
RESULT = {"value": 1 / 3, "draws": [math.nan, math.inf, -math.inf, -0.0, 5e-324], "note": "é\ud800", "n": 2**70}
Values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(some.characters()),
    lambda inner: (
        some.lists(inner, max_size=4)
        | some.dictionaries(some.text(max_size=5).filter(lambda key: not key.startswith("$")), inner, max_size=4)
    ),
    max_leaves=12,
)


def cell(**changes: Any) -> Cell:
    given: dict[str, Any] = {
        "model": A,
        "data": B,
        "measure": "average",
        "version": 1,
        "settings": {"xi": 0.5},
        "seed": 0,
    }
    return Cell(**(given | changes))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "cells")


def files(ledger: Ledger) -> list[str]:
    """Everything that is in the ledger's folder and below."""
    return sorted(str(path.relative_to(ledger.folder)) for path in ledger.folder.rglob("*") if path.is_file())


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, in kind and in order; every NaN is the same."""
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def shuffled(value: Any, chance: random.Random) -> Any:
    """The same value, its dicts filled in another order."""
    if isinstance(value, dict):
        keys = chance.sample(list(value), len(value))
        return {key: shuffled(value[key], chance) for key in keys}
    return [shuffled(item, chance) for item in value] if isinstance(value, list) else value


@settings(max_examples=60, deadline=None)
@given(Values)
def test_any_value_comes_back_to_the_bit_from_one_text(value: Any) -> None:
    text = canonical.text(value)
    assert text.isascii()
    assert same(canonical.read(text), value)
    assert canonical.text(canonical.read(text)) == text
    json.loads(text, parse_constant=lambda name: pytest.fail(f"a bare {name}"))


@settings(max_examples=30, deadline=None)
@given(some.dictionaries(some.sampled_from("abcd"), Values), some.randoms())
def test_the_order_of_settings_does_not_matter(settings: dict[str, Any], chance: random.Random) -> None:
    assert cell(settings=settings).key == cell(settings=shuffled(settings, chance)).key


@settings(max_examples=40, deadline=None)
@given(Values, Values)
def test_two_settings_have_one_key_only_if_they_are_the_same(a: Any, b: Any) -> None:
    first, second = cell(settings={"x": a}), cell(settings={"x": b})
    assert (first.key == second.key) == same(a, b)
    assert (first == second) == same(a, b)
    assert (hash(first) == hash(second)) == same(a, b)


@pytest.mark.parametrize(
    "other",
    [
        {"model": B}, {"data": A}, {"measure": "worst"}, {"version": 2}, {"seed": 1}, {"settings": {}},
        {"settings": {"xi": 0.5, "law": None}}, {"settings": {"XI": 0.5}}, {"settings": {"xi": "0.5"}},
    ],
)  # fmt: skip
def test_another_cell_has_another_key(other: dict[str, Any]) -> None:
    assert cell(**other).key != cell().key
    assert cell(**other) != cell()


def test_one_as_integer_as_float_and_as_truth_are_three_settings() -> None:
    keys = [cell(settings={"x": value}).key for value in (1, 1.0, True, "1", [1], -0.0, 0.0, 0, False, None, {})]
    assert len(set(keys)) == len(keys)
    assert cell(settings={"x": (1, 2)}).key == cell(settings={"x": [1, 2]}).key  # JSON knows no tuples


def test_the_key_of_a_cell_is_the_same_in_all_times() -> None:
    """A change here makes every ledger there is worthless."""
    assert cell().key == "4c4222cdf841eca15353260e70f5720cf4288671f91204b207b28def4bf501ac"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"model": "best.safetensors"}, "model: expected a SHA-256"),
        ({"data": A.upper()}, "data: expected a SHA-256"),
        ({"measure": ""}, "measure: expected a name"),
        ({"version": 0}, "version >= 1"),
        ({"version": 1.0}, "version: expected a whole number"),
        ({"seed": True}, "seed: expected a whole number"),
        ({"settings": [1]}, "a dict, found 1 and list"),
        ({"settings": {"path": Path("x")}}, "settings: expected a value that JSON holds"),
        ({"settings": {1: 2}}, "keys are texts"),
        ({"settings": {"$number": "NaN"}}, r"begin with \$"),
        ({"settings": {"n": 10**5000}}, "settings: expected"),
    ],
)
def test_what_is_no_cell_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        cell(**wrong)


def test_settings_are_a_copy_that_later_changes_do_not_reach() -> None:
    settings: dict[str, Any] = {"xi": [0.5]}
    made = cell(settings=settings)
    key = made.key
    settings["xi"].append(1)
    assert made.settings == {"xi": [0.5]}
    assert Cell(**made.to_json()).key == key
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    with pytest.raises(InputError, match="settings"):
        cell(settings=loop)


def test_what_is_put_is_got(ledger: Ledger) -> None:
    assert ledger.get(cell()) is None
    assert not ledger.folder.exists()  # looking makes nothing
    assert same(ledger.put(cell(), RESULT), RESULT)
    assert same(ledger.get(cell()), RESULT)
    assert ledger.get(cell(seed=1)) is None
    assert files(ledger) == [f"{cell().key}.json"]
    (record,) = ledger.records()
    assert record.cell == cell()
    assert same(record.result, RESULT)
    assert record.made["threads"] == 1
    assert set(record.made) == {"shaketable", "torch", "python", "threads"}


def test_the_first_result_stays(ledger: Ledger) -> None:
    ledger.put(cell(), {"value": 1})
    before = ledger.path(cell()).read_bytes()
    assert ledger.put(cell(), {"value": 2}) == {"value": 1}
    assert ledger.path(cell()).read_bytes() == before
    assert ledger.put(cell(seed=1), {"value": 2}) == {"value": 2}
    assert len(files(ledger)) == 2


def test_the_same_result_is_the_same_file(ledger: Ledger, tmp_path: Path) -> None:
    ledger.put(cell(), RESULT)
    Ledger(tmp_path / "other").put(cell(), dict(reversed(RESULT.items())))
    assert ledger.path(cell()).read_bytes() == Ledger(tmp_path / "other").path(cell()).read_bytes()


@pytest.mark.parametrize("result", [[1], None, {"x": object()}, {1: 2}, {"x": {"$number": 1}}])
def test_a_result_that_is_no_json_is_refused(ledger: Ledger, result: Any) -> None:
    with pytest.raises(InputError, match="result: expected"):
        ledger.put(cell(), result)
    assert not ledger.folder.exists()


def in_children(count: int, do: Callable[[int], Any]) -> list[Any]:
    """What a function returns, or the kind of its error, in processes that run at the same time."""
    ready, go = os.pipe()
    pipes, answers = [os.pipe() for _ in range(count)], []
    for number, (_, writing) in enumerate(pipes):
        if os.fork() == 0:
            os.close(go)
            os.read(ready, 1)  # ends for all when the parent closes its end
            try:
                answer = do(number)
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
            os.write(writing, json.dumps(answer).encode())
            os._exit(0)
        os.close(writing)
    os.close(ready)
    os.close(go)
    for reading, _ in pipes:
        with os.fdopen(reading, "rb") as stream:
            answers.append(json.loads(stream.read()))
    for _ in range(count):
        os.wait()
    return answers


def test_of_writers_at_the_same_time_one_is_first_and_all_see_its_result(ledger: Ledger) -> None:
    def write(number: int) -> list[int]:
        results = ({"writer": number, "long": [k / 7] * 500} for k in range(10))
        return [ledger.put(cell(seed=k), result)["writer"] for k, result in enumerate(results)]

    answers = in_children(6, write)
    assert all(answer == answers[0] for answer in answers)
    assert [record.result["writer"] for record in sorted(ledger.records(), key=lambda r: r.cell.seed)] == answers[0]
    assert len(files(ledger)) == 10


def no_links(_source: Path, _target: Path) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_where_there_are_no_links_a_file_is_renamed_and_the_first_stays(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", no_links)
    assert ledger.put(cell(), {"value": 1}) == {"value": 1}
    monkeypatch.setattr(Ledger, "get", lambda *_: None)  # as if another wrote it after the look
    with pytest.raises(LedgerError, match="Let nobody delete"):
        ledger.put(cell(), {"value": 2})
    monkeypatch.undo()
    assert ledger.get(cell()) == {"value": 1}
    assert files(ledger) == [f"{cell().key}.json"]


def test_one_claim_at_a_time_and_it_ends_with_its_process(ledger: Ledger) -> None:
    def claim(_number: int) -> list[bool]:
        with ledger.claim("k") as mine, ledger.claim("other") as other:
            return [mine, other]

    with ledger.claim("k") as mine:
        assert mine
        assert in_children(1, claim) == [[False, True]]
    assert files(ledger) == []
    assert in_children(1, claim) == [[True, True]]
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        with ledger.claim("k"):
            os.write(writing, b"x")
            signal.pause()
    os.read(reading, 1)
    with ledger.claim("k") as mine:
        assert not mine
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with ledger.claim("k") as mine:
        assert mine
    os.close(reading)
    os.close(writing)


def test_claims_exclude_each_other_however_they_follow(ledger: Ledger) -> None:
    """The holder removes the file: one that opened it before must not take the lock of a file without a name."""
    shared = ledger.folder.parent / "shared"
    shared.write_text("0")

    def add(_number: int) -> int:
        taken = 0
        while taken < 40:
            with ledger.claim("k") as mine:
                if mine:
                    shared.write_text(str(int(shared.read_text()) + 1))  # lost, if two are here
                    taken += 1
        return taken

    assert in_children(3, add) == [40] * 3
    assert shared.read_text() == "120"


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Some content with one bit changed, or cut off somewhere."""
    if chance.random() < 0.3:
        return content[: chance.randrange(len(content) - 1)]
    at = chance.randrange(len(content) - 1)  # the last byte is the end of the line
    return content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]


def test_a_damaged_file_is_never_believed(ledger: Ledger) -> None:
    ledger.put(cell(), RESULT)
    path, chance = ledger.path(cell()), random.Random(0)
    content = path.read_bytes()
    for _ in range(100):
        path.write_bytes(damaged(content, chance))
        with pytest.raises(LedgerError) as caught:
            ledger.get(cell())
        assert caught.value.argument == str(path)
        with pytest.raises(LedgerError):
            ledger.put(cell(), RESULT)
        with pytest.raises(LedgerError):
            list(ledger.records())
    path.write_bytes(content)
    assert same(ledger.get(cell()), RESULT)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 300, b"{}", b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"format": NaN}', b"1e999", b"null"],
)
def test_what_is_no_file_of_a_cell_is_a_damaged_one(ledger: Ledger, content: bytes) -> None:
    ledger.put(cell(), RESULT)
    ledger.path(cell()).write_bytes(content)
    with pytest.raises(DamagedCellError, match=r"Remove .*measured anew"):
        ledger.get(cell())


def signed(**changes: Any) -> bytes:
    """A file whose sum is right, but whose content is not what it should be."""
    record = json.loads(cells.document(cell(), {"value": 1}))
    del record["sha256"]
    record |= changes
    return canonical.text(record | {"sha256": cells._digest(record)}).encode()


@pytest.mark.parametrize("changes", [{"cell": {}}, {"cell": None}, {"result": [1]}, {"result": None}, {"made": 3}])
def test_a_file_with_the_right_sum_and_the_wrong_content_is_damaged(ledger: Ledger, changes: dict[str, Any]) -> None:
    ledger.put(cell(), RESULT)
    ledger.path(cell()).write_bytes(signed(**changes))
    with pytest.raises(DamagedCellError):
        ledger.get(cell())


def test_another_cells_file_and_another_format_are_told_apart(ledger: Ledger) -> None:
    ledger.put(cell(), RESULT)
    ledger.put(cell(seed=1), RESULT)
    os.replace(ledger.path(cell(seed=1)), ledger.path(cell()))
    with pytest.raises(DamagedCellError, match="expected the cell of its name"):
        ledger.get(cell())
    with pytest.raises(DamagedCellError, match="expected the cell of its name"):
        list(ledger.records())
    ledger.path(cell()).write_bytes(signed(format="shaketable cell 2"))
    with pytest.raises(LedgerError, match="Use the version of Shaketable that wrote it") as caught:
        ledger.get(cell())
    assert not isinstance(caught.value, DamagedCellError)  # it is not thrown away


def test_a_damaged_file_is_put_aside_and_its_name_is_free(ledger: Ledger) -> None:
    ledger.put(cell(), RESULT)
    ledger.path(cell()).write_bytes(b"half")
    aside = ledger.set_aside(cell())
    assert (ledger.folder / aside).read_bytes() == b"half"
    assert ledger.get(cell()) is None
    assert ledger.put(cell(), {"value": 2}) == {"value": 2}
    assert len(list(ledger.records())) == 1


def test_what_died_processes_left_is_removed_and_what_living_ones_use_is_not(ledger: Ledger) -> None:
    ledger.put(cell(), RESULT)
    partial, claims = ledger.folder / ".partial", ledger.folder / ".claims"
    claims.mkdir(exist_ok=True)
    for name in ("dead", "living"):
        (partial / f"{name}.1234").write_text("half")
        (claims / name).touch()
    ready, done = os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        with ledger.claim("living"):
            os.write(ready[1], b"x")
            os.read(done[0], 1)
            os._exit(0)
    os.read(ready[0], 1)
    ledger.tidy()
    assert files(ledger) == [".claims/living", ".partial/living.1234", f"{cell().key}.json"]
    os.write(done[1], b"x")
    os.waitpid(child, 0)
    ledger.tidy()
    assert files(ledger) == [f"{cell().key}.json"]
    for handle in (*ready, *done):
        os.close(handle)


@pytest.mark.parametrize("call", ["fsync", "link"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_an_error_of_the_disk_is_told_and_leaves_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StorageError, match="--out") as caught:
        ledger.put(cell(), RESULT)
    assert caught.value.found == os.strerror(number)
    monkeypatch.undo()
    assert files(ledger) == []
    assert ledger.get(cell()) is None


def test_the_content_is_on_the_disk_before_its_name(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, link = os.fsync, os.link

    def watch_fsync(handle: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def watch_link(source: Path, target: Path) -> None:
        steps.append("link")
        link(source, target)

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(os, "link", watch_link)
    ledger.put(cell(), RESULT)
    assert steps == ["file", "link", "folder"]


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ledger = Ledger(tmp_path / "file" / "cells")
    assert ledger.get(cell()) is None
    with pytest.raises(StorageError, match="part of the path is a file"):
        ledger.put(cell(), RESULT)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(ledger: Ledger) -> None:
    ledger.put(cell(), RESULT)
    ledger.folder.chmod(0o500)
    try:
        assert same(ledger.get(cell()), RESULT)
        with pytest.raises(StorageError, match="rights"):
            ledger.put(cell(seed=1), RESULT)
    finally:
        ledger.folder.chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user without rights")
def test_a_folder_that_another_user_cannot_write(ledger: Ledger, tmp_path: Path) -> None:
    ledger.put(cell(), RESULT)
    opened = os.open(ledger.folder, os.O_RDONLY)

    def write(_number: int) -> Any:
        os.fchdir(opened)  # whatever is above it
        os.setuid(65534)
        there = Ledger(Path("."))
        assert there.get(cell()) is not None
        return there.put(cell(seed=1), RESULT)

    (answer,) = in_children(1, write)
    os.close(opened)
    assert answer.startswith("StorageError")
    assert "Permission denied. Change the folder's rights" in answer
