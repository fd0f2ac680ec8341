"""The processes that train together, and what they tell one another: a sum, a flag, a few values.

`joined` (joining.py) makes a `Group` of a program that torchrun started several times, and `Alone` of any other, so that a
training is written once. Nothing that another process sent is unpickled: values travel as JSON, tensors as their bytes.
"""

import hashlib
import json
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from ..core import InputError, ShaketableError

_SUMMABLE = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32)


class ProcessError(ShaketableError):
    """A process of the group ended or did not answer, so that the others cannot go on."""


class UnequalError(ProcessError):
    """Processes that should hold the same tensors do not."""


class Processes(Protocol):
    """The processes that train together, as one of them sees them.

    Every process must make the same calls in the same order. A process that ends or does not answer in time raises a
    `ProcessError` in the others, at their next call.
    """

    @property
    def rank(self) -> int:
        """Which of them this one is: 0, ..., count - 1."""
        ...

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in place; the same bits in all of them.

        All give tensors of the same shapes, dtypes and order. Cost: one all-reduce for each dtype and device among them,
        and while it lasts a copy of these tensors.
        """
        ...

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        ...

    def require_same(self, argument: str, tensors: Mapping[str, Tensor]) -> None:
        """Raise an `UnequalError`, in every process, unless all hold the same bits. Costs a SHA-256 of all bytes."""
        ...

    def barrier(self) -> None:
        """Wait until all processes are here."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order of rank, as copies.

        Args:
            value: a tensor; of one dtype and one shape but for the first dimension in all processes; or what JSON holds:
                None, bool, int, float, str, and lists and dicts (with str keys) of these. It goes through the host's
                memory: meant for measurements.
        """
        ...


@dataclass(frozen=True)
class Alone:
    """One process: the calls of `Processes` with nobody to ask. The same arguments are refused as by a `Group`."""

    rank = 0
    count = 1

    def add(self, tensors: Sequence[Tensor]) -> None:
        """The sum over one process."""
        _require_summable(tensors)

    def any(self, flag: bool) -> bool:
        """The flag itself."""
        return bool(flag)

    def require_same(self, argument: str, tensors: Mapping[str, Tensor]) -> None:
        """Is always so."""

    def barrier(self) -> None:
        """Returns at once."""

    def gather(self, value: Any) -> list[Any]:
        """A copy of the one value."""
        return [value.detach().clone() if isinstance(value, Tensor) else json.loads(_message(value))["value"]]


@dataclass(frozen=True)
class Group:
    """The processes of a group of torch.distributed: gloo, NCCL, or both ("cpu:gloo,cuda:nccl", which `joined` makes).

    Sums are made where the tensors are. Flags and values go over the CPU if the group has a backend for it, so that a dead
    process is noticed at once also where NCCL would wait for its time limit.

    Args:
        group: the process group; None is the default one.

    Checked by tests/training/test_processes.py, with two processes over gloo.
    """

    group: "dist.ProcessGroup | None" = None

    def __post_init__(self) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            remedy = "Use `with joined(device) as processes:`, or call torch.distributed.init_process_group first."
            raise InputError("group", "a process group that has been initialised", "none", remedy)

    @property
    def rank(self) -> int:
        """Of this process."""
        return dist.get_rank(self.group)

    @property
    def count(self) -> int:
        """Of the processes in the group."""
        return dist.get_world_size(self.group)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes: see `Processes.add`."""
        _require_summable(tensors)
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            if tensor.numel():
                kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
        for parts in kinds.values():
            flat = torch.cat([part.reshape(-1) for part in parts])
            with answered(self.count):
                dist.all_reduce(flat, group=self.group)
            for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
                part.copy_(total.view(part.shape))

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        seen = torch.tensor([int(flag)], dtype=torch.int32, device=self._device)
        with answered(self.count):
            dist.all_reduce(seen, dist.ReduceOp.MAX, group=self.group)
            return bool(seen.item())

    def require_same(self, argument: str, tensors: Mapping[str, Tensor]) -> None:
        """Raise an `UnequalError` in every process unless all hold the same names, dtypes, shapes and bits."""
        found = self.gather({name: _digest(tensor) for name, tensor in tensors.items()})
        names = list(dict.fromkeys(name for digests in found for name in digests))
        differing = [name for name in names if len({digests.get(name) for digests in found}) > 1]
        if differing:
            ranks = [rank for rank, digests in enumerate(found) if digests != found[0]]
            what = f"{len(differing)} of {len(names)} tensors that differ in processes {ranks} from process 0"
            raise UnequalError(
                argument, f"the same bits in all {self.count} processes", f"{what}: {differing[:5]}",
                "Use the same config, code, PyTorch and kind of device in all processes, and go on with --resume.",
            )  # fmt: skip

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.any(False)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order of rank: see `Processes.gather`."""
        heads = [json.loads(bytes(part.numpy())) for part in self._exchange(_bytes(_message(value)))]
        if not isinstance(value, Tensor) and all("value" in head for head in heads):
            return [head["value"] for head in heads]
        forms = {
            "a value" if "value" in head else f"{head['dtype']} of shape (n, *{head['shape'][1:]})" for head in heads
        }
        if len(forms) > 1 or len({len(head["shape"]) for head in heads}) > 1:
            raise InputError("value", "the same kind in all processes", " and ".join(sorted(forms)), "Make them alike.")
        parts = self._exchange(_raw(value))
        return [
            part.view(value.dtype).reshape(head["shape"]).to(value.device)
            for part, head in zip(parts, heads, strict=True)
        ]

    @property
    def _device(self) -> torch.device:
        """Where messages are exchanged."""
        return torch.device("cpu" if "cpu:" in dist.get_backend_config(self.group) else "cuda")

    def _exchange(self, own: Tensor) -> list[Tensor]:
        """The bytes of all processes, on the CPU; own may be of another length in each."""
        own, count = own.to(self._device), self.count
        length = torch.tensor([len(own)], dtype=torch.int64, device=own.device)
        lengths = [torch.zeros_like(length) for _ in range(count)]
        with answered(count):
            dist.all_gather(lengths, length, group=self.group)
            sizes = [int(size) for size in lengths]
            padded = torch.cat([own, own.new_zeros(max(sizes) - len(own))])
            parts = [torch.empty_like(padded) for _ in range(count)]
            dist.all_gather(parts, padded, group=self.group)
            return [part[:size].cpu().clone() for part, size in zip(parts, sizes, strict=True)]


@contextmanager
def answered(count: int) -> Generator[None]:
    """Within it, tell what torch.distributed says of a process that does not answer as a `ProcessError`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        said = re.sub(r"^\[\S+:\d+\] ", "", str(error)).split(". ")[0].splitlines()
        remedy = (
            "One ended or did not answer in time: see its own error. Then start all of them, and go on with --resume."
        )
        found = (said or [type(error).__name__])[0][:200]
        raise ProcessError("processes", f"an answer from all {count} processes", found, remedy) from error


