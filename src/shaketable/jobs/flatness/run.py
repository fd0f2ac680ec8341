"""`shaketable flatness MODEL`: how much the robust loss rises when the weights move, at random and at worst."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...core import ConfigError
from ...flatness.result import Flatness
from ...report import Report
from ...runs import Ledger, Outcome, Progress, Task, fill
from ..ground import Ground, prepare
from .cells import flatness_of, task_of
from .config import FlatnessConfig
from .measures import Chosen, chosen_of
from .subjects import Images, PartName, Subject, images_of, sources_of, subject_of

CELLS = "cells"  # the ledger's folder
PARTS: tuple[PartName, ...] = ("test", "train")


@dataclass(frozen=True)
class Measurement:
    """One thing to be measured."""

    subject: Subject
    images: Images
    chosen: Chosen
    task: Task


@dataclass(frozen=True)
class Measured:
    """One thing that was measured: its result, or the error that it ended with."""

    measurement: Measurement
    outcome: Outcome
    found: Flatness | None


@dataclass(frozen=True)
class Job:
    """All that is to be measured, checked."""

    config: FlatnessConfig
    ground: Ground
    subjects: tuple[Subject, ...]
    measurements: tuple[Measurement, ...]


def prepare_flatness(config: FlatnessConfig) -> Job:
    """Load every model once, check it against its images, and name every measurement; nothing is written.

    Raises:
        ShaketableError: whatever of it cannot be; see `flatness_subjects` and `flatness_measures`.
    """
    ground = prepare(config)
    choices = chosen_of(config)
    subjects = _subjects(config, ground)
    measurements: list[Measurement] = []
    for subject, parts in subjects:
        for images in parts:
            for chosen in choices:
                task = task_of(
                    subject.place, subject.sha256, images.place, images.data.fingerprint, chosen, seed=config.seed,
                    device=str(ground.device), threads=config.threads or torch.get_num_threads(),
                )  # fmt: skip
                measurements.append(Measurement(subject, images, chosen, task))
    return Job(config, ground, tuple(subject for subject, _ in subjects), tuple(measurements))


def _subjects(config: FlatnessConfig, ground: Ground) -> list[tuple[Subject, tuple[Images, ...]]]:
    """Every model, and its images; of checkpoints with the same weights only one."""
    found: list[tuple[Subject, tuple[Images, ...]]] = []
    for source in sources_of(config):
        parts = tuple(images_of(config, source, part) for part in PARTS if config.split in (part, "both"))
        subject = subject_of(config, source, parts[0], ground.device)
        twin = next((k for k, (one, _) in enumerate(found) if one.sha256 == subject.sha256), None)
        if config.checkpoints and twin is not None:  # the best epoch or the last one, which was kept as well
            one, images = found[twin]
            both = replace(one.source, name=f"{one.source.name}, {Path(source.path).stem}")
            found[twin] = replace(one, source=both), images
        else:
            found.append((subject, parts))
    return found


def left_of(job: Job) -> tuple[Measurement, ...]:
    """What the ledger does not have yet, each cell once."""
    ledger = Ledger(job.config.out / CELLS)
    cells = {one.task.cell.key: one for one in job.measurements}
    return tuple(one for one in cells.values() if not ledger.path(one.task.cell).exists())


def run(config: FlatnessConfig, *, progress: Progress | None = None) -> Report:
    """Measure and report; what the ledger in the report's folder has already is not measured again.

    Raises:
        ConfigError: nothing that was asked for could be measured; the first error says why.
        Interrupted: Ctrl-C or SIGTERM; the same command goes on.
        ShaketableError: see `prepare_flatness` and `runs.fill`.

    Cost: of the measures, for each model and split; see `--dry-run`. Checked by tests/end_to_end/test_flatness.py.
    """
    from .report import report

    job = prepare_flatness(config)
    outcomes = fill(
        Ledger(config.out / CELLS), [one.task for one in job.measurements], workers=config.workers,
        threads=config.threads, progress=progress, label="flatness",
    )  # fmt: skip
    return report(job, measured_of(job, outcomes))


def measured_of(job: Job, outcomes: Mapping[str, Outcome]) -> tuple[Measured, ...]:
    """What became of each measurement."""
    made = [Measured(one, found := outcomes[one.task.cell.key], _flatness(found)) for one in job.measurements]
    errors = [one.outcome.error for one in made if one.outcome.error]
    if len(errors) == len(made):
        more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ConfigError(
            "measures",
            "at least one that can be measured",
            f"an error{more}: {errors[0].removesuffix('.')}",
            "Correct it.",
        )
    return tuple(made)


def _flatness(outcome: Outcome) -> Flatness | None:
    return None if outcome.result is None else flatness_of(outcome.result)
