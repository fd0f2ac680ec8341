"""`make bench`: speed against peers, all in one process, side by side.

    python benchmarks/run.py [--images 512] [--repetitions 7] [--only robust]

Prints each ratio with its interval and its bar, writes benchmarks/results/latest.json, and exits 1 if a bar that must hold is
not cleared: robust accuracy of the AT-AWP model at PGD-20 and PGD-50, 1.5 times faster than torchattacks and Foolbox. The
other bars are aims. Of a cost over passes the bar is the most, elsewhere the least. The figures are CPU seconds of this
process on one thread: on a machine with other users the clock on the wall says little, and even CPU time wavers (caches and
clocks are shared), hence the repetitions and intervals.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table

torch.set_num_threads(1)

from autoattack import standard  # noqa: E402
from cells import Comparison, passes, plain_pgd, robust_accuracy, square_windows  # noqa: E402
from flatness_precision import one_model, two_models  # noqa: E402
from programs import programs  # noqa: E402
from steps import Setting, additions, besides, whole_steps  # noqa: E402
from subjects import subject, untrained_resnet  # noqa: E402
from transfers import matrix  # noqa: E402

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Speed against peers.")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--only", default="", help="cells whose name holds this")
    parser.add_argument("--out", type=Path, default=RESULTS / "latest.json")
    given = parser.parse_args()
    console = Console() if sys.stdout.isatty() else Console(width=140)
    done = []
    for name, cell in _cells(given.images, given.repetitions).items():
        if given.only in name:
            console.print(f"[dim]measuring: {name}[/dim]")
            done.extend(cell())
    against, passes = [c for c in done if not c.cost], [c for c in done if c.cost]
    for table in (
        _table(against, "CPU time of others over ours"),
        _table(passes, "CPU time of ours over the passes it is made of"),
        _accuracies(done),
    ):
        if table.row_count:
            console.print(table)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(_record(done, vars(given)), indent=1, default=str) + "\n")
    console.print(f"written to {given.out}")
    missed = [f"{c.cell} against {c.other}" for c in done if c.must and c.cleared is False]
    for name in missed:
        console.print(f"[red]not cleared:[/red] {name}")
    return 1 if missed else 0


def _cells(images: int, repetitions: int) -> dict[str, Callable[[], Iterator[Comparison]]]:
    cells: dict[str, Callable[[], Iterator[Comparison]]] = {
        "plain PGD": partial(plain_pgd, images, repetitions),
        "quick twin": partial(passes, images, repetitions),
        "Square through windows": partial(square_windows, repetitions),
        "quick twins of programs": partial(programs, repetitions),
        "flatness, one model": partial(one_model, images, repetitions),
        "flatness, a difference": partial(two_models, images, repetitions),
        "transfer matrix": partial(matrix, images, repetitions),
    }
    for name in ("AT-AWP", "ordinary"):
        for steps in (10, 20, 50):
            cells[f"robust accuracy, {name}, PGD-{steps}"] = partial(robust_accuracy, name, steps, images, repetitions)
    cells |= {f"training step, {name}": cell for name, cell in _training(images, repetitions)}
    return cells | {
        f"autoattack, {name}": partial(standard, name, images, repetitions) for name in ("AT-AWP", "ordinary")
    }


def _training(images: int, repetitions: int) -> Iterator[tuple[str, Callable[[], Iterator[Comparison]]]]:
    """Small differences of long times need many repetitions; short steps can afford them."""

    def measure(measured: Callable[..., Iterator[Comparison]], setting: Callable[[], Setting], times: int) -> Any:
        return lambda: measured(setting(), times * repetitions)

    def small(steps: int) -> Setting:
        return Setting(replace(subject("AT-AWP", max(images, 64)), name="small CNN"), 64, steps, passes=10)

    def resnet(batch: int, steps: int) -> Setting:
        return Setting(untrained_resnet(batch), batch, steps, passes=2 if batch < 32 else 1)

    yield "whole, small CNN", measure(whole_steps, partial(small, 10), 12)
    yield "small CNN, what AWP adds", measure(additions, partial(small, 2), 40)
    yield "whole, PreAct ResNet-18", measure(whole_steps, partial(resnet, 8, 10), 1)
    for batch, times in ((8, 2), (128, 1)):
        yield f"PreAct ResNet-18, what AWP adds, batch {batch}", measure(additions, partial(resnet, batch, 2), times)
        yield (
            f"PreAct ResNet-18, beside AWP's passes, batch {batch}",
            measure(besides, partial(resnet, batch, 1), times),
        )


def _table(done: list[Comparison], title: str) -> Table:
    table = Table(title=f"{title} (median, 95 % interval)", title_justify="left")
    for column in ("cell", "against", "ratio", "bar", "", "ours, s", "theirs, s"):
        table.add_column(column, justify="right" if column in ("ratio", "bar") or ", s" in column else "left")
    for c in done:
        missed = "[red]not cleared[/red]" if c.must else "not cleared"
        mark = {True: "[green]cleared[/green]", False: missed, None: ""}[c.cleared]
        bar = "" if c.bar is None else f"{'<=' if c.cost else '>='} {c.bar:.2f} ({'must' if c.must else 'aim'})"
        table.add_row(c.cell, c.other, str(c.ratio), bar, mark, _spread(c.ours), _spread(c.theirs))
    return table


def _accuracies(done: list[Comparison]) -> Table:
    table = Table(title="Robust accuracy, and passes an image", title_justify="left")
    for column in ("cell", "ours", "torchattacks", "Foolbox", "forward", "backward", "batch"):
        table.add_column(column)
    for c in done:
        if "robust accuracy" in c.facts and c.other == "torchattacks":
            values = [f"{100 * value:.1f} %" for value in c.facts["robust accuracy"].values()]
            an_image = [f"{c.facts[way] / c.facts['images']:.1f}" for way in ("forward", "backward")]
            table.add_row(c.cell, *values, *an_image, ", ".join(map(str, c.facts["batch"].values())))
    return table


def _spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    return f"{ordered[len(ordered) // 2]:.3g} ({ordered[0]:.3g}..{ordered[-1]:.3g})"


def _record(done: list[Comparison], given: dict) -> dict:
    packages = {
        name: version(name) for name in ("torch", "numpy", "torchattacks", "foolbox", "pyautoattack", "shaketable")
    }
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "unknown")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": cpu,
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "load": os.getloadavg(),
        },
        "settings": {k: given[k] for k in ("images", "repetitions", "only")}
        | {"threads": torch.get_num_threads(), "clock": "process_time"},
        "versions": packages | {"python": platform.python_version()},
        "cells": [c.record() for c in done],
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


if __name__ == "__main__":
    sys.exit(main())
