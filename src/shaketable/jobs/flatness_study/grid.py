"""A recipe with a table [flatness]: its trainings run, their models measured, and all of it correlated."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from ...core.errors import ConfigError
from ...report import Finding, Hashes, Report, Section, Table, Volatile, elapsed_since, verdict_of
from ...runs import Progress, duration
from ..flatness.measures import chosen_of
from ..study import findings as study_findings
from ..study.config import StudyConfig
from ..study.run import Found as StudyFound
from ..study.run import environment_of, prepare_study
from ..study.run import estimate as study_estimate
from ..study.runs import execute
from ..study.summary import summarise
from . import record
from .analysis import Analysis, analyse
from .collected import LOSSES, Contrasts, columns_of, contrasts_of, sheet_of
from .config import FlatnessStudyConfig
from .contrasts_report import contrast_metrics, contrast_sections, contrast_sentences
from .models import Measured, measure_all, rows_of
from .recipe import FlatnessPlan, plan_of
from .report import correlation_sections, findings, headline
from .run import choices_of, command_of, settings_of
from .standing import passes_of
from .table import table_of
from .text import leading, sentences

LEDGER = "ledger"


@dataclass(frozen=True)
class Grid:
    """A recipe's study after its last measurement."""

    config: FlatnessStudyConfig
    plan: FlatnessPlan
    study: StudyFound
    measured: Measured
    analysis: Analysis
    contrasts: Contrasts | None


@dataclass(frozen=True)
class GridEstimate:
    """What a recipe would take.

    Args:
        seconds: of its trainings and measurements, one after the other on one process; divide by the workers.
        memory: the most bytes that a training needs.
        trainings: seconds of the trainings alone; those that have ended count too.
        models: how many would be measured.
        passes: forward and backward passes that measuring would spend, in images.
    """

    seconds: float
    memory: int
    trainings: float
    models: int
    passes: int

    def __str__(self) -> str:
        return (
            f"trainings: about {duration(self.trainings)}; {self.models} models to measure by {self.passes:,} passes of an "
            f"image, about {duration(self.seconds - self.trainings)}\nwould take about {duration(self.seconds)}, one after "
            f"the other\nwould need about {self.memory / 2**30:.2f} GiB of memory a training"
        )


def of_recipe(config: FlatnessStudyConfig, *, progress: Progress | None = None) -> Report:
    """Run what trainings are missing, measure every model that is there, correlate, compare.

    Raises:
        ConfigError: a recipe that cannot be, see `study_recipe.read` and `flatness_recipe.plan_of`; a folder with other runs.
        InputError: fewer than 4 models that can be ranked.
        Interrupted: Ctrl-C or SIGTERM; the same command goes on.

    Cost: that of the trainings that have not ended, and of the measurements that the ledger does not have. Checked by
    tests/end_to_end/test_flatness_study.py: interrupted, run again, with other numbers of workers.
    """
    started, where = datetime.now(UTC), str(config.recipe)
    study = prepare_study(_study_config(config), finals=False)
    plan = plan_of(study.recipe, where)
    chosen_of(plan.config)  # refused now, if it is, and not after the trainings
    outcomes = execute(study.runs, study.wanted, workers=study.config.workers, progress=progress)
    ended = StudyFound(study, outcomes, summarise(study.recipe, outcomes), started)
    rows = rows_of(plan, outcomes)
    if not rows:
        raise ConfigError(where, "trainings that have ended, or [models]", "none", "See log.txt in the runs' folders.")
    measured = measure_all(plan, rows, config.reports / LEDGER, workers=config.workers, progress=progress)
    columns = columns_of(plan, measured)
    record.write_table(config.reports, columns)
    given = {"flatness": measured.measures, "target": LOSSES, "family": "family", "constant": "constant"}
    table = table_of(sheet_of(columns, where), choices_of(config, given))
    analysis = analyse(table, seed=config.seed, resamples=config.resamples, bounds=config.groups)
    grid = Grid(config, plan, ended, measured, analysis, contrasts_of(plan, measured, study.recipe.seeds))
    return _report(grid, environment_of(ended), elapsed_since(started))


def estimate(config: FlatnessStudyConfig, timed: Callable[[Any], Any]) -> GridEstimate:
    """What a recipe would take: its trainings, from timed steps; its measurements, from their passes.

    Args:
        timed: an estimate of one training, with `step` (seconds) and `memory` (`dry_run.estimate`).
    """
    from ..train_config import TrainConfig
    from ..train_plan import plan_of as training_plan

    trainings = study_estimate(_study_config(config), timed)
    study = prepare_study(_study_config(config))
    plan = plan_of(study.recipe, str(config.recipe))
    shown = {cell.name for cell in plan.cells}
    first = next(run.config for run in study.runs.values() if isinstance(run.config, TrainConfig))
    steps = training_plan(first).attack.steps + 1.0  # of the training's attack and update, forward and backward
    a_pass = timed(first).step / (2 * steps * first.batch_size)
    models = sum(study.runs[name].cell.name in shown for name in study.wanted) * len(plan.table.checkpoints)
    models += len(plan.models)
    flatness = sum(chosen.passes for chosen in chosen_of(plan.config)) * (plan.table.count or 1000)
    standing = 2 * passes_of(plan.config) * (plan.table.evaluate_count or 1000)  # on test and on training images
    passes = round(models * (flatness + standing))
    return GridEstimate(trainings.seconds + passes * a_pass, trainings.memory, trainings.seconds, models, passes)


