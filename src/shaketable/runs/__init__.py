"""Runs: crash-safe checkpoints, resuming to the bit, interruptions, and progress."""

from .drive import Driven, differences, drive
from .generation import Generation, latest, open_generation, save
from .interrupt import Interrupted, interrupts
from .progress import Bars, Lines, Progress, Quiet, Stage, duration, progress

__all__ = [
    "Bars",
    "Driven",
    "Generation",
    "Interrupted",
    "Lines",
    "Progress",
    "Quiet",
    "Stage",
    "differences",
    "drive",
    "duration",
    "interrupts",
    "latest",
    "open_generation",
    "progress",
    "save",
]
