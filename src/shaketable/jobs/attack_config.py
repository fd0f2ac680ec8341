"""The options of `shaketable attack`."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ..core.errors import ConfigError
from .config import SubjectConfig
from .settings import Fractions


class AttackConfig(SubjectConfig):
    """Attack images and keep what was found: pictures, files that can be read again, a map of where a model is weak."""

    count: int | None = Field(64, ge=1)
    """Attack so many images, drawn at random; `None` for all."""
    eps: Fractions = (8 / 255,)
    """Its radius, for inputs in [0, 1]: one. For several: shaketable evaluate."""
    search: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 may be faster; what it finds is confirmed in float32. How much it misses: shaketable evaluate."""
    rounding: Literal["end", "loop"] = "end"
    """Bring points to the 256 levels of 8 bits after the attack, or at every step of it."""
    save: Literal["png", "jpeg", "none"] = "png"
    """Write the adversarial images as files, and read them again; those of an earlier attack in the folder are removed."""
    quality: Annotated[int, Field(ge=1, le=95)] = 95
    """Of JPEG files."""
    grid: str | None = None
    """ROWSxCOLUMNS: also find the smallest budget in each cell that fools the model there."""
    shown: Annotated[int, Field(ge=0, le=40)] = 8
    """Images in the report's pictures."""
    out: Path = Path("runs/attack")
    """Where the report and the images go."""

    @model_validator(mode="after")
    def _one_radius(self) -> Self:
        if len(self.eps) != 1:
            raise ConfigError("eps", "one radius", ",".join(map(str, self.eps)), "For a curve: shaketable evaluate.")
        if self.grid is not None and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.grid):
            raise ConfigError("grid", "ROWSxCOLUMNS", repr(self.grid), "For example 4x4.")
        return self

    @property
    def cells(self) -> tuple[int, int] | None:
        """The grid's rows and columns."""
        if self.grid is None:
            return None
        rows, columns = self.grid.split("x")
        return int(rows), int(columns)
