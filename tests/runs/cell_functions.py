"""What the cells of the tests do: measure next to nothing, fail, or die; called by name, in this process or in workers."""

import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILE = Path(__file__)


def square(arguments: dict[str, Any], progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Numbers that are hard to write, after a while; every call leaves a line in the log."""
    n = arguments["n"]
    if "log" in arguments:
        handle = os.open(arguments["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(handle, f"{n} {os.getpid()}\n".encode())
        os.close(handle)
    for k in range(2):
        time.sleep(arguments.get("seconds", 0.0) / 2)
        progress(k + 1, 2)
    return expected(n)


def expected(n: int) -> dict[str, Any]:
    """What `square` returns."""
    return {"value": n * n + 0.1, "odd": [math.nan, -math.inf, -0.0, 1 / 3, 5e-324], "n": n, "nothing": None}


def refuse(arguments: dict[str, Any]) -> dict[str, Any]:
    """Our own error, or somebody else's."""
    from shaketable.core import InputError

    if arguments.get("ours"):
        raise InputError("xi", "a radius >= 0", "-1", "Use 0.5.")
    raise ZeroDivisionError("no such thing")


def talk(arguments: dict[str, Any]) -> Any:
    """Prints, reads what is not for it, and returns what is no dict of JSON values if asked to."""
    print("this must not reach the parent", flush=True)
    read = os.read(0, 10).decode() if arguments.get("reads") else ""
    return {"list": [1], "tensor": {"value": object()}, "ok": {"read": read}}[arguments["returns"]]


def die(arguments: dict[str, Any]) -> dict[str, Any]:
    """Be killed, or exit; once, if there is a file that remembers it."""
    memory = Path(arguments["memory"])
    if arguments["times"] > len(memory.read_text() if memory.exists() else ""):
        with memory.open("a") as stream:
            stream.write("x")
        if arguments.get("exit"):
            os._exit(arguments["exit"])
        os.kill(os.getpid(), signal.SIGKILL)
    return expected(0)
