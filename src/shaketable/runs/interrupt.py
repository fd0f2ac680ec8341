"""Ctrl-C as a request: the step that runs is finished and saved; a second Ctrl-C stops at once."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop and left a checkpoint to resume from."""


@dataclass
class Requests:
    """Whether the user asked to stop."""

    stop: bool = False


@contextmanager
def interrupts() -> Generator[Requests]:
    """Turn SIGINT and SIGTERM into `Requests.stop`, the second into a `KeyboardInterrupt`; restored on leaving.

    One SIGTERM after a SIGINT is let pass: after Ctrl-C, `torchrun` sends its processes one of its own while they save.
    Outside the main thread, where signals cannot be caught, it does nothing. Checked by tests/runs/test_interrupt.py.
    """
    requests = Requests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return

    seen: set[int] = set()

    def ask(number: int, _frame: FrameType | None) -> None:
        if number in seen or (seen and number == signal.SIGINT):
            raise KeyboardInterrupt
        seen.add(number)
        requests.stop = True

    before: dict[int, Any] = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python
