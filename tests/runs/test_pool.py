"""Filling a ledger: the same table however many processes there are, and whoever of them dies."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import util
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from shaketable.core.errors import InputError, StorageError
from shaketable.plugins import load
from shaketable.runs import (
    Interrupted,
    Ledger,
    LedgerError,
    Lines,
    Outcome,
    WorkerError,
    canonical,
    fill,
    worker_process,
)

FILE = Path(__file__).with_name("cell_server.py")
COUNT, SECONDS = 12, 0.03  # of the fills that are killed


def module(path: Path) -> ModuleType:
    spec = util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


CELLS = module(FILE)
expected_of = load(f"{FILE.with_name('cell_functions.py')}:expected", "a")


@pytest.fixture(scope="session")
def socket_path() -> Iterator[str]:
    """Where processes are asked for that have imported the package already."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, str(FILE), "serve", path]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield path
            process.stdin.close()
            process.wait(timeout=60)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, socket_path: str) -> None:
    """Workers that start in hundredths of a second."""
    monkeypatch.setattr(worker_process, "COMMAND", CELLS.command(socket_path, {}))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "cells")


def table(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Errors and results in order."""
    return [one.error or canonical.text(one.result) for one in outcomes.values()]


def expected(count: int) -> list[str]:
    return [canonical.text(expected_of(n)) for n in range(count)]


def left_over(ledger: Ledger) -> list[str]:
    """What is in the ledger's folder beside finished cells."""
    return [path.name for path in ledger.folder.rglob("*") if path.is_file() and path.suffix != ".json"]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.usefixtures("quick")
def test_the_table_does_not_depend_on_the_number_of_workers(ledger: Ledger, workers: int) -> None:
    tasks = CELLS.squares(5)
    found = fill(ledger, [*tasks, tasks[0]], workers=workers)
    assert list(found) == [task.cell.key for task in tasks]
    assert table(found) == expected(5)
    assert [record.made["threads"] for record in ledger.records()] == [1] * 5
    assert left_over(ledger) == []


def test_workers_as_they_really_are(ledger: Ledger) -> None:
    """Started as new interpreters: the others here are forked from one that has imported the package."""
    tasks = [*CELLS.squares(2), CELLS.task("talk", returns="ok", reads=True), CELLS.task("refuse", ours=True)]
    found = table(fill(ledger, tasks, workers=1))
    assert found[:2] == expected(2)
    assert found[2] == '{"read":""}'  # it was not given what is for the worker
    assert found[3] == "xi: expected a radius >= 0, found -1. Use 0.5."


def test_what_is_there_is_only_read(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    tasks = CELLS.squares(4, log=str(log))
    fill(ledger, tasks[:2], workers=0)
    fill(ledger, tasks, workers=0)
    assert Counter(line.split()[0] for line in log.read_text().splitlines()) == Counter("0123")

    def fail(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("it was written to")

    for call in ("open", "link", "mkdir", "unlink", "replace"):
        monkeypatch.setattr(os, call, fail)
    monkeypatch.setattr(subprocess, "Popen", fail)
    assert table(fill(ledger, tasks, workers=3)) == expected(4)
    assert fill(ledger, [], workers=3) == {}


def test_a_claim_of_a_finished_cell_that_nobody_holds_goes_with_the_next_that_is_measured(ledger: Ledger) -> None:
    tasks = CELLS.squares(3)
    fill(ledger, tasks[:2], workers=0)
    (ledger.folder / ".claims" / tasks[0].cell.key).touch()  # as one leaves that is killed after its last result
    assert table(fill(ledger, tasks[:2], workers=0)) == expected(2)
    assert left_over(ledger) == [tasks[0].cell.key]
    assert table(fill(ledger, tasks, workers=0)) == expected(3)
    assert left_over(ledger) == []


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("quick")
def test_an_error_is_its_cells_own_and_is_tried_again(ledger: Ledger, workers: int) -> None:
    tasks = [
        CELLS.task("refuse", ours=True), *CELLS.squares(2), CELLS.task("refuse"), CELLS.task("talk", returns="list"),
        CELLS.task("talk", returns="tensor"), CELLS.task("nowhere"),
    ]  # fmt: skip
    for _ in range(2):
        found = table(fill(ledger, tasks, workers=workers))
        assert found[0] == "xi: expected a radius >= 0, found -1. Use 0.5."
        assert found[1:3] == expected(2)
        assert found[3].startswith("ZeroDivisionError: no such thing (cell_functions.py, line ")
        assert "expected a dict of JSON values, found list" in found[4]
        assert "expected a value that JSON holds, found object" in found[5]
        assert "'nowhere'" in found[6]
        assert len(list(ledger.records())) == 2


@pytest.mark.usefixtures("quick")
def test_a_worker_that_dies_takes_no_other_cell_with_it(ledger: Ledger, tmp_path: Path) -> None:
    memory = [str(tmp_path / name) for name in "abc"]
    tasks = [
        CELLS.task("die", memory=memory[0], times=99), *CELLS.squares(3), CELLS.task("die", memory=memory[1], times=1),
        CELLS.task("die", memory=memory[2], times=99, exit=3),
    ]  # fmt: skip
    found = table(fill(ledger, tasks, workers=2))
    assert found[0] == "Its process died 2 times: it was ended by SIGKILL. Was there too little memory?"
    assert found[1:5] == [*expected(3), expected(1)[0]]
    assert found[5] == "Its process died 2 times: it ended with exit code 3."
    assert Path(memory[0]).read_text() == "xx"
    assert [record.cell.measure for record in ledger.records()].count("die") == 1
    again = table(fill(ledger, tasks[:1], workers=1))  # it is tried again: now it finds that it has died four times
    assert again == found[:1]
    assert Path(memory[0]).read_text() == "xxxx"
    assert left_over(ledger) == []  # nor the claims of those that died


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("quick")
def test_a_damaged_file_is_put_aside_measured_again_and_named(ledger: Ledger, workers: int) -> None:
    tasks = CELLS.squares(3)
    fill(ledger, tasks, workers=0)
    path = ledger.path(tasks[1].cell)
    path.write_bytes(path.read_bytes().replace(b"1.1", b"1.2"))
    found = fill(ledger, tasks, workers=workers)
    assert table(found) == expected(3)
    (aside,) = [one.aside for one in found.values() if one.aside]
    assert b"1.2" in (ledger.folder / aside).read_bytes()
    assert [one.aside for one in fill(ledger, tasks, workers=0).values()] == [None] * 3


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.usefixtures("quick")
def test_a_file_of_another_version_stops_it_and_stays(ledger: Ledger, workers: int) -> None:
    from shaketable.runs import cells

    (task,) = CELLS.squares(1)
    record = json.loads(cells.document(task.cell, {"value": 1})) | {"format": "shaketable cell 99"}
    del record["sha256"]
    ledger.folder.mkdir()
    ledger.path(task.cell).write_text(canonical.text(record | {"sha256": cells._digest(record)}))
    with pytest.raises(LedgerError, match="Use the version of Shaketable that wrote it"):
        fill(ledger, [task], workers=workers)
    assert ledger.path(task.cell).exists()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.usefixtures("quick")
def test_a_ledger_that_cannot_be_written_stops_it(tmp_path: Path, workers: int) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="part of the path is a file"):
        fill(Ledger(tmp_path / "file" / "cells"), CELLS.squares(2), workers=workers)
    ledger = Ledger(tmp_path / "cells")
    ledger.folder.mkdir()
    (ledger.folder / ".partial").touch()  # found by the workers alone
    with pytest.raises(StorageError, match="found File exists"):
        fill(ledger, CELLS.squares(2), workers=workers)


def test_threads_are_given_back(ledger: Ledger) -> None:
    torch.set_num_threads(2)
    fill(ledger, CELLS.squares(1), workers=0, threads=1)
    assert torch.get_num_threads() == 2
    assert [record.made["threads"] for record in ledger.records()] == [1]


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"workers": 1, "threads": 0}])
def test_numbers_that_cannot_be(ledger: Ledger, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="workers, threads"):
        fill(ledger, CELLS.squares(1), **wrong)
    with pytest.raises(InputError, match="cost"):
        CELLS.task("square", n=1, cost=0.0)
    with pytest.raises(InputError, match="arguments"):
        CELLS.task("square", n=1, log=Path("x"))


