"""The batches of an evaluation, kept in its folder, so that one that was stopped goes on."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..attacks.batches import usual_size
from ..attacks.parts import Part, Parts
from ..files import sha256_of
from ..plugins import names_code
from ..runs import Cell, Ledger
from .config import EvaluateConfig
from .flatness.cells import model_hash
from .ground import Ground

FOLDER, MEASURE, VERSION = "batches", "evaluate", 1


@dataclass
class Keeper:
    """Where the batches of an evaluation are kept; `found` counts those that were there already."""

    ledger: Ledger
    cell: Callable[[tuple[float, ...], int], Cell]
    found: int = 0

    def at(self, radii: tuple[float, ...]) -> Parts:
        """Those of one radius, the last of `radii`."""
        return _Batches(self, radii)


@dataclass(frozen=True)
class _Batches:
    keeper: Keeper
    radii: tuple[float, ...]

    def get(self, index: int) -> Part | None:
        found = self.keeper.ledger.get(self.keeper.cell(self.radii, index))
        if found is None:
            return None
        self.keeper.found += 1
        return Part.of_json(found)

    def put(self, index: int, part: Part) -> None:
        self.keeper.ledger.put(self.keeper.cell(self.radii, index), part.to_json())


def keeper_of(config: EvaluateConfig, loaded: Any, data: Any, ground: Ground) -> Keeper | None:
    """Where an evaluation keeps its batches; None where its code has no file whose hash could tell that it has changed.

    A batch is known by the model's and the images' hashes, the attack and the region (with the hashes of the files that they
    name), the ball, the batch size, the seed, the device and the threads, so that nothing else is ever taken for it.
    """
    code = _code(config)
    if code is None:
        return None
    settings = {
        "attack": config.attack, "search": config.search, "norm": config.norm, "region": config.region, "code": code,
        "batch_size": config.batch_size or usual_size(data), "device": str(ground.device), "threads": torch.get_num_threads(),
    }  # fmt: skip
    model, images = model_hash(loaded), data.fingerprint

    def cell(radii: tuple[float, ...], index: int) -> Cell:
        return Cell(model, images, MEASURE, VERSION, settings | {"radii": list(radii), "batch": index}, config.seed)

    return Keeper(Ledger(config.out / FOLDER), cell)


def _code(config: EvaluateConfig) -> list[str] | None:
    """The hashes of the files that the options name; None if they name code that is in no file of its own."""
    names = [config.model, config.attack.partition("(")[0].strip()]
    names += re.split(r"[&|!()\s]+", config.region or "")
    hashes: list[str] = []
    for name in names:
        place = name.rpartition(":")[0] if names_code(name) else name.partition("file:")[2]
        if names_code(name) and not place.endswith(".py"):
            return None
        if place and Path(place).is_file():
            hashes.append(sha256_of(Path(place)))
    return hashes
