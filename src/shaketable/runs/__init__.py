"""Runs: crash-safe checkpoints, resuming to the bit, the ledger of finished cells, interruptions, and progress."""

from .drive import Driven, differences, drive
from .generation import Generation, latest, open_generation, save
from .interrupt import Interrupted, interrupts
from .ledger import Cell, DamagedCellError, Ledger, LedgerError, Record
from .pool import Outcome, WorkerError, fill
from .progress import Bars, Lines, Progress, Quiet, Stage, duration, progress
from .worker import Task

__all__ = [
    "Bars",
    "Cell",
    "DamagedCellError",
    "Driven",
    "Generation",
    "Interrupted",
    "Ledger",
    "LedgerError",
    "Lines",
    "Outcome",
    "Progress",
    "Quiet",
    "Record",
    "Stage",
    "Task",
    "WorkerError",
    "differences",
    "drive",
    "duration",
    "fill",
    "interrupts",
    "latest",
    "open_generation",
    "progress",
    "save",
]
