"""How this process joins the others: torchrun's variables, checked, and the process group that is made of them."""

import math
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread

import torch
import torch.distributed as dist

from ..core import ConfigError, InputError
from .processes import Alone, Group, Processes, answered

_REMEDY = "Start the program with torchrun, which sets them all, or unset {}."


@dataclass(frozen=True)
class _Seat:
    """The place of this process among all (`rank` of `count`), and among those of its machine (`local`)."""

    rank: int
    count: int
    local: int


@contextmanager
def joined(device: torch.device | str, *, timeout: float = 600.0) -> Generator[Processes]:
    """The processes of this program: a `Group` if torchrun started several, else `Alone`.

    On CUDA, process k of a machine takes its device k, which "cuda" then means. On leaving, also after an error, the
    process group is given up, without waiting for processes that are dead. A default group that is there already is used
    and left alone.

    Args:
        device: "cpu" (gloo) or "cuda" (NCCL for sums, gloo for messages).
        timeout: seconds after which a process that does not answer counts as dead; more than the longest work that one
            process does while the others wait for it.

    Raises:
        ConfigError: torchrun's variables are there in part, or contradict each other or the devices.
        InputError: another device, or a timeout that is not positive.
        ProcessError: not all processes came within the timeout.

    Checked by tests/training/test_processes.py, also under torchrun.
    """
    try:
        place = torch.device(device)
    except RuntimeError:
        raise InputError("device", "'cpu' or 'cuda'", repr(device), "Choose one of them.") from None
    if not 0 < timeout < math.inf:
        raise InputError("timeout", "a number of seconds > 0", str(timeout), "Use 600.")
    if dist.is_available() and dist.is_initialized():
        yield Group()
        return
    own = _seat(place)
    if own is None:
        yield Alone()
        return
    try:
        _join(own, place, timeout)
        yield Group()
    finally:
        _leave()


def _join(own: _Seat, place: torch.device, timeout: float) -> None:
    backend = "gloo"
    if place.type == "cuda":
        torch.cuda.set_device(own.local)
        backend = "cpu:gloo,cuda:nccl"
    with answered(own.count):
        dist.init_process_group(
            backend, timeout=timedelta(seconds=timeout), rank=own.rank, world_size=own.count, init_method="env://"
        )


def _leave(limit: float = 10.0) -> None:
    """Give up the process group; after `limit` seconds without it, should a dead process be waited for."""

    def give_up() -> None:
        with suppress(Exception):  # of a group that is broken, nothing can be mended
            dist.destroy_process_group()

    if dist.is_initialized():
        thread = Thread(target=give_up, name="leave-process-group", daemon=True)
        thread.start()
        thread.join(limit)


def _seat(device: torch.device) -> _Seat | None:
    """The seat that torchrun's variables name (WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT); None for one process.

    Raises:
        ConfigError: a variable is missing, is no number or contradicts another or the number of devices.
        InputError: a device on which several processes cannot train together.

    Checked by tests/training/test_processes.py.
    """
    if not os.environ.get("WORLD_SIZE"):
        if os.environ.get("RANK"):
            found = f"RANK={os.environ['RANK']} without it"
            raise ConfigError("WORLD_SIZE", "the number of processes", found, _REMEDY.format("RANK"))
        return None
    count = _number("WORLD_SIZE", 1, None)
    if count == 1 and not os.environ.get("RANK"):
        return None
    rank = _number("RANK", 0, count)
    if count == 1:
        return None
    if not os.environ.get("MASTER_ADDR"):
        raise ConfigError("MASTER_ADDR", "the host of process 0", "nothing", _REMEDY.format("WORLD_SIZE"))
    _number("MASTER_PORT", 0, 65536)
    _require_device(device)
    local = _number("LOCAL_RANK", 0, count) if device.type == "cuda" else 0
    if local and local >= torch.cuda.device_count():
        found = f"device {local} of {torch.cuda.device_count()}"
        raise ConfigError("LOCAL_RANK", "a CUDA device for each process", found, "Start one process for each device.")
    return _Seat(rank, count, local)


def _require_device(device: torch.device) -> None:
    if not dist.is_available():
        found = "a PyTorch without torch.distributed"
        raise ConfigError("WORLD_SIZE", "a PyTorch that has it, for several processes", found, "Install a full build.")
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and device.index is not None):
        remedy = "Give 'cpu' or 'cuda': process k of a machine takes its CUDA device k."
        raise InputError("device", "'cpu' or 'cuda' for several processes", str(device), remedy)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device", "a machine with CUDA", "none that PyTorch can use", "Give 'cpu'.")


def _number(name: str, least: int, below: int | None) -> int:
    """An environment variable that is a whole number of a range."""
    text = os.environ.get(name, "")
    wanted = f"a whole number from {least}" + ("" if below is None else f" to {below - 1}")
    if not text.strip().isdecimal() or int(text) < least or (below is not None and int(text) >= below):
        raise ConfigError(name, wanted, repr(text) if text else "nothing", _REMEDY.format("WORLD_SIZE and RANK"))
    return int(text)
