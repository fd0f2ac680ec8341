"""`shaketable study RECIPE`: a grid of trainings over seeds, as one job that can be stopped and gone on with."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ...core.errors import ConfigError, ShaketableError
from ...data import parts_of
from ...plugins import nearest
from ...report import Report, elapsed_since, environment
from ...runs import Progress, duration
from ..config import EvaluateConfig
from ..ground import config_of
from ..train_config import TrainConfig
from . import record
from .config import StudyConfig
from .finals import check_final, final_name
from .plan import Run, run_name, runs_of
from .recipe import Recipe, read
from .runs import Outcome, execute, outcome_of
from .summary import Summary, summarise
from .verbs import require_same


@dataclass(frozen=True)
class Study:
    """A study before its first run: its recipe, all its runs by name, and the names of those to run now."""

    config: StudyConfig
    recipe: Recipe
    runs: Mapping[str, Run]
    wanted: Sequence[str]

    @property
    def command(self) -> str:
        """The command line that makes the whole of it again."""
        return shlex.join(["shaketable", "study", str(self.config.recipe), "--out", str(self.config.folder)])


@dataclass(frozen=True)
class Found:
    """A study after its last run."""

    study: Study
    outcomes: Mapping[str, Outcome]
    summary: Summary
    started: datetime


@dataclass(frozen=True)
class StudyEstimate:
    """What a study would take.

    Args:
        seconds: of all its runs, one after the other on one process; divide by the workers.
        memory: the most bytes that one of them needs.
        cells: cell -> seconds of one seed.
        left_out: cells that cannot be timed before others have run.
        seeds: how many.
    """

    seconds: float
    memory: int
    cells: Mapping[str, float]
    left_out: Sequence[str]
    seeds: int

    def __str__(self) -> str:
        lines = [f"{name:<24} {duration(seconds)}" for name, seconds in self.cells.items()]
        lines.append(
            f"would take about {duration(self.seconds)} for {self.seeds} seed{'s'[: self.seeds > 1]}, one run after the other"
        )
        lines.append(f"would need about {self.memory / 2**30:.2f} GiB of memory a run")
        if self.left_out:
            lines.append(f"not counted, as they need what others make: {', '.join(self.left_out)}")
        return "\n".join(lines)


def prepare_study(config: StudyConfig, *, finals: bool = True) -> Study:
    """Read the recipe and check every run before any begins.

    Args:
        finals: whether the recipe's table [final] counts.

    Raises:
        ConfigError: a recipe that cannot be (see `study_recipe.read`); a choice of a cell that is unknown; names in --only
            that are no cell and no seed; a folder that holds other runs.
        DataError: a data set that is not there.
    """
    recipe = read(config.recipe)
    recipe = recipe if finals else recipe.model_copy(update={"final": None})
    where = str(config.recipe)
    runs = runs_of(recipe, config.folder, where)
    _check_choices(runs, recipe.seeds[0], where)
    for run in runs.values():
        require_same(run.folder, config_of(run.config), run.places, run.config.model_fields_set)
    return Study(config, recipe, runs, _wanted(config.only, recipe, runs))


def run(config: StudyConfig, *, progress: Progress | None = None) -> Report:
    """Run what is wanted and not there yet, and report on all that is there; writes study.json beside the report.

    Cost: that of the runs (`shaketable train`), each once. Checked by tests/end_to_end/test_study.py.
    """
    from .report import report

    started = datetime.now(UTC)
    study = prepare_study(config)
    outcomes = execute(study.runs, study.wanted, workers=config.workers, progress=progress)
    found = Found(study, outcomes, summarise(study.recipe, outcomes), started)
    facts, volatile = environment_of(found), elapsed_since(started)
    content = record.record(
        study.recipe, outcomes, found.summary, source=config.recipe, command=study.command, environment=facts,
        volatile=volatile,
    )  # fmt: skip
    record.write(config.folder, content)
    return report(found, facts, volatile)


def environment_of(found: Found) -> dict[str, Any]:
    """Where the runs were made, as the first of them says it; this process, if there is none."""
    made = [o.report.environment for o in found.outcomes.values() if o.report is not None]
    return dict(made[0]) if made else environment()


def estimate(config: StudyConfig, timed: Callable[[TrainConfig], Any]) -> StudyEstimate:
    """What a study would take, from a few timed steps of one training of each cell.

    Args:
        timed: an estimate of one training, with `seconds` and `memory` (`dry_run.estimate`).
    """
    study = prepare_study(config)
    cells, left_out, memory, total = dict[str, float](), list[str](), 0, 0.0
    for name in study.wanted:
        run = study.runs[name]
        lost = [need for need in run.needs if outcome_of(study.runs[need]).report is None]
        if lost or not isinstance(run.config, TrainConfig):
            left_out += [run.cell.name] if run.cell.name not in left_out else []
            continue
        if run.cell.name not in cells:
            one = timed(run.config)
            cells[run.cell.name], memory = one.seconds, max(memory, one.memory)
        total += cells[run.cell.name]
    seeds = len({study.runs[name].seed for name in study.wanted})
    return StudyEstimate(total, memory, cells, tuple(left_out), seeds)


def _wanted(only: Sequence[str], recipe: Recipe, runs: Mapping[str, Run]) -> list[str]:
    """The names of the runs that are asked for, with those that they need and that evaluate them, in the study's order."""
    seeds = {str(seed): seed for seed in recipe.seeds}
    for word in only:
        if word not in recipe.cells and word not in seeds:
            names = [*recipe.cells, *seeds]
            raise ConfigError("only", "names of cells and seeds of the recipe", repr(word), nearest(word, names))
    cells = [word for word in only if word in recipe.cells] or list(recipe.cells)
    chosen = [seeds[word] for word in only if word in seeds] or list(recipe.seeds)
    wanted: set[str] = set()

    def want(name: str) -> None:
        wanted.add(name)
        for need in runs[name].needs:
            want(need)

    for seed in chosen:
        for cell in cells:
            want(run_name(cell, seed))
            if (final := run_name(final_name(cell), seed)) in runs:
                want(final)
    return [name for name in runs if name in wanted]


def _check_choices(runs: Mapping[str, Run], seed: int, where: str) -> None:
    """Resolve every choice and find every data set of each cell, so that a typing error is not found after hours."""
    from ..train_plan import plan_of

    for run in runs.values():
        if run.seed != seed:
            continue
        try:
            if isinstance(run.config, TrainConfig):
                plan_of(run.config)
                parts_of(run.config.data)
            elif isinstance(run.config, EvaluateConfig):
                check_final(run.config)
        except ShaketableError as error:
            place = f"{where}: {run.cell.place}: {error.argument}"
            raise type(error)(place, error.expected, error.found, error.remedy) from error
