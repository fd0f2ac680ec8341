"""The options of `shaketable transfer`."""

from pathlib import Path
from typing import Annotated, Literal, Self

import tyro
from pydantic import Field, model_validator

from ..core.errors import ConfigError
from .settings import Fraction, Norm, Settings

REGIONAL = "regional"


class TransferConfig(Settings):
    """Attack every model in regions of the images, and look which of the others each perturbation fools (Ozbulak 2020)."""

    model: tyro.conf.Positional[tuple[str, ...]]
    """Two or more: a run's folder, .safetensors, .pt, .pt2, timm:NAME, hf:NAME, or file.py:name."""
    data: str = "fashion-mnist"
    """An embedded data set's name, or a path: idx, CIFAR, SVHN, image folder or zip, .npz."""
    split: Literal["train", "test", "all"] = "test"
    """Which part of it; where it has none, the images that all runs that the models are from have as that part."""
    count: Annotated[int | None, Field(ge=1)] = 120
    """Images, drawn at random; `None` for all."""
    regions: tuple[str, ...] = ("whole", "centre:0.28", "frame:0.28", "random:0.28")
    """Where images may change, of matched areas to be compared; the first is what the others are compared with."""
    attack: str = "regional"
    """regional, the paper's, without a ball; or another one in a ball: pgd(steps=50), apgd, square, autoattack, ..."""
    steps: Annotated[int, Field(ge=1)] = 250
    """Of regional, the paper's."""
    step: Annotated[Fraction, Field(gt=0)] = 1 / 255
    """Length of a step of regional; the paper's is .0039."""
    loss: Literal["precise", "ce", "margin"] = "precise"
    """Of regional: cross-entropy by a float64 softmax, in float32 as the paper, or the margin."""
    claimed: Annotated[Fraction | None, Field(gt=0)] = None
    """Of regional: the Linf radius that the models claim to withstand; the report says how many successes lie inside."""
    norm: Norm = "linf"
    """Of another attack's ball."""
    eps: Annotated[Fraction, Field(gt=0)] = 8 / 255
    """The radius of another attack's ball."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Images a batch."""
    threads: Annotated[int | None, Field(ge=1)] = 1
    """CPU threads of each worker; numbers are bit-identical only with equal threads."""
    workers: Annotated[int, Field(ge=0)] = 1
    """Processes that attack; 0: this one alone. No number depends on it."""
    size: Annotated[int | None, Field(ge=1)] = None
    """Side in pixels of the images; a model of another size resizes them first. Default: as they are."""
    mean: tuple[float, ...] | None = None
    """Of the channels, where no model normalises its inputs itself."""
    std: tuple[float, ...] | None = None
    """Of the channels, where no model normalises its inputs itself."""
    labels: Path | None = None
    """A JSON file with the classes' names, in the models' order."""
    trust: bool = False
    """Load a file even though loading it may run code."""
    out: Path = Path("runs/transfer")
    """Where the report goes, and what was found, one file a source and region: what is there is not attacked again."""

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> Self:
        names = ("norm", "eps") if self.attack == REGIONAL else ("steps", "step", "loss", "claimed")
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                used = "another attack" if self.attack == REGIONAL else f"{REGIONAL} alone"
                remedy = f"Leave --{name} out, or put it into the attack's own brackets."
                raise ConfigError(name, f"an option that {self.attack} has", f"--{name}, which {used} uses", remedy)
        return self