def _require_summable(tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.dtype not in _SUMMABLE:
            found = f"{tensor.dtype}, {tensor.layout}"
            raise InputError("tensors", "dense tensors of floats or of 32 or 64 bit integers", found, "Convert them.")


def _message(value: Any) -> bytes:
    """A value as JSON, or what is said of a tensor before its bytes."""
    if isinstance(value, Tensor):
        return json.dumps({"dtype": str(value.dtype), "shape": list(value.shape)}).encode()
    _require_json(value)
    return json.dumps({"value": value}).encode()


def _require_json(value: Any) -> None:
    """Raise an `InputError` for what JSON would change or cannot hold."""
    if isinstance(value, dict) and all(type(key) is str for key in value):
        for part in value.values():
            _require_json(part)
    elif type(value) is list:
        for part in value:
            _require_json(part)
    elif not (value is None or type(value) in (bool, int, float, str)):
        found = f"{type(value).__name__}" if not isinstance(value, dict) else "a dict with keys that are no str"
        remedy = "Convert it: lists for tuples, float(...) for NumPy's numbers; gather tensors one by one."
        raise InputError("value", "a tensor, or what JSON holds", found, remedy)


def _bytes(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _raw(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _digest(tensor: Tensor) -> str:
    own = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    own.update(_raw(tensor).numpy().data)
    return own.hexdigest()
