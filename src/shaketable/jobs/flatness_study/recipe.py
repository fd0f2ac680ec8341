"""What the table [flatness] of a study's recipe says: what is measured, of which models, and how they belong together.

[flatness]
measures = ["average(xi=0.5)", "worst(xi=0.00075)"]   # as `shaketable flatness --measures` takes them
count = 250                     # test images, the first ones
attack = "pgd(steps=20)"        # default: the base's evaluation; norm and eps too are the base's, for all cells
checkpoints = ["last", "best"]  # the best epoch is early stopping
early_stopped = ["at"]          # the cells whose best epoch is measured; default: all
baseline = "at"                 # the cell that others are compared with; default: the first that is shown
families = {at-awp-02 = "at-awp"}   # default: each cell is a family, with its seeds and checkpoints

[models.wide]                   # checkpoints that exist already
path = "runs/wide/last.safetensors"
family = "wide nets"
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from ...core.errors import ConfigError
from ...plugins import nearest
from ..flatness.config import FlatnessConfig
from ..ground import device_of
from ..settings import Fraction, Norm
from ..study.recipe import Cell, Recipe, Strict, Title, cells_of, refusal
from ..train_config import TrainConfig

Which = Literal["last", "best"]


class FlatnessTable(Strict):
    """The table [flatness] as the file has it."""

    measures: Annotated[tuple[Title, ...], Field(min_length=1)]
    count: Annotated[int | None, Field(ge=1)] = 1000
    evaluate_count: Annotated[int | None, Field(ge=1)] = None
    attack: str | None = None
    norm: Norm | None = None
    eps: Fraction | None = None
    preset: Literal["paper", "authors", "equal"] = "paper"
    batch_size: Annotated[int | None, Field(ge=1)] = None
    seed: int = 0
    threads: Annotated[int | None, Field(ge=1)] = 1
    device: str = "cpu"
    checkpoints: Annotated[tuple[Which, ...], Field(min_length=1)] = ("last", "best")
    early_stopped: tuple[str, ...] | None = None
    baseline: str | None = None
    families: dict[str, Title] = Field(default_factory=dict)


class ModelTable(Strict):
    """A table [models.NAME]: a checkpoint that exists already."""

    path: Title
    family: Title | None = None
    epoch: int | None = None
    architecture: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    trust: bool = False


@dataclass(frozen=True)
class FlatnessPlan:
    """What is measured, with all defaults filled in.

    Args:
        table: the table [flatness].
        models: name -> a checkpoint that exists already.
        cells: the trainings that are measured.
        baseline: the cell that others are compared with; None where there are no others.
        config: of `shaketable flatness`, for all models alike; its `model` is none of them.
    """

    table: FlatnessTable
    models: Mapping[str, ModelTable]
    cells: tuple[Cell, ...]
    baseline: str | None
    config: FlatnessConfig

    def checkpoints(self, cell: str) -> tuple[Which, ...]:
        """Which checkpoints of a cell's runs are measured."""
        only = self.table.early_stopped
        return tuple(w for w in self.table.checkpoints if w == "last" or only is None or cell in only)

    def family(self, name: str) -> str:
        """The family of a cell or a model."""
        given = self.models[name].family if name in self.models else None
        return given or self.table.families.get(name, name)


def plan_of(recipe: Recipe, where: str) -> FlatnessPlan:
    """What a recipe's [flatness] and [models.NAME] say.

    Raises:
        ConfigError: no such table; a key or cell that is not known (the nearest are named); a value that cannot be.

    Checked by tests/jobs/test_flatness_recipe.py.
    """
    if not recipe.flatness:
        remedy = 'For example: [flatness] measures = ["average"]; without it, run `shaketable study`.'
        raise ConfigError(where, "a table [flatness]", "none", remedy)
    table = _read(FlatnessTable, recipe.flatness, f"{where}: flatness")
    models = {name: _read(ModelTable, given, f"{where}: models.{name}") for name, given in recipe.models.items()}
    cells = tuple(c for c in cells_of(recipe, where).values() if c.verb == "train" and not c.hidden)
    names = [cell.name for cell in cells]
    for name in models:
        if name in recipe.cells:
            raise ConfigError(f"{where}: models.{name}", "a name that no cell has", name, "Rename the model.")
    for name in (*table.families, *(table.early_stopped or ()), *([table.baseline] if table.baseline else [])):
        if name not in names:
            known = "a training of this recipe that is shown"
            raise ConfigError(f"{where}: flatness", known, repr(name), nearest(name, names))
    baseline = table.baseline or (names[0] if len(names) > 1 or "best" in table.checkpoints else None)
    return FlatnessPlan(table, models, cells, baseline, _config(recipe, table, where))


def _config(recipe: Recipe, table: FlatnessTable, where: str) -> FlatnessConfig:
    """The options of `shaketable flatness` that hold for all models."""
    base = {key.replace("-", "_"): value for key, value in recipe.base.items()}
    training = TrainConfig(**{k: v for k, v in base.items() if k in ("data", "norm", "eps", "evaluation")})
    options: dict[str, Any] = {
        "data": training.data, "norm": table.norm or training.norm, "attack": table.attack or training.evaluation,
        "eps": training.eps if table.eps is None else table.eps,
    }  # fmt: skip
    same = ("measures", "count", "preset", "batch_size", "seed", "threads")
    options |= {name: getattr(table, name) for name in same}
    options["device"] = str(device_of(table.device))  # the one used, which the ledger's cells name
    try:
        return FlatnessConfig(model=("recipe",), **options)
    except ValidationError as error:
        raise refusal(f"{where}: flatness", error, FlatnessConfig) from error


def _read(kind: type[Strict], given: Mapping[str, Any], place: str) -> Any:
    values = {key.replace("-", "_"): value for key, value in given.items()}
    try:
        return kind.model_validate(values, strict=False)
    except ValidationError as error:
        raise refusal(place, error, kind) from error
