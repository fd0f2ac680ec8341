"""Running a study's cells: each in a process of its own, so many at a time, resumable, and none lost with another."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...files import sha256_of, write_atomically
from ...report import Report
from ...runs import Interrupted, Progress, Quiet, interrupts
from ..config import EvaluateConfig
from ..measured import FINAL, measured_of
from .finals import VERB as FINAL_VERB
from .plan import Run
from .pool import Pool
from .verbs import finished

_LOOK = 0.05  # seconds between two looks at the processes


@dataclass(frozen=True)
class Outcome:
    """What became of a run: its report, or the error that it ended with, or neither if it has not been run yet."""

    run: Run
    report: Report | None = None
    error: str | None = None


def outcome_of(run: Run) -> Outcome:
    """What is there of a run: its report, if it has ended and has all that a study asks for."""
    report = finished(run.folder, run.cell.verb)
    if report is not None and run.cell.verb == "train" and measured_of(report).value("loss_last") is None:
        report = None  # of a version that did not measure it; going on with the run makes it again, at once
    if report is not None and isinstance(run.config, EvaluateConfig) and _of_another_model(run.config, report):
        report = None
    return Outcome(run, report)


def execute(
    runs: Mapping[str, Run], wanted: Sequence[str], *, workers: int, progress: Progress | None = None
) -> dict[str, Outcome]:
    """Run what is wanted and not finished, in this order as far as needs allow; returns the outcomes of all runs.

    A run is `python -m shaketable VERB --config FOLDER/config.json`, so it can be repeated, resumed and evaluated by
    hand; what it prints is in its folder, in log.txt. One that fails is recorded with its error, and so is one that
    needs it; the rest goes on. What failed is tried again when the study is run again, from its last checkpoint.

    Args:
        runs: all of the study, by name.
        wanted: names of those to run, those that they need among them.
        workers: how many at a time. No number depends on it.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the runs saved a checkpoint first.
        StorageError: a folder that cannot be written.

    Checked by tests/jobs/test_study_runs.py: kills, failures, one and several workers.
    """
    outcomes = {name: outcome_of(run) for name, run in runs.items()}
    waiting = [name for name in wanted if _due(runs[name], outcomes)]
    total, pool = len(waiting), Pool(workers)
    try:
        with interrupts() as requests, (progress or Quiet()).stage("study", max(total, 1)) as stage:
            while waiting or pool.active or pool.failed:
                if requests.stop:
                    waiting.clear()
                    pool.ask_to_stop()
                for name in _ready(waiting, outcomes, pool):
                    waiting.remove(name)
                    _start(pool, outcomes, name)
                for end in pool.ended():
                    run = runs[end.name]
                    outcomes[end.name] = _ended(run, end.error)
                    stage.update(total - len(waiting) - len(pool.active), _note(outcomes[end.name]))
                if pool.active:
                    time.sleep(_LOOK)
            if requests.stop:
                raise Interrupted("Stopped; run the study again to go on.")
    finally:
        pool.kill()
    return outcomes


def _of_another_model(config: EvaluateConfig, report: Report) -> bool:
    """Whether the model that was evaluated is not the one that is there now."""
    path = Path(config.model)
    return path.is_file() and sha256_of(path) not in report.hashes.models.values()


def _due(run: Run, outcomes: Mapping[str, Outcome]) -> bool:
    """Whether a run is to be made: it has no report, or it evaluated a model that will be trained now."""
    own = outcomes[run.name].report
    lost = run.cell.verb == FINAL_VERB and any(outcomes[need].report is None for need in run.needs)
    return own is None or lost


def _ready(waiting: Sequence[str], outcomes: Mapping[str, Outcome], pool: Pool) -> list[str]:
    """The runs that may start now: what they need has ended, and a worker is free."""
    free = pool.workers - len(pool.active)
    found = [
        name for name in waiting if not any(need in waiting or need in pool.active for need in outcomes[name].run.needs)
    ]
    return found[: max(free, 0)]


def _start(pool: Pool, outcomes: dict[str, Outcome], name: str) -> None:
    """Start a run, or record that what it needs is not there."""
    run = outcomes[name].run
    lost = [need for need in run.needs if outcomes[need].report is None]
    if lost:
        outcomes[name] = Outcome(run, error=f"It needs {', '.join(lost)}, which failed.")
        return
    content = json.dumps(run.config.model_dump(mode="json"), indent=1, sort_keys=True)
    write_atomically(run.folder / "config.json", content.encode())
    pool.start(name, run.cell.verb, run.folder, run.config.threads)


def _ended(run: Run, error: str | None) -> Outcome:
    """The outcome of a run whose process has ended, with this error or none."""
    found = Outcome(run) if error else outcome_of(run)
    return found if found.report else Outcome(run, error=error or "It left no report that can be read.")


def _note(outcome: Outcome) -> str:
    if outcome.report is None:
        return f"{outcome.run.name} failed"
    measured = measured_of(outcome.report)
    robust = measured.value(FINAL if outcome.run.cell.verb == FINAL_VERB else "robust_last")
    return outcome.run.name if robust is None else f"{outcome.run.name}: robust accuracy {100 * robust:.1f} %"
