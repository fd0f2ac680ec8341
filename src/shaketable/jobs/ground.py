"""What every job stands on: a device, threads, a clock; and how it ends: a report in a folder."""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..core.errors import ConfigError
from ..report import Report, write_html, write_json
from ..runs.progress import Stage
from ..training.joining import joined
from ..training.processes import Alone, Processes
from .settings import Settings

_NO_NUMBERS = ("out", "resume", "save_every", "keep_every", "workers", "ledger")


@dataclass(frozen=True)
class Ground:
    """Where and since when a job runs, and the processes that share it."""

    device: torch.device
    processes: Processes = Alone()
    started: datetime = field(default_factory=lambda: datetime.now(UTC))


def prepare(settings: Settings) -> Ground:
    """Choose the device and set the number of threads.

    Raises:
        ConfigError: a device that this machine does not have, or that is no device.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = device_of(settings.device)
    if device.type == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return Ground(device)


def device_of(name: str) -> torch.device:
    """The device that a name means; auto: the first accelerator there is, else the CPU.

    Raises:
        ConfigError: a device that this machine does not have, or that is no device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found = f"{name!r}: {str(error).splitlines()[0]}"[:160]
        raise ConfigError("device", "a device of this machine", found, "Use --device cpu or --device auto.") from error
    return device


@contextmanager
def on_ground(settings: Settings) -> Generator[Ground]:
    """The same, with the processes that `torchrun` started, if it did.

    Raises:
        ConfigError, ProcessError: see `prepare` and `training.joined`.
    """
    ground = prepare(settings)
    with joined(ground.device) as processes:
        device = torch.device("cuda", torch.cuda.current_device()) if ground.device.type == "cuda" else ground.device
        yield replace(ground, device=device if processes.count > 1 else ground.device, processes=processes)


def counted(stage: Stage) -> Callable[[int], None]:
    """What `attacks.evaluate` tells its progress: each call says how many more images are done."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        stage.update(done)

    return advance


def config_of(settings: Settings) -> dict[str, Any]:
    """A config as JSON values, without what no number depends on: where the output goes, and how often it is saved."""
    values = settings.model_dump(mode="json")
    return {name: value for name, value in values.items() if name not in _NO_NUMBERS}


def write(report: Report, folder: Path) -> Path:
    """Write report.json and report.html into a folder; returns the page's path."""
    write_json(report, folder / "report.json")
    page = folder / "report.html"
    write_html(report, page)
    return page


def begins(folder: Path, *, resume: bool) -> bool:
    """Whether a run begins in this folder, rather than going on; a run is never written over another one.

    Raises:
        ConfigError: the folder has checkpoints and resuming was not asked for.
    """
    checkpoints = folder / "checkpoints"
    there = checkpoints.is_dir() and bool(os.listdir(checkpoints))
    if there and not resume:
        raise ConfigError(
            "out", "a folder without a run", str(folder), "Add --resume to go on, or choose another --out."
        )
    return not there
