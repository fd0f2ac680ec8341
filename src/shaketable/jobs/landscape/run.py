"""`shaketable landscape MODEL ...`: the adversarial loss around models' weights, attacked anew at every point."""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core import ConfigError
from ...flatness.directions import Combine
from ...flatness.landscape import Point, combined, grid
from ...report import Report
from ...runs import Ledger, Outcome, Progress, Task, fill
from ...stats import Mean, Rate
from .cells import axes_task, point_of, point_task
from .config import LandscapeConfig
from .plan import Job, Picture, prepare_landscape
from .work import measure_point

CELLS = "cells"  # the ledger's folder


@dataclass(frozen=True)
class Drawn:
    """What was found of one model.

    Args:
        axes: of each line, what its task gave; empty for random ones.
        grids: the coordinates of each axis.
        lines: of each line its points, in the order of `itertools.product(*grids)`; None where there was an error.
        at: the model itself.
        path: of a trajectory, each checkpoint itself.
        errors: of points or axes.
    """

    picture: Picture
    combine: Combine
    axes: tuple[Mapping[str, Any], ...]
    grids: tuple[tuple[float, ...], ...]
    lines: tuple[tuple[Point | None, ...], ...]
    at: Point | None
    path: tuple[Point | None, ...]
    errors: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the report calls the model."""
        return self.picture.subject.source.name

    def values(self, quantity: str) -> tuple[Mean | None, ...]:
        """One quantity at every point, over the lines; see `Landscape.values`."""
        return tuple(self._value(same, quantity) for same in zip(*self.lines, strict=True))

    def _value(self, points: Sequence[Point | None], quantity: str) -> Mean | None:
        known = [value for point in points if (value := value_of(point, quantity)) is not None]
        return combined(known, self.combine, quantity) if known else None


def value_of(point: Point | None, quantity: str) -> float | None:
    """A loss or an accuracy of a point."""
    found = None if point is None else getattr(point, quantity)
    return found.value if isinstance(found, Rate) else found


def run(config: LandscapeConfig, *, progress: Progress | None = None) -> Report:
    """Measure every point that the ledger in the report's folder does not have, and draw them.

    Raises:
        ConfigError: nothing could be measured; the first error says why.
        Interrupted: Ctrl-C or SIGTERM; the same command goes on.
        ShaketableError: see `prepare_landscape` and `runs.fill`.

    Cost: that of `flatness.landscape`; see `--dry-run`. Checked by tests/end_to_end/test_landscape.py.
    """
    from .report import report

    job = prepare_landscape(config)
    return report(job, draw(job, progress=progress))


def draw(job: Job, *, progress: Progress | None = None) -> tuple[Drawn, ...]:
    """Measure: first the axes that cost passes, then all points."""
    config, ledger = job.config, Ledger(job.config.out / CELLS)

    def filled(tasks: Sequence[Task], label: str) -> dict[str, Outcome]:
        return fill(
            ledger, tasks, workers=config.workers, threads=config.threads, progress=progress, label=label
        )  # fmt: skip

    wanted = {
        (k, line): axes_task(p.place, line) for k, p in enumerate(job.pictures) for line in p.lines if line.stored
    }
    axes = filled(list(wanted.values()), "directions") if wanted else {}
    made = {key: axes[task.cell.key] for key, task in wanted.items()}
    plans = [_plan(job, k, picture, made) for k, picture in enumerate(job.pictures)]
    outcomes = filled([task for plan in plans for task in plan.tasks], "landscape")
    drawn = tuple(plan.drawn(job, outcomes) for plan in plans)
    if not any(point for one in drawn for point in (*itertools.chain(*one.lines), *one.path)):
        errors = [error for one in drawn for error in one.errors]
        raise ConfigError("model", "at least one point that can be measured", errors[0], "Correct it.")
    return drawn


def timed(job: Job) -> float:
    """Seconds of a point; the second of two, since the first one loads the model."""
    task = point_task(job.pictures[0].place, None, ())
    measure_point(dict(task.arguments))
    began = time.perf_counter()
    measure_point(dict(task.arguments))
    return time.perf_counter() - began


@dataclass(frozen=True)
class _Plan:
    """The tasks of one model's points."""

    picture: Picture
    axes: tuple[Mapping[str, Any], ...]
    grids: tuple[tuple[float, ...], ...]
    at: Task
    path: tuple[Task, ...]
    lines: tuple[tuple[Task, ...], ...]
    errors: tuple[str, ...]

    @property
    def tasks(self) -> list[Task]:
        return [self.at, *self.path, *itertools.chain(*self.lines)]

    def drawn(self, job: Job, outcomes: Mapping[str, Outcome]) -> Drawn:
        """The points, from what became of the tasks."""

        def found(task: Task) -> Point | None:
            result = outcomes[task.cell.key].result
            return None if result is None else point_of(result)

        failed = [error for task in self.tasks if (error := outcomes[task.cell.key].error)]
        return Drawn(
            self.picture, job.combine, self.axes, self.grids, tuple(tuple(map(found, line)) for line in self.lines),
            found(self.at), tuple(map(found, self.path)), (*self.errors, *failed),
        )  # fmt: skip


def _plan(job: Job, k: int, picture: Picture, made: Mapping[Any, Outcome]) -> _Plan:
    """Which points there are of a model whose axes are made; none along lines that failed."""
    results: list[Mapping[str, Any]] = []
    errors: list[str] = []
    lines: list[tuple[Task, ...]] = []
    grids = (grid(job.points),) * job.dims
    for line in picture.lines:
        outcome = made.get((k, line))
        if outcome is not None and outcome.result is None:
            errors.append(outcome.error or "Its axes have vanished.")
            continue
        result = {} if outcome is None else outcome.result or {}
        if "spans" in result:
            grids = tuple(grid(job.points, low, high) for low, high in result["spans"])
        tasks = [point_task(picture.place, line, at, result or None) for at in itertools.product(*grids)]
        results.append(result)
        lines.append(tuple(tasks))
    path = tuple(point_task(place, None, ()) for _, place in picture.checkpoints)
    at = point_task(picture.place, None, ())
    return _Plan(picture, tuple(results), grids, at, path, tuple(lines), tuple(errors))
