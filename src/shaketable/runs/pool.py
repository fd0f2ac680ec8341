"""Filling a ledger: many cells, several processes, and the same table however many there are and whenever they die."""

import contextlib
import queue
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..core.errors import InputError, ShaketableError, StorageError
from .interrupt import Interrupted, Requests, interrupts
from .ledger import DamagedCellError, Ledger, LedgerError
from .progress import Progress, Quiet, Stage
from .worker import Done, Task, work
from .worker_process import WorkerProcess

ATTEMPTS = 2  # at a cell whose process dies
_LOOK = 0.1  # seconds between two looks at the processes
_WAIT = 0.5  # seconds before a cell is asked for again that another process is at


class WorkerError(ShaketableError):
    """Worker processes that cannot be started."""


@dataclass(frozen=True)
class Outcome:
    """What became of a task: its result, or the error that it ended with.

    Args:
        aside: the name under which a damaged file of the cell was put aside before it was measured again.
    """

    task: Task
    result: dict[str, Any] | None = None
    error: str | None = None
    aside: str | None = None


def fill(
    ledger: Ledger,
    tasks: Sequence[Task],
    *,
    workers: int,
    threads: int | None = 1,
    progress: Progress | None = None,
    label: str = "cells",
) -> dict[str, Outcome]:
    """Measure all cells that have no result yet; returns what became of each, by key, in the order of the tasks.

    A cell whose function raises is recorded with its error, and one whose process dies (killed, out of memory) is tried once
    more and then recorded; the others go on. What failed is tried again by the next fill. A damaged file is put aside, and
    its cell measured again. Two fills of one ledger share the work: neither does what the other is at.

    Args:
        workers: processes, each of which does one cell after another; 0: this process does all itself, and dies with a cell
            that is killed. No number depends on it.
        threads: of each process (`torch.set_num_threads`); None: PyTorch's choice. Numbers may depend on it in their last
            bits, so it belongs into the cells' settings.
        progress: where the stage is shown.

    Raises:
        Interrupted: Ctrl-C or SIGTERM. The cells that run are finished first and kept; a second one stops at once.
        StorageError: the ledger cannot be written.
        LedgerError: it has a file of another version.
        WorkerError: no worker process starts.

    A ledger that has everything is only read. Workers die with this process, whatever ends it, without a trace but for a
    claim that nobody holds, which the next fill with something to measure removes.

    Checked by tests/runs/test_pool.py: kills of workers and of the parent at random moments, then the same table.
    """
    if workers < 0 or (threads is not None and threads < 1):
        remedy = "Use 0 to stay in this process."
        raise InputError("workers, threads", "workers >= 0, threads >= 1 or None", f"{workers}, {threads}", remedy)
    state = _Fill(ledger, {task.cell.key: task for task in reversed(tasks)})
    keys = list(dict.fromkeys(task.cell.key for task in tasks))
    for key in keys:
        state.look(key)
    if state.waiting:
        with interrupts() as requests, (progress or Quiet()).stage(label, state.total) as stage:
            stage.update(state.done())
            ledger.tidy()
            if workers:
                _in_workers(state, min(workers, len(state.waiting)), threads, requests, stage)
            else:
                _here(state, threads, requests, stage)
            ledger.tidy()  # what workers left that died of this fill's own cells
            if requests.stop and len(state.outcomes) < len(keys):
                done = f"{len(state.outcomes)} of {len(keys)} are done and kept"
                raise Interrupted(f"Stopped; {done}: run it again to go on.")
    return {key: state.outcomes[key] for key in keys}


