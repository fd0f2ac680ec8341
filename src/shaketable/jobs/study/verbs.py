"""The verbs whose runs a study can have as cells, and how a run of theirs is known again on the disk."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError, ShaketableError
from ...report import Report, read_json
from ...runs import differences
from ..config import EvaluateConfig
from ..pseudolabel_config import PseudolabelConfig
from ..settings import Settings
from ..train_config import TrainConfig

VERBS: dict[str, type[Settings]] = {
    "train": TrainConfig,
    "pseudolabel": PseudolabelConfig,
    "evaluate": EvaluateConfig,
}
"""Verb -> its config; "evaluate" is for the cells that a table [final] makes (see `study_finals`)."""

MACHINE = ("device", "threads")
"""Options that are the machine's: runs that differ in them alone are runs of the same thing."""


def identity(config: Mapping[str, Any], without: tuple[str, ...] = MACHINE) -> dict[str, Any]:
    """What makes a run the same run, of a config as a report or a config.json has it."""
    left_out = (*without, "out", "resume", "save_every")
    return {name: value for name, value in config.items() if name not in left_out}


def require_same(
    folder: Path, expected: Mapping[str, Any], places: Mapping[str, str], given: Collection[str] | None = None
) -> None:
    """Make sure that what lies in a run's folder, finished or not, is of this run.

    Args:
        expected: the config of the run.
        places: options that hold folders of other runs -> a regular expression of what they may be, so that a study may
            be moved.
        given: the options that the run does not leave at their defaults, if that is known: one that is not among them and
            that lies there without, of a version that did not have it, is no difference.

    Raises:
        ConfigError: a run with other settings lies there; they are named.
    """
    recorded = _config_in(folder)
    if recorded is None:
        return
    found = identity(recorded)
    for key, pattern in places.items():
        if isinstance(found.get(key), str) and re.fullmatch(pattern, found[key]):
            found[key] = expected[key]
    wanted = identity(expected)
    new = {} if given is None else {key: value for key, value in wanted.items() if key not in given}
    other = differences(new | found, wanted)
    if other:
        remedy = "Choose another --out, or remove this folder."
        raise ConfigError(str(folder), "a run of this study", f"one with other settings: {'; '.join(other)}", remedy)


def finished(folder: Path, verb: str) -> Report | None:
    """The report of a run that has ended; None if there is none, or none that can be read."""
    try:
        report = read_json(folder / "report.json")
    except ShaketableError:
        return None
    return report if report.verb == verb else None


def _config_in(folder: Path) -> dict[str, Any] | None:
    """The config of the run in a folder: its own file, which is there from its beginning."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"[:160]
        remedy = "Remove this folder; the run is made again."
        raise ConfigError(str(folder / "config.json"), "the config of a run", found, remedy) from error
    return values if isinstance(values, dict) else {}
