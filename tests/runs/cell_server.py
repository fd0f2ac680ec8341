"""Processes that have imported the package already, for the tests of the pool: a worker then starts in hundredths of a second.

As a program, `serve SOCKET` imports the package and forks a child for every request; `launch SOCKET REQUEST` asks for one and
stands for it: the child has the launcher's standard streams, ends as it ends, and is killed if it is killed.
"""

import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve()


def command(path: str, request: dict[str, Any]) -> list[str]:
    """The command line of a launcher."""
    return [sys.executable, "-I", "-S", str(FILE), "launch", path, json.dumps(request)]


def launch(path: str, request: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [request.encode()], [0, 1, 2])
        for handle in (0, 1):
            os.close(handle)  # they are the child's
        status = int(connection.recv(100) or b"0")
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def serve(path: str) -> None:
    """Answer requests until the input ends."""
    import torch

    import shaketable.runs.worker  # noqa: F401 - imported for the children

    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for the children
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(64)
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([listening, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            connection, _ = listening.accept()
            request, handles, _, _ = socket.recv_fds(connection, 1 << 16, 3)
            if os.fork() == 0:
                listening.close()
                keep(connection, handles, path, json.loads(request))
            for handle in handles:
                os.close(handle)
            connection.close()


def keep(connection: socket.socket, handles: list[int], path: str, request: dict[str, Any]) -> None:
    """Fork the child, and end with it, or it with the launcher."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        connection.close()
        for number, handle in enumerate(handles):
            os.dup2(handle, number)
            os.close(handle)
        be(path, request)
        os._exit(0)
    for handle in (*handles, 0, 1, 2):
        os.close(handle)
    while True:
        ready, _, _ = select.select([connection], [], [], 0.005)
        if ready:
            os.kill(child, signal.SIGKILL)
        found, status = os.waitpid(child, 0 if ready else os.WNOHANG)
        if found:
            if not ready:
                connection.send(str(status).encode())
            os._exit(0)


def be(path: str, request: dict[str, Any]) -> None:
    """Be a worker, or fill a ledger with them and print what came of it."""
    os.setsid()
    if request == {}:
        from shaketable.runs.worker import main

        main()
    from shaketable.core.errors import ShaketableError
    from shaketable.runs import worker_process

    worker_process.COMMAND[:] = command(path, {})
    try:
        os.write(1, f"{os.getpid()}\n".encode())
        found: dict[str, Any] = {"table": fill(request)}
    except (ShaketableError, KeyboardInterrupt) as error:
        found = {"error": type(error).__name__, "text": str(error)}
    os.write(1, json.dumps(found).encode())


def fill(request: dict[str, Any]) -> dict[str, Any]:
    """Fill a ledger with squares; returns error or value of each."""
    from shaketable.runs import Ledger
    from shaketable.runs import fill as fill_ledger

    tasks = squares(request["count"], log=request["log"], seconds=request["seconds"])
    found = fill_ledger(Ledger(Path(request["folder"])), tasks, workers=request["workers"])
    return {key: one.error or repr(one.result) for key, one in found.items()}


def squares(count: int, **arguments: Any) -> list[Any]:
    """Tasks that square the first numbers."""
    return [task("square", n=n, **arguments) for n in range(count)]


def task(name: str, *, cost: float = 1.0, **arguments: Any) -> Any:
    """A task of `cell_functions`."""
    from shaketable.runs import Cell, Task

    settings = {key: value for key, value in arguments.items() if key not in ("log", "seconds", "memory")}
    cell = Cell("a" * 64, "b" * 64, name, 1, settings, 0)
    return Task(cell, f"{FILE.with_name('cell_functions.py')}:{name}", arguments, cost)


if __name__ == "__main__":
    {"serve": serve, "launch": launch}[sys.argv[1]](*sys.argv[2:])