@dataclass
class _Fill:
    """How far a fill is."""

    ledger: Ledger
    tasks: dict[str, Task]
    waiting: deque[str] = field(default_factory=deque)
    later: list[tuple[float, str]] = field(default_factory=list)  # when to ask again, and for what
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    deaths: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> float:
        return sum(task.cost for task in self.tasks.values())

    def done(self, shares: Sequence[tuple[str, float]] = ()) -> float:
        """How much is done, with the shares of the cells that run."""
        return sum(self.tasks[key].cost for key in self.outcomes) + sum(self.tasks[k].cost * s for k, s in shares)

    def look(self, key: str) -> None:
        """Take a cell's result from the ledger, or put it into the queue."""
        task = self.tasks[key]
        try:
            result = self.ledger.get(task.cell)
        except DamagedCellError:
            result = None
        if result is None:
            self.waiting.append(key)
        else:
            self.outcomes[key] = Outcome(task, result)

    def next(self) -> str | None:
        """The next cell to try; None if there is none now."""
        due = [key for when, key in self.later if when <= time.monotonic()]
        self.later = [(when, key) for when, key in self.later if key not in due]
        self.waiting.extend(due)
        return self.waiting.popleft() if self.waiting else None

    def ended(self, key: str, done: Done) -> None:
        """Note what came of an attempt."""
        if done.busy:
            self.later.append((time.monotonic() + _WAIT, key))
            return
        result = None if done.error else self.ledger.get(self.tasks[key].cell)
        error = done.error or (None if result is not None else "Its file has vanished.")
        self.outcomes[key] = Outcome(self.tasks[key], result, error, done.aside)

    def died(self, key: str, how: str) -> None:
        """Try a cell again whose process died, or record how it did."""
        self.deaths[key] += 1
        if self.deaths[key] < ATTEMPTS:
            self.waiting.append(key)
        else:
            error = f"Its process died {ATTEMPTS} times: {how}"
            self.outcomes[key] = Outcome(self.tasks[key], error=error)


def _here(state: _Fill, threads: int | None, requests: Requests, stage: Stage) -> None:
    """Do all cells in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        while (state.waiting or state.later) and not requests.stop:
            if (key := state.next()) is None:
                time.sleep(_LOOK)
                continue

            def tell(share: float, key: str = key) -> None:
                stage.update(state.done([(key, share)]))

            state.ended(key, work(state.ledger, state.tasks[key], tell))
            stage.update(state.done())
    finally:
        torch.set_num_threads(before)


def _in_workers(state: _Fill, count: int, threads: int | None, requests: Requests, stage: Stage) -> None:
    """Give cells to worker processes, replace those that die, and read what they say."""
    heard: queue.SimpleQueue[tuple[WorkerProcess, dict[str, Any]]] = queue.SimpleQueue()
    workers, unready = list[WorkerProcess](), 0  # and how many died before they were ready
    try:
        while state.waiting or state.later or any(w.key for w in workers):
            running = sum(w.key is not None for w in workers)
            if requests.stop and not running:
                break
            wanted = 0 if requests.stop else min(count, running + len(state.waiting) + len(state.later))
            while len(workers) < wanted:
                workers.append(WorkerProcess(state.ledger, threads, heard))
            for worker in workers:
                if worker.ready and worker.key is None and not requests.stop and (key := state.next()) is not None:
                    worker.give(key, state.tasks[key])
            with contextlib.suppress(queue.Empty):
                worker, message = heard.get(timeout=_LOOK)
                _hear(state, worker, message)
            for worker in [w for w in workers if w.dead]:
                while not heard.empty():  # all that was said before
                    _hear(state, *heard.get())
                workers.remove(worker)
                how = worker.end()
                if worker.key is not None:
                    state.died(worker.key, how)
                elif not worker.ready:
                    unready, count = unready + 1, max(1, count - 1)
                    if unready >= ATTEMPTS and not workers:
                        raise WorkerError("workers", "processes that start", how, "Use --workers 0 to do without.")
            note = f"finishing what runs ({running}); Ctrl-C again stops at once" if requests.stop else ""
            stage.update(state.done([(w.key, w.share) for w in workers if w.key]), note)
    finally:
        for worker in workers:
            worker.end()


def _hear(state: _Fill, worker: "WorkerProcess", message: dict[str, Any]) -> None:
    """Take note of what a worker says."""
    if "storage" in message or "ledger" in message:
        raise StorageError(*message["storage"]) if "storage" in message else LedgerError(*message["ledger"])
    worker.ready = True
    worker.share = message.get("share", worker.share)
    if "done" in message and (key := worker.key) is not None:
        worker.key, worker.share = None, 0.0
        state.ended(key, Done(**message["done"]))
