"""What has been run: trainings and studies on the disk, with their configs and numbers, to be matched with recipes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ShaketableError
from ..report import Metric
from ..runs import differences
from ..stats import Mean, Rate, mean
from .ground import config_of
from .measured import measured_of
from .reproduce_recipes import TrainingRecipe
from .study import record as study_record
from .study.verbs import MACHINE, finished, identity

WITHOUT = (*MACHINE, "seed")
"""What a run may have other than its recipe."""

_NEAR = 3  # options in which a run may differ to be named beside a recipe that has not been run


@dataclass(frozen=True)
class Done:
    """A training, or a study's cell over its seeds.

    Args:
        where: the folder of the run, or the study's and the cell's name.
        config: its identity, without machine and seed.
        numbers: key of `measured.QUANTITIES` -> a rate or mean over images, of one training; or a mean over seeds.
        seeds: how many trainings.
    """

    where: str
    config: Mapping[str, Any]
    numbers: Mapping[str, Rate | Mean]
    seeds: int


def find(folders: Sequence[Path]) -> list[Done]:
    """Every finished training and every study below these folders; a study's own runs count through it alone.

    Files that cannot be read are passed over: they are no finished runs.
    """
    found: list[Done] = []
    covered: set[Path] = set()
    for root in dict.fromkeys(folder.resolve() for folder in folders):
        for path in sorted(root.rglob("study.json")):
            if path.parent not in covered:
                covered.add(path.parent)
                found += _study(path)
    for root in dict.fromkeys(folder.resolve() for folder in folders):
        for path in sorted(root.rglob("report.json")):
            if path.parent not in covered and covered.isdisjoint(path.parents):
                found += _training(path.parent)
                covered.add(path.parent)
    return found


def matching(recipe: TrainingRecipe, done: Sequence[Done]) -> list[Done]:
    """What has been run of a recipe: equal configs, but for the machine and the seed."""
    wanted = identity(config_of(recipe.config), WITHOUT)
    return [one for one in done if not differences(dict(one.config), wanted)]


def nearly(recipe: TrainingRecipe, done: Sequence[Done]) -> tuple[Done, list[str]] | None:
    """The run that differs in the fewest options, at most three, and those."""
    wanted = identity(config_of(recipe.config), WITHOUT)
    others = [(one, differences(wanted, dict(one.config))) for one in done]
    near = [(one, other) for one, other in others if 0 < len(other) <= _NEAR]
    return min(near, key=lambda pair: len(pair[1]), default=None)


def _training(folder: Path) -> Iterator[Done]:
    report = finished(folder, "train")
    if report is not None:
        numbers = {key: _number(metric) for key, metric in measured_of(report).metrics.items()}
        yield Done(_shown(folder), identity(report.config, WITHOUT), numbers, 1)


def _study(path: Path) -> Iterator[Done]:
    try:
        content = study_record.read(path)
        for name, cell in content["cells"].items():
            values: dict[str, list[float]] = {}
            for seed in cell["seeds"].values():
                for key, value in seed["values"].items():
                    if value is not None:
                        values.setdefault(key, []).append(value)
            if values:
                numbers: dict[str, Rate | Mean] = {key: mean(found) for key, found in values.items()}
                yield Done(f"{_shown(path.parent)}: {name}", cell["config"], numbers, len(cell["seeds"]))
    except (ShaketableError, KeyError, TypeError, AttributeError):
        return


def _number(metric: Metric) -> Rate | Mean:
    if metric.kind == "rate" and metric.hits is not None and metric.n is not None:
        return Rate(metric.hits, metric.n)
    assert metric.value is not None
    assert metric.interval is not None
    deviation = float("nan") if metric.deviation is None else metric.deviation
    return Mean(metric.value, *metric.interval, metric.n or 0, deviation, metric.law or "student")


def _shown(folder: Path) -> str:
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)
