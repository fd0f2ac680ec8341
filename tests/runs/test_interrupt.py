"""Ctrl-C and SIGTERM: the step that runs is finished and saved, a second one stops at once."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shaketable.runs import Interrupted, interrupts

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Check = Callable[[Path], list[Any]]


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_is_a_request_and_the_second_stops(number: signal.Signals) -> None:
    before = handlers()
    with interrupts() as requests:
        assert not requests.stop
        signal.raise_signal(number)
        assert requests.stop
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert handlers() != before
    assert handlers() == before


def test_handlers_come_back_after_an_exception() -> None:
    before = handlers()
    with pytest.raises(OSError, match="broke"), interrupts():
        raise OSError("broke")
    assert handlers() == before


def test_a_handler_that_python_did_not_set_becomes_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    set_by: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda _number, handler: set_by.append(handler))  # returns None, as then
    with interrupts():
        pass
    assert set_by[2:] == [signal.SIG_DFL, signal.SIG_DFL]


def test_outside_the_main_thread_it_does_nothing() -> None:
    found: list[Any] = []

    def work() -> None:
        with interrupts() as requests:
            found.extend([requests.stop, handlers()])

    before = handlers()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False, before]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("moment", [0, 1, 2, 4, 8])
def test_a_run_that_is_asked_to_stop_goes_on_to_the_same_end(
    moment: int, number: signal.Signals, tiny: Any, whole: str, tmp_path: Path, checkpoints: Check
) -> None:
    seen: list[Any] = []

    def show(event: Any) -> None:
        seen.append(event)
        if len(seen) == moment + 1:
            signal.raise_signal(number)

    before, training = handlers(), tiny.Training()
    with pytest.raises(Interrupted) as caught:
        training.drive(tmp_path, show=show, save_every=1e9)  # nothing but the request makes it save
    assert isinstance(caught.value, KeyboardInterrupt)
    assert str(tmp_path) in str(caught.value)
    assert ("after the last epoch" in str(caught.value)) == (moment == tiny.EVENTS - 1)
    assert len(seen) == moment + 1
    assert handlers() == before
    assert len(checkpoints(tmp_path)) == 1
    again = tiny.Training()
    again.drive(tmp_path)
    assert again.digest == whole


def wait_for(path: Path, content: str) -> None:
    """Wait until a training says that it has come so far."""
    for _ in range(1200):
        if path.exists() and path.read_text() == content:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} was not there in time")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_process_that_is_asked_to_stop(
    number: signal.Signals, server: Any, tmp_path: Path, checkpoints: Check
) -> None:
    server.send(tmp_path, pid=True, pace=0.3)
    process = server.answer()["pid"]
    wait_for(tmp_path / "going", "2")
    os.kill(process, number)
    found = server.answer()
    assert found["error"] == "Interrupted"
    assert len(checkpoints(tmp_path)) == 1
    end, whole = server.run(tmp_path), server.run(tmp_path / "whole")
    assert end["resumed"] is not None
    assert end["digest"] == whole["digest"]


def test_a_second_ctrl_c_does_not_wait(server: Any, tmp_path: Path, checkpoints: Check) -> None:
    server.send(tmp_path, pid=True, pace=1000.0)  # the first step "takes" a quarter of an hour
    process = server.answer()["pid"]
    wait_for(tmp_path / "going", "1")
    os.kill(process, signal.SIGINT)
    time.sleep(0.5)
    assert os.path.exists(f"/proc/{process}") or os.kill(process, 0) is None  # it waits for the step
    os.kill(process, signal.SIGINT)
    found = server.answer()
    assert found["error"] == "KeyboardInterrupt"
    assert found["seconds"] < 100
    assert checkpoints(tmp_path) == []
    end, whole = server.run(tmp_path), server.run(tmp_path / "whole")
    assert end["digest"] == whole["digest"]
