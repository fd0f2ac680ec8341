"""`shaketable study flatness`: does flatness go with robustness, over many models, and what else explains it?"""

import hashlib
import shlex
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from ...core.errors import ConfigError
from ...report import Hashes, Report, Section, elapsed_since, environment, verdict_of
from ...runs import Progress
from . import record
from .analysis import analyse
from .config import FlatnessStudyConfig
from .report import correlation_sections, findings, headline
from .sheet import read_sheet
from .table import Choices, table_of
from .text import leading, sentences


def run(config: FlatnessStudyConfig, *, progress: Progress | None = None) -> Report:
    """Correlate flatness with robustness, over the models of a recipe or the rows of a table.

    Raises:
        ConfigError: neither or both of a recipe and a table; see `flatness_table` and `flatness_grid`.
        InputError: fewer than 4 models that can be ranked.

    Cost: of a table, seconds and no pass; of a recipe, see `flatness_grid`. Checked by
    tests/end_to_end/test_flatness_study.py.
    """
    if (config.recipe is None) == (config.table is None):
        found = "both" if config.recipe else "neither"
        raise ConfigError("recipe, table", "a recipe or --table FILE.csv", found, "Give one of them.")
    if config.table is not None:
        return _of_table(config)
    from .grid import of_recipe

    return of_recipe(config, progress=progress)


def estimate(config: FlatnessStudyConfig, timed: Callable[[Any], Any]) -> Any:
    """What a recipe's trainings and measurements would take; see `flatness_grid.estimate`."""
    if config.recipe is None:
        raise ConfigError("dry-run", "a recipe", "a table, which is only read", "Run it; it takes seconds.")
    from .grid import estimate as of_grid

    return of_grid(config, timed)


def _of_table(config: FlatnessStudyConfig) -> Report:
    started, path = datetime.now(UTC), config.table
    assert path is not None
    table = table_of(read_sheet(path), choices_of(config))
    analysis = analyse(table, seed=config.seed, resamples=config.resamples, bounds=config.groups)
    title = f"Flatness and robustness: {path.name}"
    notes, command, facts = tuple(findings(analysis)), command_of(config), environment()
    volatile, sha256 = elapsed_since(started), hashlib.sha256(path.read_bytes()).hexdigest()
    content = record.record(
        analysis, title=title, command=command, environment=facts, volatile=volatile,
        extra={"table": {"name": path.name, "sha256": sha256}},
    )  # fmt: skip
    record.write(config.reports, content)
    return Report(
        verb="study flatness", title=title, summary=leading(analysis), verdict=verdict_of(notes),
        headline=headline(analysis.correlations), findings=notes, command=command,
        sections=(Section(title="In words", text="\n\n".join(sentences(analysis))), *correlation_sections(analysis)),
        config=settings_of(config), environment=facts, seeds={"bootstrap": config.seed},
        hashes=Hashes(data={path.name: sha256}), volatile=volatile,
    )  # fmt: skip


def choices_of(config: FlatnessStudyConfig, otherwise: Mapping[str, Any] | None = None) -> Choices:
    """Which columns are what: as the options say, or else as given here."""
    names = Choices.__dataclass_fields__
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return Choices(**{**(otherwise or {}), **given})


def settings_of(config: FlatnessStudyConfig) -> dict[str, Any]:
    """The options that numbers depend on."""
    return config.model_dump(mode="json", exclude={"out", "workers"})


def command_of(config: FlatnessStudyConfig) -> str:
    """The command line that makes the report again."""
    parts = ["shaketable", "study", "flatness", *([str(config.recipe)] if config.recipe else [])]
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if name in ("recipe", "out", "workers") or value == field.default:
            continue
        parts += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return shlex.join([*parts, "--out", str(config.folder)] if config.recipe else parts)
