"""A transfer matrix, in words."""

import math
from typing import TYPE_CHECKING

from ..core.errors import InputError
from ..stats import Mean, Rate

if TYPE_CHECKING:
    from .transfer_matrix import Transfer


def matrices(found: "Transfer") -> str:
    """For each region the matrix at the fixed budget, that of the oracle, and their means."""
    blocks = []
    for region in found.regions:
        first = found.rows[0]
        share = first["regions"][region]["area"]
        regional = found.attack == "regional"
        how = f"{first['steps']} steps of {first['step']:.4f}" if regional else found.attack
        how = f"{first['n']} images, {how}"
        head = f"{region}: {100 * share:.1f} % of the pixels, {how}"
        blocks.append(
            "\n".join([head, *_matrix(found, region, False), *(_matrix(found, region, True) if regional else [])])
        )
    note = (
        "Counted on images that both models get right; on the diagonal the attacked model itself leaves the true class."
    )
    return "\n\n".join([*blocks, note])


def _matrix(found: "Transfer", region: str, oracle: bool) -> list[str]:
    title = "at the first iterate that fools the target (oracle)" if oracle else "at the last iterate (fixed budget)"
    try:
        average = found.mean(region, oracle=oracle)
    except InputError:
        return []  # images were dropped at transfer
    table = [["source \\ target", *found.models]]
    for row in found.rows:
        source = row["source"]
        cells = [
            _cell(
                found.white_box(source, region) if name == source else found.rate(source, name, region, oracle=oracle)
            )
            for name in found.models
        ]
        table.append([source, *cells])
    widths = [max(len(line[k]) for line in table) for k in range(len(table[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table]
    return [f"  {title}, mean over pairs {percent(average)}", *(f"    {line}" for line in lines)]


def _cell(rate: Rate) -> str:
    low, high = rate.interval
    return f"{100 * rate.value:.0f} [{100 * low:.0f}, {100 * high:.0f}] {rate.hits}/{rate.n}" if rate.n else "none"


def percent(mean: Mean) -> str:
    """A mean of rates with its interval, where that is known."""
    if not math.isfinite(mean.high - mean.low):
        return f"{100 * mean.value:.1f} % (interval unknown)" if mean.n else "none"
    return f"{100 * mean.value:.1f} % [{100 * mean.low:.1f}, {100 * mean.high:.1f}]"
