"""Verdicts beside the peers', image by image: robust accuracy must not be above theirs by more than half a point.

    python benchmarks/agreement.py --images 1000

Nothing is timed. `pyautoattack` is AutoAttack's authors' code (fra31/auto-attack, MIT) as a package.
"""

import argparse
import json
import logging
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peers
import torch
from cells import BALL
from pyautoattack import AutoAttack as TheirAutoAttack
from rich.console import Console
from rich.table import Table
from subjects import EPS, Subject, subject
from torch import Tensor

from shaketable.attacks import Attack, AutoAttack, PGDAttack, evaluate

RESULTS = Path(__file__).parent / "results" / "agreement.json"
STEPS, ALLOWED = 20, 0.005


def main() -> int:
    """Compare, print, write; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description="Verdicts beside the peers'.")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--nets", nargs="+", default=["ordinary", "AT-AWP"])
    parser.add_argument("--attacks", nargs="+", default=["pgd", "autoattack"], choices=["pgd", "autoattack"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    done = json.loads(given.out.read_text())["cells"] if given.out.exists() else []
    for name in given.nets:
        for attack in given.attacks:
            cell = compared(subject(name, given.images), attack)
            done = [c for c in done if (c["net"], c["attack"]) != (name, attack)] + [cell]
            _write(done, given.out)
            Console(width=140).print(_table(done))
    missed = [c for c in done if c["robust accuracy"]["ours"] > c["robust accuracy"]["theirs"] + ALLOWED]
    return 1 if missed else 0


def compared(s: Subject, attack: str) -> dict[str, Any]:
    """One attack of ours and theirs on the same images; theirs judged by a pass of our own over its points."""
    mine: Attack = PGDAttack(steps=STEPS) if attack == "pgd" else AutoAttack()
    found = evaluate(s.model, s.x, s.y, within=BALL, seed=0, attack=mine)
    ours, theirs = found.robust_correct, _pgd(s) if attack == "pgd" else _autoattack(s)
    return {
        "net": s.name, "attack": attack, "images": len(s.x), "eps": EPS, "clean accuracy": found.clean.value,
        "robust accuracy": {"ours": float(ours.double().mean()), "theirs": float(theirs.double().mean())},
        "agree": int((ours == theirs).sum()), "robust for us alone": int((ours & ~theirs).sum()),
        "robust for them alone": int((theirs & ~ours).sum()), "findings": [f.code for f in found.findings],
    }  # fmt: skip


def _pgd(s: Subject) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return peers.robust_by_torchattacks(s.model, s.x, s.y, EPS, STEPS, 100)


def _autoattack(s: Subject) -> Tensor:
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    with torch.random.fork_rng():
        theirs = TheirAutoAttack(s.model, norm="Linf", eps=s.eps, seed=0, version="standard")
        points, _ = theirs.run_standard_evaluation(s.x, s.y, batch_size=100)
    with torch.no_grad():
        return (s.model(s.x).argmax(1) == s.y) & (s.model(points).argmax(1) == s.y)


def _table(done: list[dict[str, Any]]) -> Table:
    table = Table(title="Robust accuracy, ours and theirs", title_justify="left")
    for column in ("net", "attack", "images", "ours", "theirs", "agree", "robust for us alone", "for them alone"):
        table.add_column(column, justify="left" if column in ("net", "attack") else "right")
    for c in done:
        rates = [f"{100 * c['robust accuracy'][who]:.1f} %" for who in ("ours", "theirs")]
        counts = [str(c[key]) for key in ("agree", "robust for us alone", "robust for them alone")]
        other = {"pgd": f"PGD-{STEPS}, torchattacks", "autoattack": "AutoAttack, pyautoattack"}[c["attack"]]
        table.add_row(c["net"], other, str(c["images"]), *rates, *counts)
    return table


def _write(done: list[dict[str, Any]], out: Path) -> None:
    versions = {name: version(name) for name in ("torch", "torchattacks", "pyautoattack", "shaketable")}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    out.write_text(json.dumps({"date": now, "versions": versions, "cells": done}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
