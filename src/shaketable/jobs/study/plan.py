"""The runs of a study: each cell of its recipe with each seed, as a folder and the config of a verb."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...core.errors import ConfigError
from ..settings import Settings
from .recipe import REFERENCE, Cell, Recipe, cells_of, refusal
from .verbs import VERBS

_SET = {
    "seed": "seeds",
    "out": "--out",
    "resume": "--out",
}  # options that the study sets itself, and what to use instead


@dataclass(frozen=True)
class Run:
    """One cell with one seed: a folder, and what the verb is told."""

    cell: Cell
    seed: int
    folder: Path
    config: Settings

    @property
    def name(self) -> str:
        """As it is named in messages: cell and seed."""
        return run_name(self.cell.name, self.seed)

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the runs that must be done before."""
        return tuple(run_name(name, self.seed) for name in self.cell.needs)

    @property
    def places(self) -> dict[str, str]:
        """Options that hold folders of other runs -> what they may be wherever the study lies, as regular expressions."""
        texts = {key: value for key, value in self.cell.options.items() if isinstance(value, str)}
        return {key: _pattern(text, self.seed) for key, text in texts.items() if REFERENCE.search(text)}


def run_name(cell: str, seed: int) -> str:
    """The name of a run, which is also its folder below the study's."""
    return f"{cell}/seed-{seed}"


def runs_of(recipe: Recipe, out: Path, where: str = "recipe") -> dict[str, Run]:
    """All runs by name: seed after seed, so that what is compared by seed is there early."""
    cells = cells_of(recipe, where)
    made: dict[str, Run] = {}
    for seed in recipe.seeds:
        for cell in cells.values():
            folder = out / run_name(cell.name, seed)
            config = _configured(cell, seed, out, folder, where)
            made[run_name(cell.name, seed)] = Run(cell, seed, folder, config)
    return made


def filled(value: Any, out: Path, seed: int) -> Any:
    """An option with the folders in the place of `{cell}`, also within lists."""
    if isinstance(value, str):
        return REFERENCE.sub(lambda found: str(out / run_name(found[1], seed)), value)
    return [filled(item, out, seed) for item in value] if isinstance(value, list) else value


def _pattern(text: str, seed: int) -> str:
    parts = REFERENCE.split(text)  # what lies between references, and every second one a cell's name
    return "".join(
        re.escape(part) if k % 2 == 0 else f"(.*/)?{re.escape(run_name(part, seed))}" for k, part in enumerate(parts)
    )


def _configured(cell: Cell, seed: int, out: Path, folder: Path, where: str) -> Settings:
    kind = VERBS[cell.verb]
    place = f"{where}: {cell.place}"
    for key in cell.options:
        if key in _SET:
            raise ConfigError(
                f"{place}.{key}", "an option that the study leaves to its cells", key, f"Use {_SET[key]}."
            )
    options = {key: filled(value, out, seed) for key, value in cell.options.items()}
    own = {"seed": seed, "out": folder} | ({"resume": True} if "resume" in kind.model_fields else {})
    try:
        return kind.model_validate({**options, **own})
    except ValidationError as error:
        raise refusal(place, error, kind) from error
