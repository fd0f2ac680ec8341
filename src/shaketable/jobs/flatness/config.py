"""The options of `shaketable flatness`."""

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from ..settings import Fraction, Norm, Settings

MEASURES = ("average", "worst", "average(loss='clean')", "worst(loss='clean')")


class FlatnessConfig(Settings):
    """Measure how flat the robust loss is around a model's weights: how much it rises when the weights move."""

    model: Annotated[tyro.conf.Positional[tuple[str, ...]], Field(min_length=1)]
    """A run's folder, .safetensors, .pt, .pt2, timm:NAME, hf:NAME, or file.py:name; or several, side by side."""
    checkpoints: bool = False
    """Of each run's folder all checkpoints: those that `train --keep-every` kept, the best and the last."""
    data: str = "fashion-mnist"
    """An embedded data set's name, or a path: idx, CIFAR, SVHN, image folder or zip, .npz."""
    split: Literal["test", "train", "both"] = "test"
    """Which images; of a run's own training images where it is known which these are."""
    count: Annotated[int | None, Field(ge=1)] = 1000
    """The first so many images of each split, as in the paper; `None` for all."""
    measures: Annotated[tuple[str, ...], Field(min_length=1)] = MEASURES
    """average(xi=0.5), worst(xi=(0.00075, 0.003)), adaptive, sam, filter; with loss='clean'; or your own file.py:name."""
    xi: tuple[float, ...] = ()
    """Radii of the average case, relative to each layer's norm. Default: the preset's, 0.5."""
    worst_xi: tuple[float, ...] = ()
    """Radii of the worst case. Default: the preset's, 0.00075 for the robust and 0.003 for the clean loss."""
    preset: Literal["paper", "authors", "equal"] = "paper"
    """Where paper and authors' code differ; "equal": as the paper, the reference attacked no harder than the rest."""
    standard_error: Annotated[float | None, Field(gt=0)] = None
    """Of the average case: draw until the standard error is this, at the least cost, rather than a number of draws."""
    attack: str = "pgd(steps=20, step=0.223125)"
    """On the images, anew wherever the weights are moved to; the step is in units of eps: .007 of 8/255, the paper's."""
    norm: Norm = "linf"
    """Of the perturbation of the inputs."""
    eps: Annotated[Fraction, Field(ge=0)] = 8 / 255
    """Its radius, for inputs in [0, 1]."""
    batch_size: Annotated[int | None, Field(ge=1)] = None
    """Images a pass, which is a part of what is measured. Default: the preset's, 128."""
    threads: Annotated[int | None, Field(ge=1)] = 1
    """CPU threads of each worker; numbers are bit-identical only with equal threads."""
    workers: Annotated[int, Field(ge=0)] = 1
    """Processes that measure; 0: this one alone. No number depends on it."""
    architecture: str | None = None
    """For a bare state dict: which architecture it is of."""
    mean: tuple[float, ...] | None = None
    """Of the channels, where the model does not normalise its inputs itself."""
    std: tuple[float, ...] | None = None
    """Of the channels, where the model does not normalise its inputs itself."""
    size: Annotated[int | None, Field(ge=1)] = None
    """Side in pixels that images are resized and cropped to. Default: as they are."""
    labels: Path | None = None
    """A JSON file with the classes' names, in the model's order."""
    trust: bool = False
    """Load a file even though loading it may run code."""
    out: Path = Path("runs/flatness")
    """Where the report goes, and the measurements, one file each: what is there is not measured again."""
