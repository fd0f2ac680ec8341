"""The options of `shaketable reproduce`."""

from pathlib import Path
from typing import Any, ClassVar

import tyro
from pydantic import BaseModel, ConfigDict, model_validator


class ReproduceConfig(BaseModel):
    """Put a paper's published numbers beside those of the runs that are there."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: tyro.conf.Positional[str]
    """The recipes: a folder below --recipes, such as awp."""
    runs: Path = Path("runs")
    """Where runs are looked for, at any depth."""
    studies: Path = Path("studies")
    """Where studies are looked for: their study.json, at any depth."""
    recipes: Path = Path("recipes")
    """Where the recipes are."""
    out: Path | None = None
    """Where the report goes. Default: runs/reproduce-NAME."""

    @model_validator(mode="before")
    @classmethod
    def _names_its_folder(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("out") is not None or "name" not in values:
            return values
        return {**values, "out": Path("runs") / f"reproduce-{values['name']}"}
