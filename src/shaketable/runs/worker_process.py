"""A worker process as its parent sees it: started, given cells, listened to, and ended."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from typing import IO, Any

from . import canonical
from .ledger import Ledger
from .worker import PROGRAM, Task

COMMAND = [sys.executable, "-P", "-c", PROGRAM]
_COLOURS = ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE")


class WorkerProcess:
    """A process that does cells, the one that it is at, and a thread that reads what it says."""

    def __init__(self, ledger: Ledger, threads: int | None, heard: "queue.SimpleQueue[Any]") -> None:
        self.key: str | None = None
        self.share, self.ready = 0.0, False
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self.process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, encoding="utf-8",
            env=_environment(threads), start_new_session=True,
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read, args=(heard,), daemon=True)
        self.reader.start()
        self._tell(json.dumps({"folder": str(ledger.folder.absolute()), "threads": threads}))

    def give(self, key: str, task: Task) -> None:
        """Set it to work on a cell."""
        self.key = key
        self._tell(canonical.text({"cell": task.cell.to_json(), "run": task.run, "arguments": task.arguments}))

    @property
    def dead(self) -> bool:
        """Whether it has ended, all that it said read."""
        if self.process.poll() is None:
            return False
        self.reader.join(timeout=1.0)
        return True

    def end(self) -> str:
        """End it and what it started, if it has not ended by itself; returns how it ended."""
        process = self.process
        if process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
        code = process.wait()
        self.reader.join(timeout=1.0)
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                stream.close() if stream else None
        said = _last_line(self.log)
        self.log.close()
        return _how(code, said)

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has died: the next look finds out
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def _read(self, heard: "queue.SimpleQueue[Any]") -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            for line in self.process.stdout:
                heard.put((self, json.loads(line)))


def _environment(threads: int | None) -> dict[str, str]:
    """That of this process, with the same places to import from, without colours, and with so many threads."""
    kept = {key: value for key, value in os.environ.items() if key not in _COLOURS}
    kept |= {"NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    return kept if threads is None else kept | {"OMP_NUM_THREADS": str(threads)}


def _last_line(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else ""


def _how(code: int, said: str) -> str:
    """How a process ended, in words."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"it was ended by {name}.{' Was there too little memory?' if name == 'SIGKILL' else ''}"
    return f"it ended with exit code {code}{f': {said}' if said else '.'}"
