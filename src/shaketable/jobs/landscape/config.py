"""The options of `shaketable landscape`."""

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from ..settings import Fraction, Norm, Settings


class LandscapeConfig(Settings):
    """Draw the adversarial loss around a model's weights; the images are attacked anew at every point."""

    model: tyro.conf.Positional[tuple[str, ...]] = ()
    """A run's folder, .safetensors, .pt, .pt2, timm:NAME, hf:NAME, or file.py:name; or several, side by side."""
    trajectory: tuple[Path, ...] = ()
    """Instead of models: one training's checkpoints in order, or its folder (see `train --keep-every`)."""
    data: str = "fashion-mnist"
    """An embedded data set's name, or a path: idx, CIFAR, SVHN, image folder or zip, .npz."""
    split: Literal["test", "train"] = "test"
    """Which images; of a run's own training images where it is known which these are."""
    count: Annotated[int | None, Field(ge=1)] = 128
    """The first so many images, as in the paper; `None` for all."""
    dims: Literal[1, 2, 3] | None = None
    """1: curves, 2: surfaces, 3: volumes. Default: 1; of a trajectory 2."""
    direction: str = "random"
    """random, adversarial, hessian, with options such as "hessian(points='clean')"; your own file.py:name."""
    normalise: Literal["layer", "filter", "model"] | None = None
    """What has the radius: each layer's direction, each filter's, or all together. Default: layer; of hessian model."""
    radius: Annotated[Fraction | None, Field(gt=0)] = None
    """Of a coordinate of 1, relative to the weights' norm. Default: random 0.5, adversarial 0.025, hessian 0.05."""
    points: Annotated[int | None, Field(ge=2)] = None
    """Along each axis. Default: 51, the paper's; 21 in two dimensions, 9 in three."""
    lines: Annotated[int | None, Field(ge=1)] = None
    """Directions that are combined: the mean of random ones, the highest of adversarial ones. Default: 10 in 1-D."""
    attack: str = "pgd(steps=20, step=0.223125)"
    """On the images; the step is in units of eps: .007 of 8/255, the paper's."""
    norm: Norm = "linf"
    """Of the perturbation of the inputs."""
    eps: Annotated[Fraction, Field(ge=0)] = 8 / 255
    """Its radius, for inputs in [0, 1]."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images a pass."""
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
    out: Path = Path("runs/landscape")
    """Where the report goes, and the points, one file each: what is there is not measured again."""
