"""`shaketable reproduce NAME`: a paper's published numbers beside those of the runs that are there, and what is missing."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from ..plugins import nearest
from ..report import (
    Finding,
    Metric,
    Report,
    Section,
    Table,
    elapsed_since,
    environment,
    estimate,
    mean_metric,
    rate_metric,
    verdict_of,
)
from ..report.wording import number, shown
from ..runs import Progress, duration
from ..stats import Mean, Rate
from .measured import QUANTITIES
from .reproduce_config import ReproduceConfig
from .reproduce_recipes import BEYOND, PUBLISHED, TrainingRecipe, read_all
from .reproduce_runs import Done, find, matching, nearly

if TYPE_CHECKING:
    from rich.console import Console

NOT_RUN = "not run"
NOT_MEASURED = "not measured"
_COLUMNS = ("Recipe", "Quantity", "Published", "Ours", "Difference", "Published number in our interval", "Hours", "Run")
_HEADLINES = 6
_OWN = ("robust_best", "robust_last", "gap")  # what is shown of a recipe for which nothing is published


@dataclass(frozen=True)
class Row:
    """One published number and one run of its recipe, or none.

    Args:
        quantity: key of `PUBLISHED`.
        published: in percent where it is a share; None for a recipe of ours, for which nothing is.
        ours: None where the recipe was not run, or its run has no such number.
        done: the run.
    """

    recipe: TrainingRecipe
    quantity: str
    published: float | None
    ours: Rate | Mean | None
    done: Done | None

    @property
    def factor(self) -> float:
        """From our number to the published one's unit."""
        return 1.0 if self.quantity.startswith(("loss", "gap", "overfitting")) else 100.0

    @property
    def interval(self) -> tuple[float, float] | None:
        """Ours, in the published number's unit."""
        if self.ours is None:
            return None
        low, high = self.ours.interval if isinstance(self.ours, Rate) else (self.ours.low, self.ours.high)
        return self.factor * low, self.factor * high

    @property
    def difference(self) -> float | None:
        """Ours minus the published number, in its unit."""
        if self.ours is None or self.published is None:
            return None
        return self.factor * self.ours.value - self.published

    @property
    def inside(self) -> bool | None:
        """Whether the published number lies in our interval; that says nothing of its own spread."""
        ends = self.interval
        return None if ends is None or self.published is None else ends[0] <= self.published <= ends[1]


def run(config: ReproduceConfig, *, progress: Progress | None = None) -> Report:
    """Match runs with recipes and report; nothing is trained.

    A run belongs to a recipe if its config is equal but for seed, device, threads and folders. It is never said that a
    number was reproduced: only whether the published one lies in the interval of ours, which for one training is over
    images and not over seeds.

    Raises:
        ConfigError: no such recipes (the nearest names are given), or one that cannot be.

    Checked by tests/jobs/test_reproduce.py.
    """
    started = datetime.now(UTC)
    folder = config.recipes / config.name
    if not folder.is_dir():
        known = sorted(path.name for path in config.recipes.glob("*") if path.is_dir())
        raise ConfigError("name", f"a folder of {config.recipes}", repr(config.name), nearest(config.name, known))
    recipes = read_all(folder)
    done = find([config.runs, config.studies])
    rows = rows_of(recipes, done)
    return _report(config, recipes, rows, done, started)


def rows_of(recipes: Sequence[TrainingRecipe], done: Sequence[Done]) -> list[Row]:
    """A row for each published number and each run of its recipe; the first is None where it was not run."""
    rows: list[Row] = []
    for recipe in recipes:
        for one in matching(recipe, done) or [None]:
            for quantity, published in (recipe.about.published or dict.fromkeys(_OWN)).items():
                rows.append(Row(recipe, quantity, published, one and one.numbers.get(quantity), one))
    return rows


def show(report: Report, console: "Console", path: Path) -> None:
    """Print the summary and the table of a report of this verb, which the terminal's usual view leaves out."""
    from rich.text import Text

    console.print(Text(report.title, style="bold"))
    for sentence in report.summary:
        console.print(Text(f"  {sentence}"), soft_wrap=not console.is_terminal)
    names = ("Quantity", "Published", "Ours", "Difference", "In our interval")
    console.print()
    console.print(Text(_line(names), style="dim"), soft_wrap=True)
    above: tuple[Any, Any] | None = None
    for name, *cells, hours, where in (row for t in report.sections[0].tables for row in t.rows):
        if (name, where) != above:
            state = f"  {where}" if where else f"  about {_words(hours)} hours"
            console.print(Text.assemble((str(name), "bold"), (state, "dim")), soft_wrap=True)
            above = (name, where)
        console.print(Text(_line([_words(cell) for cell in cells])), soft_wrap=True)
    console.print()
    console.print(Text(f"Report: {path}"), soft_wrap=True)


def _line(words: Sequence[str]) -> str:
    """A row of the terminal's table; a word that is too long for its column pushes the rest on."""
    return "  " + " ".join(word.ljust(width) for word, width in zip(words, (29, 10, 21, 10, 3), strict=True)).rstrip()


