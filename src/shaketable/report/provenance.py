"""What a report says of the place and time it was made: the environment it depends on, and the volatile rest."""

import os
import platform
from datetime import UTC, datetime
from typing import Any

import torch

from ..version import __version__
from .model import Volatile


def environment(*, device: str = "cpu") -> dict[str, Any]:
    """What of the machine and its software the numbers depend on, for `Report.environment`.

    Args:
        device: the torch device that the job computes on.

    Checked by tests/report/test_provenance.py.
    """
    import numpy

    chosen = torch.device(device)
    named = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else platform.processor() or platform.machine()
    return {
        "shaketable": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(chosen),
        "device name": named,
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def elapsed_since(started: datetime, *, extra: dict[str, Any] | None = None) -> Volatile:
    """The volatile section of a run that began at `started` (with its time zone) and ends now.

    Args:
        started: `datetime.now(UTC)`, taken when the run began.
        extra: further measurements of time, such as passes a second.

    Checked by tests/report/test_provenance.py.
    """
    finished = datetime.now(UTC)
    return Volatile(
        started=started.astimezone(UTC).isoformat(timespec="seconds"),
        finished=finished.isoformat(timespec="seconds"),
        seconds=round((finished - started).total_seconds(), 3),
        host=platform.node(),
        extra=extra or {},
    )
