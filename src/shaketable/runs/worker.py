"""Doing one cell of a ledger, and the process that does many: started once, told of tasks in JSON, one line each."""

import inspect
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from ..core.errors import InputError, ShaketableError, StorageError
from ..plugins import load
from . import canonical
from .ledger import Cell, DamagedCellError, Ledger, LedgerError

PROGRAM = "from shaketable.runs.worker import main; main()"
_SAY_EVERY = 0.2  # seconds between two words on how far a cell is

Tell = Callable[[float], None]


@dataclass(frozen=True)
class Task:
    """A cell and how to measure it.

    Args:
        cell: what the result is kept under; it must name all that the result depends on.
        run: "module:function" of this package. It is called with `arguments`, a dict, and returns a dict of JSON values;
            if it has a parameter `progress`, that is a function of (done, total).
        arguments: JSON values, such as paths and settings. Where the files are is no part of the cell.
        cost: how long it takes beside the other tasks; for the progress alone.
    """

    cell: Cell
    run: str
    arguments: Mapping[str, Any]
    cost: float = 1.0

    def __post_init__(self) -> None:
        if not self.cost > 0:
            raise InputError("cost", "a number > 0", f"{self.cost}", "Count passes, for example.")
        object.__setattr__(self, "arguments", canonical.plain(self.arguments, "arguments"))


@dataclass(frozen=True)
class Done:
    """What came of an attempt at a cell; its result, if it has one, is in the ledger.

    Args:
        busy: another process is at it.
        error: why it has no result.
        aside: the name under which a damaged file of it was put aside.
    """

    busy: bool = False
    error: str | None = None
    aside: str | None = None


def work(ledger: Ledger, task: Task, tell: Tell) -> Done:
    """Measure a cell and keep its result, unless it has one or another process is at it.

    Args:
        tell: is told what share of it is done.

    Raises:
        StorageError, LedgerError: of the ledger itself. Whatever the task's function raises is the cell's own error.
    """
    with ledger.claim(task.cell.key) as mine:
        if not mine:
            return Done(busy=True)
        aside: str | None = None
        try:
            found = ledger.get(task.cell)
        except DamagedCellError:
            found, aside = None, ledger.set_aside(task.cell)
        if found is None:
            try:
                result = _call(task, tell)
            except Exception as error:
                return Done(error=_said(error), aside=aside)
            ledger.put(task.cell, result)
    return Done(aside=aside)


def _call(task: Task, tell: Tell) -> dict[str, Any]:
    function = load(task.run, "run")
    extra: dict[str, Any] = {}
    if "progress" in inspect.signature(function).parameters:
        extra["progress"] = lambda done, total: tell(min(1.0, done / total) if total else 1.0)
    result = function(dict(task.arguments), **extra)
    if not isinstance(result, Mapping):
        raise InputError(task.run, "a dict of JSON values", type(result).__name__, "Return a dict.")
    return canonical.plain(result, f"the result of {task.run}")


def _said(error: Exception) -> str:
    """An error in a line: our own as they are, others with their kind and where they arose."""
    if isinstance(error, ShaketableError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}"[:500] + where


def main() -> None:
    """Be a worker: read tasks from standard input and say on standard output what came of them.

    It ends at once when its input does, whatever it is doing: then its parent is no more. What cells print goes to standard
    error. Checked by tests/runs/test_pool.py.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent decides
    told, says = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(told, lines), daemon=True).start()
    setup = json.loads(lines.get())
    if setup["threads"] is not None:
        torch.set_num_threads(setup["threads"])
    ledger = Ledger(Path(setup["folder"]))
    _say(says, {"ready": True})
    while True:
        _say(says, _attempt(ledger, canonical.read(lines.get()), says))


def _attempt(ledger: Ledger, message: dict[str, Any], says: TextIO) -> dict[str, Any]:
    last = time.monotonic()

    def tell(share: float) -> None:
        nonlocal last
        if time.monotonic() - last >= _SAY_EVERY:
            last = time.monotonic()
            _say(says, {"share": share})

    task = Task(Cell(**message["cell"]), message["run"], message["arguments"])
    try:
        done = work(ledger, task, tell)
    except (StorageError, LedgerError) as error:
        kind = "storage" if isinstance(error, StorageError) else "ledger"
        return {kind: [error.argument, error.expected, error.found, error.remedy]}
    return {"done": {"busy": done.busy, "error": done.error, "aside": done.aside}}


def _listen(told: TextIO, lines: "queue.SimpleQueue[str]") -> None:
    for line in told:
        lines.put(line)
    sys.stderr.flush()
    os._exit(0)


def _say(says: TextIO, message: dict[str, Any]) -> None:
    says.write(json.dumps(message) + "\n")
    says.flush()
