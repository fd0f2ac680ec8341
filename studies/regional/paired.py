"""Set an attack's transfer beside the paper's on the same photographs, from the folders that `shaketable transfer` wrote.

    python studies/regional/paired.py PAPER OTHER --images 300 --out FILE.json

PAPER and OTHER have the same models, regions and seed, and OTHER no more images; --images is the size of the data set.
Prints of each region both rates on OTHER's images, the difference of the rates, paired over images, and how often each
fools its own model; intervals are 95 %, by bootstrap over images. --out writes the same.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from shaketable.attacks.transfer_matrix import Transfer, collected, over_images
from shaketable.core.seeds import generator
from shaketable.runs import Ledger
from shaketable.stats import Mean


def main() -> None:
    """Read both folders, print a line a region."""
    parser = argparse.ArgumentParser(description="Paired transfer of two attacks.")
    parser.add_argument("paper", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    (paper, rows), (other, few) = (_read(folder, given.images) for folder in (given.paper, given.other))
    at = [rows.index(row) for row in few]
    print("region: paper's, other's, difference; source fooled by paper's, other's")
    found: dict[str, Any] = {}
    for region in other.regions:
        valid = [other.valid(s, t) for s, t in other.pairs]
        assert valid == [[paper.valid(s, t)[i] for i in at] for s, t in other.pairs], "other models or images"
        a = [[float(paper.hits(s, t, region)[i]) for i in at] for s, t in other.pairs]
        b = [[float(hit) for hit in other.hits(s, t, region)] for s, t in other.pairs]
        more = [[y - x for x, y in zip(*pair, strict=True)] for pair in zip(a, b, strict=True)]
        rates = dict(
            zip(("paper", "other", "difference"), (over_images(v, valid, 0) for v in (a, b, more)), strict=True)
        )
        fooled = {"paper": _own(paper, region, at), "other": _own(other, region, list(range(len(few))))}
        print(f"{region}: {', '.join(map(_percent, rates.values()))}; {', '.join(fooled.values())}")
        found[region] = {name: [m.value, m.low, m.high] for name, m in rates.items()} | {"source fooled": fooled}
    if given.out is not None:
        given.out.write_text(json.dumps({"images": len(few), "regions": found}, indent=1) + "\n")


def _read(folder: Path, images: int) -> tuple[Transfer, list[int]]:
    """The matrix of a folder, and its images' rows in the data set."""
    config = json.loads((folder / "report.json").read_text())["config"]
    made: dict[str, dict[str, Any]] = {}
    for record in Ledger(folder / "cells").records():
        row: dict[str, Any] = dict(record.result or {})
        made.setdefault(row["source"], row | {"regions": {}})["regions"].update(row["regions"])
    for row in made.values():
        row["regions"] = {name: row["regions"][name] for name in config["regions"]}
    drawn = torch.randperm(images, generator=generator(config["seed"], "count"))[: config["count"]]
    return collected(list(made.values())), drawn.sort().values.tolist()


def _own(found: Transfer, region: str, at: list[int]) -> str:
    """How many of these images fool the model that they were made on, of those it gets right."""
    pairs = [
        (row["regions"][region]["left"]["first"][i] >= 0)
        for row in found.rows
        for i in at
        if row["correct"][row["source"]][i]
    ]
    return f"{sum(pairs)}/{len(pairs)}"


def _percent(mean: Mean) -> str:
    return f"{100 * mean.value:.1f} [{100 * mean.low:.1f}, {100 * mean.high:.1f}]"


if __name__ == "__main__":
    main()
