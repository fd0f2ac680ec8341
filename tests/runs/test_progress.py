"""Progress: lines with the time left, bars on a terminal, or nothing."""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from typing import TextIO

import pytest

from shaketable.runs import Bars, Lines, Quiet, duration, progress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_lines_at_the_beginning_the_end_and_every_so_often() -> None:
    stream, clock = io.StringIO(), Clock()
    with Lines(stream, clock=clock).stage("train", 200) as stage:
        for done in range(1, 201):
            clock.now += 1
            stage.update(done, f"epoch {done // 20}" if done % 20 == 0 else "")
    assert stream.getvalue().splitlines() == [
        "train: began",
        "train:   8 %, 3 min 05 s left",
        *[f"train: {done / 2:3.0f} %, {duration(200 - done)} left  epoch {done // 20}" for done in range(30, 200, 15)],
        "train: done in 3 min 20 s  epoch 10",
    ]


def test_a_stage_that_begins_in_the_middle_is_timed_from_there() -> None:
    """A resumed run had done 900 of 1000 in no time; the rest takes 2 s each."""
    stream, clock = io.StringIO(), Clock()
    with Lines(stream, every=10, clock=clock).stage("train", 1000) as stage:
        stage.update(900)
        for done in range(901, 907):
            clock.now += 2
            stage.update(done)
    assert stream.getvalue().splitlines()[1] == "train:  90 %, 3 min 10 s left"


def test_the_first_word_after_a_long_silence_has_no_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    with Lines(stream, clock=clock).stage("flatness", 10) as stage:
        clock.now += 60
        stage.update(1)
    assert stream.getvalue().splitlines()[1] == "flatness:  10 %"


def test_a_stage_that_fails_is_not_done() -> None:
    stream = io.StringIO()
    with pytest.raises(OSError, match="broke"), Lines(stream).stage("train", 10):
        raise OSError("broke")
    assert stream.getvalue() == "train: began\n"


def test_strange_totals_and_amounts_print_no_nonsense() -> None:
    stream, clock = io.StringIO(), Clock()
    for total in (0, 5):
        with Lines(stream, every=0, clock=clock).stage("x", total) as stage:
            for done in (-1, 0, total, total + 1):
                clock.now += 1
                stage.update(done)
    assert "%" not in stream.getvalue()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TextIO, int]]:
    """A real pseudo terminal: what is written to, and the descriptor to read it from."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    reader, writer = os.openpty()
    stream = os.fdopen(writer, "w")
    try:
        yield stream, reader
    finally:
        stream.close()
        os.close(reader)


def all_written(stream: TextIO, reader: int) -> str:
    """Everything that was written to the terminal: it is closed first, for a read gives what has come through so far."""
    stream.close()
    parts: list[bytes] = []
    with contextlib.suppress(OSError):  # EIO: the other end is closed, and all of it was read
        while part := os.read(reader, 1 << 16):
            parts.append(part)
    return b"".join(parts).decode()


def test_bars_on_a_terminal(terminal: tuple[TextIO, int]) -> None:
    stream, reader = terminal
    assert stream.isatty()
    shown = progress(stream)
    assert isinstance(shown, Bars)
    with shown.stage("AT [eps 8/255] [/x]", 20) as stage:
        for done in range(21):
            stage.update(done, "[/bold] robust 40 % [red]" if done == 7 else "")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", all_written(stream, reader))
    assert "AT [eps 8/255] [/x]" in text
    assert "[/bold] robust 40 % [red]" in text  # also in the last line: a note stays until the next
    assert "100%" in text
    assert "[/bold] robust 40 % [red]" in text[text.rindex("100%") :]


def test_bars_survive_an_exception(terminal: tuple[TextIO, int]) -> None:
    with pytest.raises(OSError, match="broke"), Bars(terminal[0]).stage("train", 2):
        raise OSError("broke")
    assert "train" in all_written(*terminal)


def test_bars_into_a_file_do_not_crash() -> None:
    stream = io.StringIO()
    with Bars(stream).stage("train", 2) as stage:
        stage.update(2)
    assert "train" in stream.getvalue()


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Quiet().stage("train", 2) as stage:
        stage.update(1, "note")
    assert capsys.readouterr() == ("", "")


def test_the_kind_follows_the_stream(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(progress(io.StringIO()), Lines)
    with progress().stage("train", 1):  # stderr, here no terminal
        pass
    assert capsys.readouterr().err.startswith("train: began\ntrain: done in ")
    monkeypatch.setattr("sys.stderr", None)  # as in a program without a console
    assert isinstance(progress(), Quiet)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7859, "2 h 10 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
