"""flatness.json: everything that a correlation study found, for other programs to read; and its table as a CSV file."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...files import write_atomically
from ...flatness.associations import Association
from ...report import Volatile
from ..study.record import commit
from .analysis import Analysis
from .sheet import written

FORMAT = 1


def record(
    analysis: Analysis, *, title: str, command: str, environment: Mapping[str, Any], volatile: Volatile,
    extra: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """A study as JSON values; numbers that JSON cannot hold are null. All that may differ between two runs is "volatile"."""
    found = analysis.correlations
    groups = analysis.groups
    return _plain(
        {
            "format": FORMAT, "title": title, "command": command, "commit": commit(), "environment": dict(environment),
            "models": {
                "names": found.models.names, "families": found.models.families, "columns": dict(found.models.columns),
            },
            "families from": analysis.table.families,
            "refused": [asdict(refused) for refused in found.refused], "left out columns": found.undefined,
            "flatness": found.flatness, "targets": found.targets, "given": found.given,
            "bootstrap": {"seed": found.seed, "resamples": found.resamples},
            "plain": [_association(a) for a in found.plain], "partial": [_association(a) for a in found.partial],
            "reverse": [_association(a) for a in found.reverse], "shares": [asdict(share) for share in found.shares],
            "leads": [asdict(lead) for lead in found.leads],
            "groups": None if groups is None else {
                "by": groups.by, "bounds": groups.bounds, "found": {name: asdict(g) for name, g in groups.found.items()},
            },
            **extra, "volatile": volatile.model_dump(mode="json"),
        }
    )  # fmt: skip


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Write flatness.json, all of it or nothing."""
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
    write_atomically(folder / "flatness.json", f"{text}\n".encode())


def write_table(folder: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write table.csv, which `--table` reads; numbers to the bit, nothing for NaN."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(columns)
    lines.writerows(zip(*([written(value) for value in column] for column in columns.values()), strict=True))
    write_atomically(folder / "table.csv", text.getvalue().encode())


def _association(a: Association) -> dict[str, Any]:
    kinds = {kind: asdict(one) for kind, one in a.coefficients.items()}
    return {"predictor": a.predictor, "target": a.target, "given": a.given, **kinds}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
