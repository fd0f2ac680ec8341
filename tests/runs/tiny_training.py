"""A training of a second, for the tests of runs: imported by their conftest, and run as a server that forks it.

As a program it imports the package once, then forks a fresh child for every request that it reads, a JSON line; so that a
hundred runs can be killed in a minute. The server itself trains nothing, so the children inherit no threads.
"""

import hashlib
import json
import os
import pathlib
import resource
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from shaketable.core import PGD, Ball
from shaketable.data import CropFlip, Dataset, from_arrays
from shaketable.models import ModelSpec, build, fingerprint
from shaketable.runs import Driven, drive
from shaketable.training import Plan, State, awp, begin

SPEC = ModelSpec("small_cnn", 2, 1, (8, 8), {"width": 2, "hidden": 3, "norm": "batch"}, (0.5,), (0.25,))
PLAN = Plan(
    weights=awp(warmup=1), within=Ball("linf", 0.1, box=(0.0, 1.0)), attack=PGD(2), evaluation=PGD(2), epochs=3, batch_size=6,
    rate=0.05, augment=CropFlip(1), seed=5,
)  # fmt: skip
EVENTS = 3 * (2 + 1)
"""Steps and epochs of it."""


@dataclass
class Training:
    """One training and what `drive` needs for it."""

    plan: Plan = PLAN
    spec: ModelSpec = SPEC
    identity: dict[str, Any] = field(default_factory=lambda: {"config": {"rate": 0.05, "loss": "at"}, "data": "abc"})
    machine: dict[str, Any] = field(default_factory=lambda: {"threads": 1, "torch": "2"})

    def __post_init__(self) -> None:
        self.state: State = begin(build(self.spec, 3), self.plan)
        self.train, self.slices = images(12, 0), {"validation": images(8, 1), "test": images(6, 2)}

    def drive(self, folder: Path, **options: Any) -> Driven:
        given: dict[str, Any] = {"save_every": 0.0} | options
        return drive(
            self.state, self.plan, self.train, self.slices, folder=folder, spec=self.spec, identity=self.identity,
            machine=self.machine, **given,
        )  # fmt: skip

    @property
    def digest(self) -> str:
        """Of all that a run ends with: weights, statistics, momentum, best weights, history, counters."""
        digest = hashlib.sha256(fingerprint(self.state.model).encode())
        feed(digest, self.state.state_dict())
        return digest.hexdigest()


def images(n: int, seed: int) -> Dataset:
    source = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = 0.2 + 0.3 * torch.rand(n, 1, 8, 8, generator=source)
    x[:, :, :, :4] += 0.3 * y.reshape(-1, 1, 1, 1)
    return from_arrays(x, y, classes=["dark", "bright"])


def feed(digest: Any, value: Any) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            digest.update(repr(key).encode())
            feed(digest, part)
    elif isinstance(value, list | tuple):
        for part in value:
            feed(digest, part)
    elif isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    else:
        digest.update(repr(value).encode())


class Deadly:
    """Kills the process at the k-th call to the operating system that writes, or in the middle of the k-th write."""

    def __init__(self, at: int | None, torn: int | None) -> None:
        self.at, self.torn, self.calls, self.writes = at, torn, 0, 0

    def install(self, folder: Path) -> None:
        where = str(folder)

        def audit(event: str, given: tuple[Any, ...]) -> None:
            if event == "open":
                inside = isinstance(given[0], str) and given[0].startswith(where)
                self.called(inside and bool(given[2] & (os.O_WRONLY | os.O_RDWR)))
            else:
                self.called(event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"))

        sys.addaudithook(audit)
        fsync, opens = os.fsync, pathlib.Path.open

        def counted(handle: int) -> None:
            self.called(True)
            fsync(handle)

        def opened(path: Path, mode: str = "r", *given: Any, **named: Any) -> Any:
            stream = opens(path, mode, *given, **named)
            return Torn(stream, self) if {*mode} & {*"wxa"} and str(path).startswith(where) else stream

        os.fsync = counted
        setattr(pathlib.Path, "open", opened)  # noqa: B010 - of another signature

    def called(self, counts: bool) -> None:
        if counts:
            if self.calls == self.at:
                die()
            self.calls += 1

    def tears(self) -> bool:
        self.writes += 1
        return self.writes - 1 == self.torn


class Torn:
    """A stream whose writing stops half way if its time has come."""

    def __init__(self, stream: Any, deadly: Deadly) -> None:
        self.stream, self.deadly = stream, deadly

    def __enter__(self) -> "Torn":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, content: bytes) -> int:
        if self.deadly.tears():
            self.stream.write(content[: len(content) // 2])
            self.stream.flush()
            die()
        return self.stream.write(content)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def child(request: dict[str, Any]) -> dict[str, Any]:
    """Run the training as the request says; what it ended with, or the error's kind and text."""
    folder, seen = Path(request["folder"]), 0
    deadly = Deadly(request.get("at"), request.get("torn"))
    training = Training(plan=replace(PLAN, epochs=request.get("epochs", PLAN.epochs)))

    def show(_event: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == request.get("limit_after"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        if seen == request.get("nobody_after"):
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        if "pace" in request:
            (folder / "going").write_text(str(seen))
            time.sleep(request["pace"])

    try:
        deadly.install(folder)
        driven = training.drive(folder, show=show)
    except BaseException as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {
        "digest": training.digest, "weights": fingerprint(training.state.model), "resumed": driven.resumed,
        "calls": deadly.calls, "writes": deadly.writes,
    }  # fmt: skip


def serve() -> None:
    """Answer requests until the input ends: fork a child, kill it after `after` seconds if that is asked for, say how it ended.

    A request with "pid" is answered at once with the child's process id, and once more at its end.
    """
    torch.set_num_threads(1)
    Training()  # imports all that the first optimiser of a process does
    for line in sys.stdin:
        request, began = json.loads(line), time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            answer = Path(scratch) / "answer"
            os.chmod(scratch, 0o777)  # also for a child that has become another user
            process = os.fork()
            if process == 0:
                answer.write_text(json.dumps(child(request)))
                os._exit(0)
            if "pid" in request:
                print(json.dumps({"pid": process}), flush=True)
            if "after" in request:
                time.sleep(max(0.0, began + request["after"] - time.monotonic()))
                os.kill(process, signal.SIGKILL)  # a child that has ended is still there until it is waited for
            _, status = os.waitpid(process, 0)
            found = {"killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL}
            if not found["killed"] and answer.exists():
                found |= json.loads(answer.read_text())
        print(json.dumps(found | {"seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    serve()
