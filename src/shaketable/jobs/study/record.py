"""study.json: everything that a study measured, seed by seed, and where it comes from, for other programs to read."""

import hashlib
import json
import math
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...core.errors import InputError
from ...files import write_atomically
from ...report import Volatile
from ...stats import Mean
from ..ground import config_of
from ..measured import FINAL, FINAL_NAME, QUANTITIES, Curve, Measured
from .recipe import Recipe
from .runs import Outcome
from .summary import CellResult, Comparison, Difference, Summary, measures_of
from .verbs import identity

FORMAT = 1
RECORDED_CURVES = ("robust loss", "robust accuracy")


def record(
    recipe: Recipe, outcomes: Mapping[str, Outcome], summary: Summary, *, source: Path, command: str,
    environment: Mapping[str, Any], volatile: Volatile,
) -> dict[str, Any]:  # fmt: skip
    """A study as JSON values. All that may differ between two runs of the same study is under "volatile".

    Args:
        source: the recipe's file, whose SHA-256 is recorded.

    Numbers that JSON cannot hold (the interval of one seed) are null.
    """
    configs = {o.run.cell.name: _config_of(o) for o in reversed(list(outcomes.values()))}  # of the first seed
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    return {
        "format": FORMAT,
        "title": recipe.title,
        "question": recipe.question,
        "recipe": {"sha256": sha256, **recipe.model_dump(mode="json", exclude_none=True)},
        "command": command,
        "commit": commit(),
        "environment": dict(environment),
        "quantities": QUANTITIES | ({} if recipe.final is None else {FINAL: FINAL_NAME}),
        "units": {measure.key: measure.unit for measure in measures_of(recipe)},
        "cells": {name: _cell(cell, configs[name]) for name, cell in summary.cells.items()},
        "comparisons": [_comparison(c) for c in summary.comparisons],
        "volatile": {
            **volatile.model_dump(mode="json"),
            "run seconds": {name: o.report.volatile.seconds for name, o in outcomes.items() if o.report is not None},
        },
    }


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Write study.json, all of it or nothing."""
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
    write_atomically(folder / "study.json", f"{text}\n".encode())


def read(path: Path) -> dict[str, Any]:
    """Read a study.json.

    Raises:
        InputError: a file that cannot be read, or of another format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {error}"[:160]
        raise InputError(str(path), "a study.json", found, "Run `shaketable study` again.") from error
    if version != FORMAT:
        raise InputError(str(path), f"format {FORMAT}", f"format {version!r}", "Use the version that wrote it.")
    return content


def commit() -> str | None:
    """The commit of this package's source, with "+changes" if its files differ from it; None if it is not in git."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # installed below somebody else's repository?
        head, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", str(here.parent))
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}+changes" if changes else head


def _config_of(outcome: Outcome) -> dict[str, Any]:
    """What all seeds of a cell have in common: the config without the seed, and without other runs' folders."""
    config = identity(config_of(outcome.run.config), ("device", "threads", "seed"))
    return config | {key: outcome.run.cell.options[key] for key in outcome.run.places}


def _cell(cell: CellResult, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "config": dict(config),
        "hidden": cell.hidden,
        "means": {key: _mean(found) for key, found in cell.means.items()},
        "seeds": {str(seed): _measured(found) for seed, found in cell.measured.items()},
        "failed": {str(seed): error for seed, error in cell.errors.items()},
        "not run": list(cell.missing),
    }


def _measured(found: Measured) -> dict[str, Any]:
    curves = {name: parts for name, parts in found.curves.items() if name in RECORDED_CURVES}
    return {
        "values": {key: _finite(metric.value) for key, metric in found.metrics.items()},
        "counts": {key: metric.n for key, metric in found.metrics.items()},
        "findings": list(found.codes),
        "curves": {name: {part: _curve(c) for part, c in parts.items()} for name, parts in curves.items()},
    }


def _curve(curve: Curve) -> list[list[float | None]]:
    return [[epoch, _finite(value)] for epoch, value in zip(curve.epochs, curve.values, strict=True)]


def _comparison(comparison: Comparison) -> dict[str, Any]:
    differences = {key: _difference(found) for key, found in comparison.differences.items()}
    return {**comparison.compare.model_dump(), "differences": differences}


def _difference(found: Difference) -> dict[str, Any]:
    counts = {"below": found.below, "above": found.above, "p": _finite(found.p), "holm": _finite(found.holm)}
    return {"seeds": {str(s): _finite(v) for s, v in found.values.items()}, **_mean(found.mean), **counts}


def _mean(found: Mean) -> dict[str, Any]:
    return {key: _finite(value) if isinstance(value, float) else value for key, value in asdict(found).items()}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
