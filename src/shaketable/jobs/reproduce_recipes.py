"""Recipes of trainings: the options of `shaketable train`, and in a table [recipe] where they are from and what was published.

data = "data/cifar-10"
weights = "awp(gamma=0.01)"
[recipe]
paper = "Wu, Xia & Wang 2020"
table = "the authors' training logs"
published = { robust_best = 55.39, robust_last = 54.30 }     # shares in %, losses as they are
hours = 4.0
gpu = "arithmetic, not measured"
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.errors import ConfigError
from ..plugins import nearest, nearest_file
from .measured import QUANTITIES
from .study.recipe import refusal
from .train_config import TrainConfig

T = TypeVar("T", bound=BaseModel)

BEYOND: dict[str, str] = {
    "autoattack_best": "AutoAttack accuracy, best epoch",
    "autoattack_last": "AutoAttack accuracy, last epoch",
}
"""Published quantities that the report of a training does not have."""

PUBLISHED: dict[str, str] = QUANTITIES | BEYOND
"""Key of `published` -> its name."""


class About(BaseModel):
    """The table [recipe] of a recipe.

    Args:
        paper: who published it.
        table: where in it.
        metric: how the published numbers were measured.
        published: key of `PUBLISHED` -> the number; shares in percent.
        hours: that the training takes.
        gpu: on what, and whether that was measured.
        flop, rate: floating-point operations of the training, and how many a second were taken for `hours`.
        notes: what is expected on the disk, what is not known of the paper's setting, what differs.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", strict=True)

    paper: str
    table: str
    metric: str
    published: dict[str, float] = Field(default_factory=dict)
    hours: Annotated[float, Field(gt=0)]
    gpu: str
    flop: Annotated[float, Field(gt=0)] | None = None
    rate: Annotated[float, Field(gt=0)] | None = None
    notes: str = ""


@dataclass(frozen=True)
class TrainingRecipe:
    """One recipe: its name (that of its file), its config, and what is known about it."""

    name: str
    path: Path
    config: TrainConfig
    about: About


def read_all(folder: Path) -> tuple[TrainingRecipe, ...]:
    """The recipes of a folder, by name.

    Raises:
        ConfigError: no such folder, or none in it (the nearest names are given); a recipe that `read` refuses.
    """
    paths = sorted(folder.glob("*.toml"))
    if not paths:
        remedy = nearest_file(folder)
        raise ConfigError("name", "a folder of recipes (.toml)", str(folder), remedy)
    return tuple(read(path) for path in paths)


def read(path: Path) -> TrainingRecipe:
    """Read a recipe.

    Raises:
        ConfigError: a file that cannot be read, an option or a published quantity that is not known, a value that cannot
            be.

    Checked by tests/jobs/test_recipes.py, on every recipe of the repository.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"[:200]
        raise ConfigError(str(path), "a recipe that can be read", found, "Give a TOML file.") from error
    about = values.pop("recipe", None)
    if not isinstance(about, Mapping):
        raise ConfigError(str(path), "a table [recipe]", "none", "Say where the recipe is from; see docs/training.md.")
    options = {key.replace("-", "_"): value for key, value in values.items()}
    config = _checked(TrainConfig, options, str(path))
    described = _checked(About, about, f"{path}: recipe")
    for key in described.published:
        if key not in PUBLISHED:
            remedy = nearest(key, PUBLISHED)
            raise ConfigError(f"{path}: recipe.published", "a quantity that is known", repr(key), remedy)
    return TrainingRecipe(path.stem, path, config, described)


def _checked(kind: type[T], values: Mapping[str, object], place: str) -> T:
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise refusal(place, error, kind) from error
