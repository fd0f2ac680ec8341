"""What transfer depends on, in a transfer report."""

import math
from dataclasses import replace
from typing import Any

from ..attacks.transfer_causes import by_margin, by_step, by_target, carriers
from ..attacks.transfer_matrix import Transfer
from ..report import Section, Table
from ..stats import Mean
from .transfer_config import REGIONAL

QUARTERS = ("Lowest quarter", "Second", "Third", "Highest quarter")


def why(found: Transfer) -> Section:
    """By the target's margin, by the target, by the steps."""
    tables = [
        Table(
            title="Transfer by the target's margin, %",
            columns=("Region", *QUARTERS, "Half of all by"),
            rows=tuple((name, *map(_known, by_margin(found, name)), _carriers(found, name)) for name in found.regions),
            note="The target's true logit minus the largest other on the clean image, in quarters of each pair's images.",
        ),
        Table(
            title="Transfer to each target, %",
            columns=("Target", *found.regions),
            rows=tuple((t, *(_known(by_target(found, t, name)) for name in found.regions)) for t in found.models),
        ),
    ]
    if found.attack == REGIONAL:
        last = int(found.rows[0]["steps"])
        steps = sorted({1, *(max(1, last * part // 50) for part in (5, 10, 25)), last})
        rows = tuple((name, *(_known(by_step(found, step, name)) for step in steps)) for name in found.regions)
        columns = ("Region", *(f"by step {step}" for step in steps))
        tables.append(Table(title="Fooled at some step so far, %", columns=columns, rows=rows))
    text = (
        "Means over pairs, 95 % intervals by bootstrap over images; of 0 and 100 %, where resamples do not vary, the Wilson "
        "interval of the images; none where the spread is unknown. Where the rate lives in the lowest quarter, in a few "
        "images or on one target, it says more of these than of the perturbation."
    )
    return Section(title="What it depends on", text=text, tables=tuple(tables))


def _carriers(found: Transfer, region: str) -> str:
    half, fooling = carriers(found, region)
    return f"{half} of {fooling} images that fool any" if half else "no image fools any"


def _known(mean: Mean) -> Any:
    """A mean of rates in per cent; None where its spread is unknown: one image, or resamples that do not vary."""
    if not math.isfinite(mean.high - mean.low):
        return None
    return replace(mean, **{name: 100 * getattr(mean, name) for name in ("value", "low", "high", "deviation")})
