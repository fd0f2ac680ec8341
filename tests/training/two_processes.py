"""Two processes that do a task together, for test_processes.py; as a program, a server that forks two for every request.

The server imports the package once, then reads requests, JSON lines, and answers each with a list: what each process
returned, raised or ended by. No request takes longer than its limit: what has not ended by then is killed.
"""

import json
import math
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shaketable.core import ShaketableError
from shaketable.training.joining import joined
from shaketable.training.processes import Group, Processes

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "int64", "int16", "bool")}


def to_add(rank: int) -> dict[str, Tensor]:
    """Tensors of several dtypes, strides and kinds, other in each process."""
    source = torch.Generator().manual_seed(rank)

    def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)

    return {
        "parameter": nn.Parameter(drawn(3, 4)),
        "double": drawn(5, dtype=torch.float64),
        "channels last": drawn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "transposed": drawn(4, 3).t(),
        "every second": drawn(10)[::2],
        "scalar": drawn(),
        "empty": drawn(0, 3),
        "half": drawn(7, dtype=torch.bfloat16),
        "count": torch.tensor([2**40 + rank, -rank]),
        "last": drawn(6),
    }


def add(group: Processes, given: dict[str, Any]) -> dict[str, Any]:
    tensors, reduced = to_add(group.rank), list[str]()
    where = [t.data_ptr() for t in tensors.values()]
    plain = dist.all_reduce

    def counted(tensor: Tensor, *arguments: Any, **named: Any) -> Any:
        reduced.append(str(tensor.dtype))
        return plain(tensor, *arguments, **named)

    dist.all_reduce = counted
    group.add(list(tensors.values()))
    group.add([])
    group.add([torch.zeros(0)])
    dist.all_reduce = plain
    return {
        "after": {name: t.double().tolist() for name, t in tensors.items()}, "reduced": reduced,
        "in place": where == [t.data_ptr() for t in tensors.values()],
    }  # fmt: skip


def flags(group: Processes, given: dict[str, Any]) -> list[bool]:
    group.barrier()
    return [group.any(both[group.rank]) for both in given["flags"]]


def same(group: Processes, given: dict[str, Any]) -> list[str]:
    """What is said of tensors that are the same, then of such that differ in one way each."""
    long = torch.cat([torch.tensor([1.0, math.nan, -0.0]), torch.ones(2000)])
    signed, bit = long.clone(), long.clone()
    signed[2], bit[1500] = 0.0, torch.nextafter(bit[1500], bit[1500] + 1)
    base = {"a": long, "b": torch.arange(4).reshape(2, 2), "c": torch.tensor(True)}
    kinds: list[dict[str, Tensor]] = [
        {}, {"a": base["a"].clone()}, {"b": base["b"].t().contiguous().t()},
        {"a": signed}, {"b": base["b"].reshape(4)}, {"b": base["b"].double()},
        {"a": bit, "c": torch.tensor(False)}, {"d": torch.ones(1)},
    ]  # fmt: skip
    said: list[str] = []
    for change in kinds:
        try:
            group.require_same("weights", base | change if group.rank else base)
            said.append("")
        except ShaketableError as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def gathered(group: Processes, given: dict[str, Any]) -> dict[str, Any]:
    """Tensors of other lengths, each said with its kind; and values."""
    found: dict[str, Any] = {"values": group.gather(given["values"][group.rank])}
    for name, dtype in DTYPES.items():
        for lengths in ((3, 5), (4, 0), (0, 0)):
            rows = torch.arange(10 * lengths[group.rank]).reshape(-1, 2, 5) + 100 * group.rank
            parts = group.gather(rows.to(dtype).requires_grad_(dtype.is_floating_point))
            kinds = [(str(p.dtype), list(p.shape), p.requires_grad, p.double().tolist()) for p in parts]
            found[f"{name} {lengths}"] = kinds
    found["scalars"] = [t.item() for t in group.gather(torch.tensor(2.5 + group.rank))]
    return found


def unlike(group: Processes, given: dict[str, Any]) -> list[str]:
    """What is said of things that cannot be gathered; the group goes on after each."""
    kinds = [
        (torch.ones(2), [1.0, 1.0]), (torch.ones(2), torch.ones(2).double()), (torch.ones(2, 3), torch.ones(2, 4)),
        (torch.ones(2), torch.ones(2, 1)), ((1, 2), (1, 2)), ({1: 2}, {1: 2}), ([torch.ones(1)], []),
    ]  # fmt: skip
    said: list[str] = []
    for both in kinds[:4]:
        said.append(_error(lambda both=both: group.gather(both[group.rank])))
    for both in kinds[4:]:  # what one process alone can see: before anything is sent
        said.append(_error(lambda both=both: group.gather(both[0])))
    assert not group.any(False)
    return said