def test_workers_that_do_not_start(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; sys.exit('No module named torch')"
    monkeypatch.setattr(worker_process, "COMMAND", [sys.executable, "-I", "-S", "-c", code])
    with pytest.raises(WorkerError, match=r"exit code 1: No module named torch. Use --workers 0"):
        fill(ledger, CELLS.squares(3), workers=2)


@pytest.mark.usefixtures("quick")
def test_progress_counts_what_cells_cost_and_what_was_there(ledger: Ledger) -> None:
    class Seen(Lines):
        @contextmanager
        def stage(self, name: str, total: float) -> Iterator[Any]:
            seen.append((name, total))
            yield self

        def update(self, done: float, note: str = "") -> None:
            seen.append((done, note))

    seen: list[tuple[Any, Any]] = []
    tasks = [CELLS.task("square", n=n, cost=cost, seconds=0.6) for n, cost in enumerate((1.0, 3.0))]
    fill(ledger, tasks[:1], workers=0)
    fill(ledger, tasks, workers=1, progress=Seen(StringIO()), label="flatness")
    assert seen[:2] == [("flatness", 4.0), (1.0, "")]
    assert seen[-1] == (4.0, "")
    done = [update[0] for update in seen[1:]]
    assert done == sorted(done)
    assert 2.5 in done  # a half of the second


class Fills:
    """Fills in processes of their own, which can be killed, and what they leave."""

    def __init__(self, path: str, folder: Path) -> None:
        self.path, self.folder, self.log = path, folder, folder / "log"
        self.ledger = Ledger(folder / "cells")

    def start(self, workers: int, seconds: float = SECONDS, count: int = COUNT) -> "subprocess.Popen[str]":
        request = {
            "folder": str(self.ledger.folder), "log": str(self.log), "workers": workers, "seconds": seconds, "count": count,
        }  # fmt: skip
        return subprocess.Popen(CELLS.command(self.path, request), stdout=subprocess.PIPE, text=True)

    def end(self, process: "subprocess.Popen[str]") -> dict[str, Any]:
        """What it says; {} if it was killed."""
        said = process.communicate(timeout=60)[0].splitlines()
        assert process.returncode == (-signal.SIGKILL if len(said) < 2 else 0)
        return json.loads(said[1]) if len(said) > 1 else {}

    def lines(self) -> list[list[str]]:
        """Number and process of every call of the cells' function."""
        return [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def workers(self) -> list[int]:
        """The processes that have done cells and are alive."""
        return [pid for pid in {int(line[1]) for line in self.lines()} if alive(pid)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def fills(socket_path: str, tmp_path: Path) -> Fills:
    return Fills(socket_path, tmp_path)


def until(condition: Callable[[], Any]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that in time")


def killed_at_random(fills: Fills, chance: random.Random) -> bool:
    """Kill a fill or one of its workers, look at what is left, and let another number of workers end it.

    After as many cells have begun as is drawn, and a drawn part of a cell's time: as seldom too late on a slow machine.
    """
    first, later = chance.sample([0, 1, 2, 3], 2)
    process, begun, moment = fills.start(first), chance.randrange(COUNT), chance.uniform(0.0, SECONDS)
    assert process.stdout is not None
    victim = int(process.stdout.readline())
    until(lambda: len(fills.lines()) >= begun)
    time.sleep(moment)
    if chance.random() < 0.4 and (workers := fills.workers()):
        victim = chance.choice(workers)
    died = alive(victim)
    with suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    process.communicate(timeout=60)
    until(lambda: not fills.workers())  # they do not outlive it
    whole = [record.cell.key for record in fills.ledger.records()]  # each verified as it is read
    before = len(fills.lines())
    answer = fills.end(fills.start(later))
    assert list(answer["table"].values()) == [repr(canonical.read(text)) for text in expected(COUNT)]
    assert len(fills.lines()) - before == COUNT - len(whole)  # what was finished was not done again
    # A ledger that has everything is only read: a claim stays whose holder was killed between the last result and its removal.
    assert set(left_over(fills.ledger)) <= (set(whole) if len(whole) == COUNT else set())
    return died


def kill_again_and_again(path: str, folder: Path, times: int, seed: int) -> None:
    chance, deaths = random.Random(seed), 0
    for k in range(times):
        fills = Fills(path, folder / str(k))
        fills.folder.mkdir()
        deaths += killed_at_random(fills, chance)
    assert deaths > times / 2, "few of them died before they ended"


def test_four_kills_at_random_moments(socket_path: str, tmp_path: Path) -> None:
    kill_again_and_again(socket_path, tmp_path, 4, 1)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_thirty_kills_at_random_moments(socket_path: str, tmp_path: Path) -> None:
    kill_again_and_again(socket_path, tmp_path, 30, 2)


def test_workers_die_with_the_fill(fills: Fills) -> None:
    process = fills.start(2, seconds=1000.0, count=2)
    until(lambda: len(fills.lines()) == 2)
    assert len(fills.workers()) == 2
    process.kill()
    assert fills.end(process) == {}
    until(lambda: not fills.workers())
    assert list(fills.ledger.records()) == []


def test_two_fills_of_one_ledger_share_the_work(fills: Fills) -> None:
    processes = [fills.start(2), fills.start(1), fills.start(0)]
    answers = [fills.end(process)["table"] for process in processes]
    assert answers[0] == answers[1] == answers[2]
    assert list(answers[0].values()) == [repr(canonical.read(text)) for text in expected(COUNT)]
    assert Counter(line[0] for line in fills.lines()) == Counter(str(n) for n in range(COUNT))
    assert len({line[1] for line in fills.lines()}) > 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_finishes_what_runs(fills: Fills, workers: int, number: signal.Signals) -> None:
    process = fills.start(workers, seconds=0.3)
    assert process.stdout is not None
    parent = int(process.stdout.readline())
    until(lambda: len(fills.lines()) == max(workers, 1))
    os.kill(parent, number)
    found = json.loads(process.communicate(timeout=60)[0])
    assert found["error"] == "Interrupted"
    done = len(list(fills.ledger.records()))
    assert found["text"] == f"Stopped; {done} of {COUNT} are done and kept: run it again to go on."
    assert done == len(fills.lines())
    assert max(workers, 1) <= done < COUNT
    assert not fills.workers()


def test_asked_twice_it_does_not_wait(fills: Fills) -> None:
    process = fills.start(2, seconds=1000.0)
    assert process.stdout is not None
    parent = int(process.stdout.readline())
    until(lambda: len(fills.lines()) == 2)
    os.kill(parent, signal.SIGINT)
    time.sleep(0.3)
    assert len(fills.workers()) == 2
    os.kill(parent, signal.SIGINT)
    assert json.loads(process.communicate(timeout=60)[0])["error"] == "KeyboardInterrupt"
    until(lambda: not fills.workers())


def test_outside_the_main_thread_it_works_too(ledger: Ledger) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(fill(ledger, CELLS.squares(2), workers=0)))
    thread.start()
    thread.join()
    assert table(found[0]) == expected(2)


def test_interrupted_is_a_keyboard_interrupt() -> None:
    assert issubclass(Interrupted, KeyboardInterrupt)
