"""The options of `shaketable study flatness`."""

from pathlib import Path
from typing import Any, ClassVar

import tyro
from pydantic import BaseModel, ConfigDict, Field, model_validator


class FlatnessStudyConfig(BaseModel):
    """Does flatness go with robustness? Train or load many models, measure and correlate; or correlate a table."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    recipe: tyro.conf.Positional[Path | None] = None
    """A study's recipe with a table [flatness], a TOML file; see docs/flatness.md. Or give --table."""
    table: Path | None = None
    """A CSV file of figures that exist already, a row a model; nothing is trained or measured."""
    flatness: tuple[str, ...] | None = None
    """Columns of the table that are measures of flatness. Default: those that are recognised."""
    target: tuple[str, ...] | None = None
    """Columns that flatness is to go with; A-B is a difference. Default: robust loss, error and gap."""
    given: tuple[str, ...] | None = None
    """Confounders. Default: robust loss on training images, confidence and epoch, where the table has them."""
    log: tuple[str, ...] | None = None
    """Columns whose logarithm is taken. Default: the robust loss on training images."""
    family: str | None = None
    """The column of families, which intervals are over. Default: "family", or names up to their settings."""
    constant: str | None = None
    """A column that is 1 for constant predictors, which are refused. Default: "constant", if it is there."""
    by: str | None = None
    """The column that makes good, average and poor models. Default: robust error."""
    groups: tuple[float, float] | None = None
    """Where average begins and where poor does. Default: 57 and 60 for the paper's table, else thirds."""
    seed: int = 0
    """Of the bootstrap."""
    resamples: int = Field(2000, ge=100)
    """Of the bootstrap."""
    only: tuple[str, ...] = ()
    """Cells and seeds of the recipe to run now, and what they need. What has ended is measured. Default: all."""
    workers: int = Field(1, ge=0)
    """Trainings or measurements at a time, each in a process of its own; 0: measure in this one. No number depends on it."""
    out: Path | None = None
    """Where the runs and the report go. Default: runs/flatness-NAME, after the recipe's or the table's file."""

    @model_validator(mode="before")
    @classmethod
    def _names_its_folder(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("out") is not None:
            return values
        source = values.get("recipe") or values.get("table")
        return {**values, "out": Path("runs") / f"flatness-{Path(source).stem if source else 'study'}"}

    @property
    def folder(self) -> Path:
        """Where it goes, which is always known."""
        assert self.out is not None
        return self.out

    @property
    def reports(self) -> Path:
        """Where the report, flatness.json, the table and the measurements go: beside a recipe's runs, over none of them."""
        return self.folder / "_flatness" if self.recipe is not None else self.folder
