"""The options of `shaketable study`."""

from pathlib import Path
from typing import Any, ClassVar

import tyro
from pydantic import BaseModel, ConfigDict, Field, model_validator


class StudyConfig(BaseModel):
    """Run a study: a grid of trainings over seeds, as one job that can be stopped and gone on with."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    recipe: tyro.conf.Positional[Path]
    """The study's recipe, a TOML file: its question, seeds, cells and comparisons; see docs/training.md."""
    out: Path | None = None
    """Where the runs and the report go. Default: runs/study-NAME, after the recipe's file."""
    workers: int = Field(1, ge=1)
    """Trainings that run at a time, each in a process of its own. No number depends on it."""
    only: tuple[str, ...] = ()
    """Cells and seeds to run now, such as `at at-awp 0 1`; what they need is run too. Default: all."""

    @model_validator(mode="before")
    @classmethod
    def _names_its_folder(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("out") is not None or "recipe" not in values:
            return values
        return {**values, "out": Path("runs") / f"study-{Path(values['recipe']).stem}"}

    @property
    def folder(self) -> Path:
        """Where it goes, which is always known."""
        assert self.out is not None
        return self.out
