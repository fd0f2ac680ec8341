"""The processes of a study: each runs one verb in one folder, which no other may run in at the same time."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ...files import storage_errors

LOG = "log.txt"
STOPPED = 130  # the exit code of a run that was asked to stop, and saved
_COLOURS = ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE")


@dataclass(frozen=True)
class Ended:
    """A process that has ended, and the error that it ended with, if it did not do its work."""

    name: str
    error: str | None


@dataclass
class Pool:
    """At most so many processes at a time.

    Their signals are their own: Ctrl-C on the terminal reaches the study alone, which asks each of them once. A folder is
    locked as long as its process lives, even where the study was killed and its process was not.
    """

    workers: int
    active: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    failed: list[Ended] = field(default_factory=list)
    asked: bool = False

    def start(self, name: str, verb: str, folder: Path, threads: int | None) -> None:
        """Run a verb on the folder's config.json, which says that it goes on from a checkpoint if there is one."""
        command = [sys.executable, "-m", "shaketable", verb, "--config", str(folder / "config.json")]
        environment = {key: value for key, value in os.environ.items() if key not in _COLOURS} | {"NO_COLOR": "1"}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        self.folders[name] = folder
        with storage_errors(folder / LOG), _locked(folder) as lock:
            if lock is None:
                self.failed.append(Ended(name, "Another process is running in its folder: wait for it, or stop it."))
                return
            with (folder / LOG).open("wb") as log:
                self.active[name] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
                    start_new_session=True, pass_fds=(lock.fileno(),) if os.name == "posix" else (),
                )  # fmt: skip

    def ended(self) -> Iterator[Ended]:
        """The processes that have ended since the last call."""
        while self.failed:
            yield self.failed.pop()
        for name, process in list(self.active.items()):
            if process.poll() is not None:
                del self.active[name]
                yield Ended(name, _error(process.returncode, self.folders[name]))

    def ask_to_stop(self) -> None:
        """Ask all of them, once, to save and stop."""
        if not self.asked:
            self.asked = True
            for process in self.active.values():
                process.terminate()

    def kill(self) -> None:
        """End what is left; runs go on from their last checkpoint."""
        for process in self.active.values():
            process.kill()
        for process in self.active.values():
            process.wait()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[IO[bytes] | None]:
    """A locked file of a folder; None if another process holds it. A process that inherits it goes on holding it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("wb") as file:
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            yield file
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file


def _error(code: int, folder: Path) -> str | None:
    """What a process that ended with this exit code has to say for itself; None if it did its work."""
    if code == 0:
        return None
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        hint = " Was there too little memory?" if name == "SIGKILL" else ""
        return f"It was ended by {name}.{hint}"
    lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line for line in lines if re.match(r"(error|stopped): ", line)] or [line for line in lines if line.strip()]
    return said[-1].removeprefix("error: ")[:500] if said else f"It ended with exit code {code}."
