"""Two processes that train together: one dies, by a real SIGKILL, is asked to stop, or goes on alone, and nothing is lost."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

Check = Callable[[Path], list[Any]]
Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def pair(server: Any) -> Run:
    """Runs a training in two processes; how each of them ended. The server kills what has not ended after 90 s."""

    def run(folder: Path, **request: Any) -> list[dict[str, Any]]:
        found = server.run(folder, count=2, **request)["processes"]
        assert not any(process["hung"] for process in found), found
        return found

    return run


@pytest.fixture(scope="module", params=["all"])
def settings(request: pytest.FixtureRequest) -> str:
    """Which training of `tiny_training.SETTINGS`."""
    return request.param


@pytest.fixture(scope="module")
def uninterrupted(server: Any, settings: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run of two processes that nothing interrupted: what the first one ends with, and how long the two took."""
    found = server.run(tmp_path_factory.mktemp("whole"), settings=settings, count=2)
    first, second = found["processes"]
    assert (first["resumed"], first["killed"], first["elsewhere"]) == (None, False, [])
    assert second["digest"] == first["digest"]
    assert second["calls"] == 0  # of those that write: the first process alone does
    alone = server.run(tmp_path_factory.mktemp("alone"), settings=settings)
    assert alone["weights"] != first["weights"]  # BatchNorm's statistics are each process' own
    return first | {"trained": found["trained"]}


@pytest.fixture
def survives(
    pair: Run, settings: str, uninterrupted: dict[str, Any], tmp_path: Path, checkpoints: Check
) -> Callable[..., bool]:
    """Kills one of two processes, looks at the other and at what is left, resumes both and compares; says whether it died."""
    folders: Iterator[int] = iter(range(1000))

    def check(victim: int, after: float) -> bool:
        folder = tmp_path / str(next(folders))
        died = pair(folder, settings=settings, victim=victim, after=after)
        other = died[1 - victim]
        assert not other["killed"]
        if died[victim]["killed"]:
            assert other["late"] < 20
            if "error" in other:
                assert other["error"] == "ProcessError", other
                assert other["text"].startswith("processes: expected an answer from all 2 processes, found ")
                assert "go on with --resume" in other["text"]
            else:  # there was nothing more to ask
                assert other["events"] == uninterrupted["events"]
        left = checkpoints(folder)  # opens each: none is damaged
        assert len(left) <= 2
        again = pair(folder, settings=settings)
        for process in again:
            assert not process["killed"], process
            assert process["weights"] == uninterrupted["weights"], (victim, after)
            assert process["digest"] == uninterrupted["digest"], (victim, after)
            assert (process["resumed"] is None) == (not left)
            assert process["elsewhere"] == []
        assert len(checkpoints(folder)) == 1
        assert [p.name for p in (folder / "checkpoints").iterdir() if p.name.startswith(".")] == []
        return died[victim]["killed"]

    return check


def kill_at_random(survives: Callable[..., bool], uninterrupted: dict[str, Any], kills: int, seed: int) -> None:
    chance, done = random.Random(seed), 0
    for k in range(4 * kills):
        done += survives(k % 2, chance.uniform(0.0, uninterrupted["trained"]))
        if done == kills:
            return
    raise AssertionError(f"only {done} of {kills} runs died before they ended: the machine's speed varies too much")


def test_four_kills_at_random_moments(survives: Callable[..., bool], uninterrupted: dict[str, Any]) -> None:
    kill_at_random(survives, uninterrupted, 4, 1)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("settings", ["amp", "ema", "accumulate"], indirect=True)
def test_five_kills_at_random_moments(survives: Callable[..., bool], uninterrupted: dict[str, Any]) -> None:
    """bfloat16, an average with BatchNorm's statistics re-estimated, micro-batches; each with AWP."""
    kill_at_random(survives, uninterrupted, 5, 2)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_to_the_same_end_but_for_rounding(
    before: int, after: int, server: Any, tmp_path: Path, checkpoints: Check
) -> None:
    """In float64, to 1e-10. Not to the bit: sums over a batch are rounded where it is cut, and that is by the processes."""

    def run(folder: str, count: int, **request: Any) -> list[dict[str, Any]]:
        counted = {"count": count} if count > 1 else {}
        found = server.run(
            tmp_path / folder, settings="double", end=str(tmp_path / folder / "end"), **counted, **request
        )
        return found.get("processes", [found])

    run("whole", before)
    for process in run("stopped", before, stop_after=4):  # asked by a signal to the last process alone
        assert process["error"] == "Interrupted", process
        assert process["events"] == 4
    assert [generation.folder.name for generation in checkpoints(tmp_path / "stopped")] == ["000001-000001"]
    for process in run("stopped", after):
        assert process["elsewhere"] == [f"processes: {before}, now {after}"]
        assert process["resumed"] == 2
    first, *others = [
        torch.load(tmp_path / folder / f"end-{rank}.pt", weights_only=True)
        for folder, count in (("whole", before), ("stopped", after))
        for rank in range(count)
    ]
    for other in others:
        for part in ("model", "average"):
            assert other[part].keys() == first[part].keys()
            for name, expected in first[part].items():
                assert expected.dtype == torch.float64
                torch.testing.assert_close(other[part][name], expected, rtol=0, atol=1e-10)


def test_a_folder_that_the_processes_do_not_share_is_an_error_in_all(
    pair: Run, tmp_path: Path, checkpoints: Check
) -> None:
    assert pair(tmp_path, stop_after=4)[0]["error"] == "Interrupted"
    expected = "the same checkpoint in all processes, found in order of rank: epoch 1, step 1, epoch 0, step 0"
    for process in pair(tmp_path, astray=1):
        assert process["error"] == "CheckpointError"
        assert expected in process["text"]
        assert process["events"] == 0
    assert len(checkpoints(tmp_path)) == 1


def test_a_full_disk_ends_both_processes(pair: Run, tmp_path: Path, checkpoints: Check) -> None:
    first, second = pair(tmp_path, limit_after=4)
    assert first["error"] == "StorageError"
    assert second["error"] == "ProcessError"
    assert [generation.folder.name for generation in checkpoints(tmp_path)] == ["000001-000000"]