def _error(call: Callable[[], Any]) -> str:
    try:
        return f"none, but {call()}"
    except ShaketableError as error:
        return f"{type(error).__name__}: {error}"


CALLS: dict[str, Callable[[Processes], Any]] = {
    "add": lambda group: group.add([torch.ones(300_000)]),
    "any": lambda group: group.any(True),
    "require_same": lambda group: group.require_same("weights", {"a": torch.ones(3)}),
    "barrier": lambda group: group.barrier(),
    "gather": lambda group: group.gather(torch.ones(3)),
}


def deserted(group: Processes, given: dict[str, Any]) -> str:
    """Process 1 does not come to the last call: it ends as it is told to."""
    call = CALLS[given["call"]]
    call(group)
    if group.rank:
        match given["way"]:
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raises":
                raise ArithmeticError("of process 1 itself")
            case _:
                other, end = Path(given["folder"]) / "0.json", time.monotonic() + 15
                while not other.exists() and time.monotonic() < end:
                    time.sleep(0.01)
                return "waited"
    call(group)
    return "answered"


def who(group: Processes, given: dict[str, Any]) -> list[int]:
    group.barrier()
    return [group.rank, group.count]


@contextmanager
def by_file(path: Path, rank: int, timeout: float):
    """A group that finds itself through a file."""
    dist.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=2, timeout=timedelta(seconds=timeout)
    )
    yield Group()
    dist.destroy_process_group()


def process(rank: int, folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Do the task as one of the processes; what it returned or raised, and when it had left the group."""
    os.environ.update(request.get("environment", {}) | ({"RANK": str(rank)} if "environment" in request else {}))
    timeout, ended = request.get("timeout", 20.0), {"after": 0.0}
    began = time.monotonic()
    try:
        group = joined("cpu", timeout=timeout) if "environment" in request else by_file(folder / "store", rank, timeout)
        with group as found:
            began = time.monotonic()
            try:
                value = {"value": globals()[request["task"]](found, request.get("given", {}) | {"folder": str(folder)})}
            finally:
                ended["after"] = time.monotonic() - began
    except BaseException as error:
        cause = type(error.__cause__).__name__
        value = {"error": type(error).__name__, "text": str(error), "cause": cause}
    return value | {"seconds": ended["after"], "left": time.monotonic() - began, "initialised": dist.is_initialized()}


def answer(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Fork the processes, wait for them, kill what lasts longer than the limit."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, found = Path(scratch), list[dict[str, Any]]()
        if "environment" in request:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                request["environment"].setdefault("MASTER_PORT", str(probe.getsockname()[1]))
        children: list[int] = []
        for rank in range(request.get("started", 2)):
            child = os.fork()
            if child == 0:
                os.dup2(2, 1)  # answers alone go to the output
                said = json.dumps(process(rank, folder, request))
                (folder / f"{rank}.json").write_text(said)
                os._exit(0)
            children.append(child)
        end = time.monotonic() + request.get("limit", 30.0)
        for rank, child in enumerate(children):
            hung = False
            while not (ended := os.waitpid(child, os.WNOHANG))[0]:
                if time.monotonic() > end:
                    hung = True
                    os.kill(child, signal.SIGKILL)
                    ended = os.waitpid(child, 0)
                    break
                time.sleep(0.005)
            mine = folder / f"{rank}.json"
            said = json.loads(mine.read_text()) if mine.exists() else {}
            found.append({"hung": hung, "killed": os.WIFSIGNALED(ended[1]), **said})
        return found


def under_torchrun(folder: Path) -> None:
    """What a program does that torchrun started."""
    with joined("cpu", timeout=60) as group:
        total = torch.tensor([group.rank + 1.0])
        group.add([total])
        said = {"rank": group.rank, "count": group.count, "sum": total.item(), "all": group.gather([group.rank])}
    (folder / f"{said['rank']}.json").write_text(json.dumps(said | {"initialised": dist.is_initialized()}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        under_torchrun(Path(sys.argv[1]))
    else:
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), flush=True)