def _study_config(config: FlatnessStudyConfig) -> StudyConfig:
    assert config.recipe is not None
    return StudyConfig(recipe=config.recipe, out=config.folder, workers=max(1, config.workers), only=config.only)


def _report(grid: Grid, facts: Mapping[str, Any], volatile: Volatile) -> Report:
    recipe, measured, found = grid.study.study.recipe, grid.measured, grid.analysis.correlations
    notes = (*study_findings.findings(grid.study), *_failures(grid), *findings(grid.analysis))
    contrasts, command = grid.contrasts, command_of(grid.config)
    said = contrast_sentences(contrasts) if contrasts else ()
    text = recipe.model_dump(mode="json", exclude_none=True)
    content = record.record(
        grid.analysis, title=recipe.title, command=command, environment=facts, volatile=volatile,
        extra={"recipe": text, "contrasts": None if contrasts is None else asdict(contrasts)},
    )  # fmt: skip
    record.write(grid.config.reports, content)
    first = headline(found)[: 6 if contrasts is None else 4]
    return Report(
        verb="study flatness",
        title=recipe.title,
        summary=(
            *([recipe.question] if recipe.question else []),
            _ran(grid),
            *said[:1],
            *leading(grid.analysis),
        ),
        verdict=verdict_of(notes),
        headline=(*first, *(contrast_metrics(contrasts, 6 - len(first)) if contrasts else ())),
        findings=notes,
        sections=(
            Section(title="In words", text="\n\n".join((*said, *sentences(grid.analysis)))),
            *(contrast_sections(contrasts) if contrasts else ()),
            *correlation_sections(grid.analysis),
            _measured_section(grid),
        ),
        command=command,
        config={**settings_of(grid.config), "recipe": text},
        environment=dict(facts),
        seeds={"bootstrap": grid.config.seed, "flatness": grid.plan.table.seed},
        hashes=Hashes(models={f.row.name: f.sha256 for f in measured.found}, data=dict(measured.data)),
        volatile=volatile,
    )


def _ran(grid: Grid) -> str:
    shown = {cell.name for cell in grid.plan.cells}
    runs = [o for o in grid.study.outcomes.values() if o.run.cell.name in shown]
    done, passes = sum(o.report is not None for o in runs), sum(f.passes for f in grid.measured.found)
    same = len(grid.measured.same)
    twins = f" ({same} best epochs were the last, and count once)" if same else ""
    return (
        f"{done} of {len(runs)} trainings have ended; {len(grid.measured.found)} models were measured{twins}, with "
        f"{passes:,} passes of an image."
    )


def _failures(grid: Grid) -> Iterator[Finding]:
    """What could not be measured, once for each error."""
    by_error: dict[tuple[str, str], list[str]] = {}
    for found in grid.measured.found:
        for what, error in found.errors.items():
            by_error.setdefault((what, error), []).append(found.row.name)
    for (what, error), names in by_error.items():
        yield Finding(
            level="finding", code="not-measured", message=f"{what} of {', '.join(names[:8])}: {error}",
            remedy="Mend that, and run the study again: what was measured is kept.",
        )  # fmt: skip


def _measured_section(grid: Grid) -> Section:
    table, config, recipe = grid.plan.table, grid.plan.config, grid.study.study.recipe
    rows: tuple[Any, ...] = tuple((key, str(value)) for key, value in table.model_dump(mode="json").items())
    text = (
        f"Robust loss and error by {config.attack}, {config.norm} {config.eps:.4g}, every image attacked to the end: the same "
        "for all cells, whatever they were trained with. Confidence is the mean largest probability on clean test images. A "
        "model whose accuracy on test and on training images is not significantly above the most frequent class's share (exact "
        "binomial tests, p < .01) is no better than a constant predictor, and is refused a rank. "
        + ". ".join(grid.measured.notes)
    )
    notes = "\n\n".join(" ".join(part.split()) for part in recipe.notes.split("\n\n"))
    return Section(
        title="How it was measured", text=f"{text.strip()}\n\n{notes}",
        tables=(Table(title="The table [flatness]", columns=("Option", "Value"), rows=rows),),
    )  # fmt: skip
