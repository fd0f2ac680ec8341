"""How far a job is and how long it will take: a bar on a terminal, plain lines elsewhere, or nothing."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

LINES_EVERY = 15.0  # seconds


class Stage(Protocol):
    """One piece of work of a known length."""

    def update(self, done: float, note: str = "") -> None:
        """So much is done, of the stage's total; the note says how it goes."""
        ...


class Progress(Protocol):
    """Where stages are shown."""

    def stage(self, name: str, total: float) -> AbstractContextManager[Stage]:
        """A context in which a stage runs."""
        ...


def progress(stream: TextIO | None = None) -> "Bars | Lines | Quiet":
    """Bars if the stream (stderr) is a terminal, lines if not; nothing where there is no stderr at all."""
    stream = sys.stderr if stream is None else stream
    if stream is None:
        return Quiet()
    return Bars(stream) if stream.isatty() else Lines(stream)


@dataclass
class Quiet:
    """Shows nothing."""

    @contextmanager
    def stage(self, name: str, total: float) -> Generator["Quiet"]:
        """A stage that shows nothing."""
        yield self

    def update(self, done: float, note: str = "") -> None:
        """Nothing."""


@dataclass
class Lines:
    """A line when a stage begins and ends, and at most one in 15 seconds between, with the time that is left."""

    stream: TextIO
    every: float = LINES_EVERY
    clock: Callable[[], float] = time.monotonic

    @contextmanager
    def stage(self, name: str, total: float) -> Generator["_Line"]:
        """A stage in lines."""
        line = _Line(self, name, total, self.clock())
        line.print("began")
        yield line
        line.print(f"done in {duration(self.clock() - line.began)}")


@dataclass
class _Line:
    where: Lines
    name: str
    total: float
    began: float
    shown: float | None = None
    note: str = ""
    first: tuple[float, float] | None = None  # when the first update came, and what was done by then

    def update(self, done: float, note: str = "") -> None:
        self.note = note or self.note
        now = self.where.clock()
        if self.first is None:
            self.first = now, done  # a job that is resumed begins in the middle
        before = self.began if self.shown is None else self.shown
        if now - before < self.where.every or not 0 < done < self.total:
            return
        self.shown = now
        since, base = self.first
        left = (now - since) * (self.total - done) / (done - base) if done > base else None
        self.print(f"{100 * done / self.total:3.0f} %" + ("" if left is None else f", {duration(left)} left"))

    def print(self, text: str) -> None:
        note = f"  {self.note}" if self.note else ""
        print(f"{self.name}: {text}{note}", file=self.where.stream, flush=True)


@dataclass
class Bars:
    """A bar a stage, with the time that is left."""

    stream: TextIO

    @contextmanager
    def stage(self, name: str, total: float) -> Generator["_Bar"]:
        """A stage as a bar."""
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description:<22}"), BarColumn(bar_width=24), TaskProgressColumn(),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("[dim]{task.fields[note]}"),
        )  # fmt: skip
        with RichProgress(*columns, console=Console(file=self.stream)) as bars:
            yield _Bar(bars, bars.add_task(escape(name), total=total, note=""))


@dataclass
class _Bar:
    bars: "RichProgress"
    task: int
    note: str = ""

    def update(self, done: float, note: str = "") -> None:
        from rich.markup import escape
        from rich.progress import TaskID

        self.note = escape(note) if note else self.note
        self.bars.update(TaskID(self.task), completed=done, note=self.note)


def duration(seconds: float) -> str:
    """A time to be read: 12 s, 3 min 05 s, 2 h 10 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
