"""Real SIGKILLs: whenever a run dies, what it left is whole, and going on ends in the same bits."""

import itertools
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Check = Callable[[Path], list[Any]]


@pytest.fixture(scope="module", params=["plain"])
def settings(request: pytest.FixtureRequest) -> str:
    """Which training of `tiny_training.SETTINGS`."""
    return request.param


@pytest.fixture(scope="module")
def uninterrupted(server: Any, settings: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run that nothing interrupted; twice, since the first one also warms the disk."""
    runs = [server.run(tmp_path_factory.mktemp("whole"), settings=settings) for _ in range(2)]
    assert runs[0]["digest"] == runs[1]["digest"]
    assert (runs[0]["resumed"], runs[0]["killed"]) == (None, False)
    return runs[1]


@pytest.fixture
def survives(
    server: Any, settings: str, uninterrupted: dict[str, Any], tmp_path: Path, checkpoints: Check
) -> Callable[..., bool]:
    """Starts a run, lets it die as asked, looks at what is left, resumes it and compares; says whether it did die."""
    folders: Iterator[int] = iter(range(1000))

    def check(**death: Any) -> bool:
        folder = tmp_path / str(next(folders))
        died = server.run(folder, settings=settings, **death)
        left = checkpoints(folder)  # opens each: none is damaged
        assert len(left) <= 2
        again = server.run(folder, settings=settings)
        assert not again["killed"], again
        for key in ("digest", "weights"):
            assert again[key] == uninterrupted[key], death
        assert (again["resumed"] is None) == (not left)
        assert len(checkpoints(folder)) == 1
        assert [p.name for p in (folder / "checkpoints").iterdir() if p.name.startswith(".")] == []
        return died["killed"]

    return check


def kill_at_random(survives: Callable[..., bool], uninterrupted: dict[str, Any], kills: int, seed: int) -> None:
    chance, done = random.Random(seed), 0
    for _ in range(4 * kills):
        done += survives(after=chance.uniform(0.0, uninterrupted["seconds"]))
        if done == kills:
            return
    raise AssertionError(f"only {done} of {kills} runs died before they ended: the machine's speed varies too much")


def test_five_kills_at_random_moments(survives: Callable[..., bool], uninterrupted: dict[str, Any]) -> None:
    kill_at_random(survives, uninterrupted, 5, 1)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_fifty_kills_at_random_moments(survives: Callable[..., bool], uninterrupted: dict[str, Any]) -> None:
    kill_at_random(survives, uninterrupted, 50, 2)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("settings", ["amp", "ema", "accumulate"], indirect=True)
def test_five_kills_with_more_to_lose(survives: Callable[..., bool], uninterrupted: dict[str, Any]) -> None:
    """bfloat16, an average with BatchNorm's statistics re-estimated, micro-batches; each with AWP."""
    kill_at_random(survives, uninterrupted, 5, 4)


def test_kills_inside_the_writing_of_checkpoints(survives: Callable[..., bool], uninterrupted: dict[str, Any]) -> None:
    chance = random.Random(3)
    for at in chance.sample(range(uninterrupted["calls"]), 4):
        assert survives(at=at), "the training made fewer calls than before"
    for torn in chance.sample(range(uninterrupted["writes"]), 2):
        assert survives(torn=torn)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_kills_at_every_call_of_two_checkpoints(survives: Callable[..., bool], uninterrupted: dict[str, Any]) -> None:
    """The first, which makes the folder, and a later one, which removes the one before."""
    each = uninterrupted["calls"] // 9 + 1
    for at in [*range(each), *range(4 * each, 5 * each)]:
        assert survives(at=at)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_kills_in_the_middle_of_every_write(survives: Callable[..., bool], uninterrupted: dict[str, Any]) -> None:
    for torn in range(uninterrupted["writes"]):
        assert survives(torn=torn)


def test_a_run_that_is_killed_again_and_again_ends_all_the_same(
    server: Any, uninterrupted: dict[str, Any], tmp_path: Path, checkpoints: Check
) -> None:
    each = uninterrupted["calls"] // 9
    names: list[str] = []
    while (found := server.run(tmp_path, at=each + each // 2))["killed"]:  # a checkpoint, and half of the next
        names += [generation.folder.name for generation in checkpoints(tmp_path)[-1:]]
        assert len(names) < 20
    assert found["digest"] == uninterrupted["digest"]
    assert len(set(names)) >= 4
    assert names == sorted(names)


def test_the_disk_is_full_at_some_point(
    server: Any, uninterrupted: dict[str, Any], tmp_path: Path, checkpoints: Check
) -> None:
    """A limit on the size of files, real, stands for the disk: the error is clear, the checkpoint before it stays."""
    found = server.run(tmp_path, limit_after=4)
    assert found["error"] == "StorageError"
    assert "expected a place that can be written, found File too large" in found["text"]
    assert "--out" in found["text"]
    assert [generation.folder.name for generation in checkpoints(tmp_path)] == ["000001-000000"]  # of the third event
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["000001-000000"]
    assert server.run(tmp_path)["digest"] == uninterrupted["digest"]


@pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, to become a user without rights; others: see test_generation.py"
)
def test_the_folder_cannot_be_written_any_more(server: Any, uninterrupted: dict[str, Any], checkpoints: Check) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        found = server.run(folder, nobody_after=4)
        assert found["error"] == "StorageError"
        assert "found Permission denied. Change the folder's rights" in found["text"]
        assert [generation.folder.name for generation in checkpoints(folder)] == ["000001-000000"]
        assert server.run(folder)["digest"] == uninterrupted["digest"]


def test_the_kills_are_real(server: Any, uninterrupted: dict[str, Any], tmp_path: Path, checkpoints: Check) -> None:
    """They come at different places: before the first checkpoint, in the middle, and inside the writing of one."""
    assert server.run(tmp_path / "early", at=0)["killed"]
    assert checkpoints(tmp_path / "early") == []
    assert server.run(tmp_path / "late", at=uninterrupted["calls"] - 1)["killed"]
    assert checkpoints(tmp_path / "late")
    sizes = []
    for torn in (0, 1, 2):  # weights, state, manifest
        assert server.run(tmp_path / str(torn), torn=torn)["killed"]
        (half,) = (tmp_path / str(torn) / "checkpoints").glob(".writing-*")
        sizes.append([p.stat().st_size for p in sorted(half.iterdir(), key=lambda p: p.stat().st_mtime_ns)])
    assert [len(size) for size in sizes] == [1, 2, 3]
    for size, later in itertools.pairwise(sizes):  # what was half is whole at the next death
        assert size[-1] == pytest.approx(later[len(size) - 1] / 2, abs=1)
    assert server.run(tmp_path / "whole", at=uninterrupted["calls"])["digest"] == uninterrupted["digest"]
