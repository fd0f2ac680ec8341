"""A training of a second, for the tests of runs: imported by their conftest, and run as a server that forks it.

As a program it imports the package once, then forks a fresh child for every request that it reads, a JSON line, or two that
train together; so that a hundred runs can be killed in a minute. The server itself trains nothing, so the children inherit
no threads.
"""

import hashlib
import json
import os
import pathlib
import resource
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shaketable.core import PGD, Ball
from shaketable.data import CropFlip, Dataset, from_arrays
from shaketable.models import ModelSpec, build, fingerprint
from shaketable.runs import Driven, drive
from shaketable.training import EMA, Alone, Plan, Processes, State, Update, awp, begin
from shaketable.training.joining import joined

SPEC = ModelSpec("small_cnn", 2, 1, (8, 8), {"width": 2, "hidden": 3, "norm": "batch"}, (0.5,), (0.25,))
PLAN = Plan(
    weights=awp(warmup=1), within=Ball("linf", 0.1, box=(0.0, 1.0)), attack=PGD(2), evaluation=PGD(2), epochs=3, batch_size=6,
    rate=0.05, augment=CropFlip(1), seed=5,
)  # fmt: skip
EVENTS = 3 * (2 + 1)
"""Steps and epochs of it."""


class Double(nn.Module):
    """A network in float64 for images in float32."""

    def __init__(self, channels: int, classes: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 3, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(27, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.double())


SETTINGS: dict[str, tuple[Plan, ModelSpec]] = {
    "plain": (PLAN, SPEC),
    "amp": (replace(PLAN, update=Update(precision="bfloat16")), SPEC),
    "ema": (replace(PLAN, average=EMA(0.9), statistics_batches=2), SPEC),
    "accumulate": (replace(PLAN, update=Update(accumulate=2, clip_gradient=0.5)), SPEC),
    "all": (
        replace(PLAN, average=EMA(0.9), statistics_batches=2, update=Update(precision="bfloat16", accumulate=2)), SPEC
    ),
    "double": (
        replace(PLAN, average=EMA(0.9), batch_size=7), ModelSpec(f"{Path(__file__).resolve()}:Double", 2, 1, (8, 8))
    ),
}  # fmt: skip
"""All with AWP from the second epoch on; "plain" and those made of it have BatchNorm."""


@dataclass
class Training:
    """One training and what `drive` needs for it."""

    plan: Plan = PLAN
    spec: ModelSpec = SPEC
    identity: dict[str, Any] = field(default_factory=lambda: {"config": {"rate": 0.05, "loss": "at"}, "data": "abc"})
    machine: dict[str, Any] = field(default_factory=lambda: {"threads": 1, "torch": "2"})

    def __post_init__(self) -> None:
        model = build(self.spec, 3)
        self.state: State = begin(model.double() if self.spec.architecture.endswith(":Double") else model, self.plan)
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


def child(request: dict[str, Any], processes: Processes = Alone()) -> dict[str, Any]:
    """Run the training as the request says; what it ended with, or the error's kind and text."""
    folder, seen = Path(request["folder"]), 0
    if processes.rank == request.get("astray"):
        folder = folder / "another"  # as on a machine that does not share the folder
    deadly = Deadly(request.get("at"), request.get("torn"))
    plan, spec = SETTINGS[request.get("settings", "plain")]
    training = Training(replace(plan, epochs=request.get("epochs", plan.epochs)), spec)
    training.machine["processes"] = processes.count

    def show(_event: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == request.get("limit_after"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        if seen == request.get("nobody_after"):
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        if seen == request.get("stop_after") and processes.rank == processes.count - 1:
            signal.raise_signal(signal.SIGINT)
        if "pace" in request:
            (folder / "going").write_text(str(seen))
            time.sleep(request["pace"])

    try:
        deadly.install(folder)
        driven = training.drive(folder, show=show, processes=processes)
    except BaseException as error:
        return {"error": type(error).__name__, "text": str(error), "events": seen}
    if "end" in request:
        ended = {"model": training.state.plain.state_dict(), "average": training.state.average}
        torch.save(ended, f"{request['end']}-{processes.rank}.pt")
    return {
        "digest": training.digest, "weights": fingerprint(training.state.model), "resumed": driven.resumed,
        "elsewhere": list(driven.elsewhere), "calls": deadly.calls, "writes": deadly.writes, "events": seen,
    }  # fmt: skip


def member(request: dict[str, Any], rank: int, scratch: Path) -> dict[str, Any]:
    """Run the training as one of several processes; it leaves a file when it has joined the others."""
    os.environ.update(request["environment"] | {"RANK": str(rank)})
    try:
        with joined("cpu", timeout=30.0) as processes:
            processes.barrier()
            (scratch / f"joined-{rank}").touch()
            return child(request, processes)
    except BaseException as error:
        return {"error": type(error).__name__, "text": str(error)}


def together(request: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Fork several processes; kill the `victim` `after` seconds after all have joined, and at a limit whoever is there."""
    count, began, dead = request["count"], time.monotonic(), None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    request["environment"] = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children, found = dict[int, int](), dict[int, dict[str, Any]]()
    for rank in range(count):
        process = os.fork()
        if process == 0:
            (scratch / f"answer-{rank}").write_text(json.dumps(member(request, rank, scratch)))
            os._exit(0)
        children[process] = rank
    ready = None
    while children:
        now = time.monotonic()
        if ready is None and all((scratch / f"joined-{rank}").exists() for rank in range(count)):
            ready = now
        if dead is None and "victim" in request and ready is not None and now >= ready + request["after"]:
            dead = now  # a child that has ended is still there until it is waited for
            for process, rank in children.items():
                if rank == request["victim"]:
                    os.kill(process, signal.SIGKILL)
        hung = now > began + 90
        if hung:
            for process in children:
                os.kill(process, signal.SIGKILL)
        process, status = os.waitpid(-1, 0 if hung else os.WNOHANG)
        if not process:
            time.sleep(0.002)
            continue
        rank = children.pop(process)
        found[rank] = {"killed": os.WIFSIGNALED(status), "hung": hung, "late": time.monotonic() - (dead or now)}
        if (scratch / f"answer-{rank}").exists() and not found[rank]["killed"]:
            found[rank] |= json.loads((scratch / f"answer-{rank}").read_text())
    return {"processes": [found[rank] for rank in range(count)], "trained": time.monotonic() - (ready or began)}


def serve() -> None:
    """Answer requests until the input ends: fork a child, kill it after `after` seconds if that is asked for, say how it ended.

    A request with "pid" is answered at once with the child's process id, and once more at its end; one with "count" is for
    several processes.
    """
    torch.set_num_threads(1)
    Training()  # imports all that the first optimiser of a process does
    for line in sys.stdin:
        request, began = json.loads(line), time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            if "count" in request:
                print(json.dumps(together(request, Path(scratch))), flush=True)
                continue
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