def _words(cell: Any) -> str:
    if cell is None or isinstance(cell, bool):
        return {None: "", True: "yes", False: "no"}[cell]
    if isinstance(cell, int | float):
        return number(cell)
    return cell if isinstance(cell, str) else shown(cell).line.replace("\u202f", " ")


def _report(
    config: ReproduceConfig, recipes: Sequence[TrainingRecipe], rows: Sequence[Row], done: Sequence[Done], started: datetime
) -> Report:  # fmt: skip
    notes = _findings(recipes, done)
    assert config.out is not None
    return Report(
        verb="reproduce",
        title=f"Published numbers of {config.name}, and ours",
        summary=_summary(recipes, rows, done),
        verdict=verdict_of(notes),
        headline=tuple(_metric(row) for row in rows if row.ours is not None)[:_HEADLINES],
        findings=notes,
        sections=(_numbers(rows), _recipes(recipes, done)),
        command=shlex.join(
            ["shaketable", "reproduce", config.name, "--runs", str(config.runs), "--studies", str(config.studies)]
        ),
        config={"name": config.name, "runs": str(config.runs), "studies": str(config.studies)},
        environment=environment(),
        volatile=elapsed_since(started),
    )  # fmt: skip


def _summary(recipes: Sequence[TrainingRecipe], rows: Sequence[Row], done: Sequence[Done]) -> tuple[str, ...]:
    run_of = [recipe for recipe in recipes if matching(recipe, done)]
    left = sum(recipe.about.hours for recipe in recipes if recipe not in run_of)
    known = [row for row in rows if row.inside is not None]
    rest = f"; the others would take about {duration(3600 * left)}" if left else ""
    lines = [f"{len(run_of)} of {len(recipes)} recipes have been run{rest}."]
    if known:
        inside = sum(bool(row.inside) for row in known)
        lines.append(
            f"{inside} of {len(known)} published numbers lie in our 95 % intervals. An interval of one training is over test "
            "images: it says nothing of how far another seed would move either number."
        )
    return tuple(lines)


def _metric(row: Row) -> Metric:
    name = f"{row.recipe.name}: {PUBLISHED[row.quantity].lower()}"
    unit = "%" if row.factor == 100 else ""
    note = "" if row.published is None else f"published {row.published:g} {unit}".strip()
    if isinstance(row.ours, Rate):
        return rate_metric(name, row.ours, note=note)
    assert row.ours is not None
    scaled = _scaled(row.ours, row.factor)
    return mean_metric(name, scaled, unit=unit, note=note)


def _scaled(value: Rate | Mean, factor: float) -> Mean:
    assert isinstance(value, Mean)
    ends = (factor * value.value, factor * value.low, factor * value.high)
    return Mean(*ends, value.n, factor * value.deviation, value.law)


def _numbers(rows: Sequence[Row]) -> Section:
    table = Table(
        title="Published numbers and ours", columns=_COLUMNS, rows=tuple(_cells(row) for row in rows),
        note="Shares in %, losses as they are. Ours: one training, with the interval over its images (Wilson for rates, "
        "Student for losses), or several seeds, with Student's interval over them.",
    )  # fmt: skip
    return Section(title="Numbers", tables=(table,))


def _cells(row: Row) -> tuple[Any, ...]:
    ours: Any = row.ours
    if ours is None:
        ours = NOT_RUN if row.done is None else NOT_MEASURED
    elif isinstance(ours, Mean):
        ours = estimate(_scaled(ours, row.factor))
    inside = "" if row.inside is None else "yes" if row.inside else "no"
    difference = None if row.difference is None else round(row.difference, 2)
    where = "" if row.done is None else row.done.where
    name = PUBLISHED[row.quantity]
    return row.recipe.name, name, row.published, ours, difference, inside, row.recipe.about.hours, where


def _recipes(recipes: Sequence[TrainingRecipe], done: Sequence[Done]) -> Section:
    rows: list[tuple[Any, ...]] = []
    for recipe in recipes:
        about, near = recipe.about, None if matching(recipe, done) else nearly(recipe, done)
        state = f"{near[0].where} differs in {'; '.join(near[1])}" if near else ""
        rows.append((recipe.name, about.paper, about.table, about.metric, about.hours, about.gpu, about.notes, state))
    columns = ("Recipe", "Paper", "Where", "Metric", "Hours", "On", "Notes", "Nearest run")
    table = Table(
        title="Recipes", columns=columns, rows=rows, note="Run one with: shaketable train --config RECIPE.toml"
    )
    return Section(title="Recipes", tables=(table,))


def _findings(recipes: Sequence[TrainingRecipe], done: Sequence[Done]) -> tuple[Finding, ...]:
    missing = sorted({q for r in recipes if matching(r, done) for q in r.about.published if q in BEYOND})
    assert set(missing).isdisjoint(QUANTITIES)
    if not missing:
        return ()
    message = f"Not in the report of a training: {', '.join(PUBLISHED[key] for key in missing)}."
    remedy = "Evaluate the run's best.safetensors by that attack; PGD's accuracy is only an upper bound of it."
    return (Finding(level="info", code="not-measured", message=message, remedy=remedy),)
